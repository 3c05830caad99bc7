"""The task form T1, which of two: an extension that the paper defines and does not use.

It is no part of the 39 templates nor of any shipped mixture. Name this module as the task module
(`--task_module`, MIXTURE_OR_TASK_MODULE) to have `<dataset>.X1` and `<dataset>.pairwise` too.
"""

from instructrec_jax.instructions.language import Template
from instructrec_jax.records import TaskForm

from . import mixtures

TEMPLATES = (
    *mixtures.TEMPLATES,
    PAIRWISE := Template(
        template_id="X1",
        inputs="Past choices: {history}.[ Taste: {preference}.] "
        "Which comes next: {first} or {second}?",
        targets="{target}",
        task_form=TaskForm.PAIRWISE,
        family="pairwise",
    ),
)


def register(dataset: str) -> None:
    """Registers everything of `mixtures`, and the pairwise template."""
    from instructrec_jax.pipeline.registry import register_templates

    mixtures.register(dataset)
    register_templates(dataset, (PAIRWISE,))
