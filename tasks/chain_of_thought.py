"""Chain of thought: first the preference that a history shows, then the item.

The reasoning is a template over the teacher's preference and needs no text of its own (PAPER
section 4). The wordings are our own.
"""

from instructrec_jax.instructions.language import Kind, Template
from instructrec_jax.records import TaskForm

SEQUENTIAL = (
    Template(
        template_id="A3",
        inputs="Past choices: {history}. First say what this user prefers, then recommend an item.",
        targets="The preference: {preference}. So the recommendation: {target}",
        task_form=TaskForm.MATCHING,
        family="sequential",
        kind=Kind.CHAIN_OF_THOUGHT,
    ),
)
TEMPLATES = SEQUENTIAL
