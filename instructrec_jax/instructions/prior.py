"""The neutral instruction, which tells nothing of the user: what PMI measures against.

It shows the candidates where the template does, so that what is left of a title's log-likelihood
is owed to preference, history and intention. It is none of the paper's 39.
"""

from instructrec_jax.instructions.language import Slot, Template, Variant, slots_of
from instructrec_jax.records import TaskForm

_RERANKING = Template(
    template_id="prior",
    inputs="Name one of these items: {candidates}.",
    targets="{target}",
    task_form=TaskForm.RERANKING,
)
_MATCHING = Template(
    template_id="prior_without_candidates",
    inputs="Name an item.",
    targets="{target}",
    task_form=TaskForm.MATCHING,
)


def prior_of(variant: Variant) -> Variant:
    """Returns the neutral instruction for a template whose answer is an item."""
    return Variant(_RERANKING if shows_candidates(variant) else _MATCHING)


def shows_candidates(variant: Variant) -> bool:
    """Returns whether the instruction holds the list of candidates."""
    return Slot.CANDIDATES in slots_of(variant.template.input_segments)
