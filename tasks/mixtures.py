"""All 39 templates, and the mixtures over them for any dataset.

`register` registers them with SeqIO; nothing is read until a task is opened, and tasks that a
dataset has no texts for are left out of its mixtures then. Importing this module imports no SeqIO,
so that templates can be listed and rendered without it; T5X's own programs name
`instructrec_jax.tasks.t5x`.
"""

from instructrec_jax.instructions.language import (
    Kind,
    Query,
    Slot,
    Template,
    Variant,
    unique_templates,
    variants,
)

from . import (
    chain_of_thought,
    personalized_search,
    product_search,
    relatedness,
    sequential,
    task_reversal,
)

# Their order is that of the paper's appendices A, B and C.
TEMPLATES: tuple[Template, ...] = unique_templates(
    sequential.TEMPLATES,
    chain_of_thought.SEQUENTIAL,
    task_reversal.SEQUENTIAL,
    product_search.TEMPLATES,
    task_reversal.PRODUCT_SEARCH,
    personalized_search.TEMPLATES,
    task_reversal.PERSONALIZED_SEARCH,
    relatedness.PERSONALIZED_SEARCH,
    where=__file__,
)
KINDS = {
    "task_reversal": task_reversal.TEMPLATES,
    "relatedness": relatedness.TEMPLATES,
    "chain_of_thought": chain_of_thought.TEMPLATES,
}
TEACHER_FIELDS = {"preference", "vague_intention", "second_vague_intention"}
ABLATION_STEPS = (
    "implicit_preference",
    "explicit_preference",
    "specific_intention",
    "strategies",
    "second_vague_intention",
)


def register(dataset: str) -> None:
    """Registers all tasks and mixtures of a dataset; does nothing for what is there already."""
    from instructrec_jax.pipeline.registry import register_mixture, register_templates

    register_templates(dataset, TEMPLATES)
    mixtures = {kind: variants(templates) for kind, templates in KINDS.items()}
    mixtures["without_teacher"] = (v for v in variants(TEMPLATES) if not v.needs & TEACHER_FIELDS)
    for name, members in {**mixtures, **ablation_steps(), "all": variants(TEMPLATES)}.items():
        register_mixture(f"{dataset}.{name}", [f"{dataset}.{member.name}" for member in members])


def ablation_steps() -> dict[str, tuple[Variant, ...]]:
    """Returns the mixtures of the paper's Figure 3, each with one type of instruction more.

    The vague intention is in none of them: personalised search by it is what they are tested on.
    The paper does not name the steps; these are our reading of "types of fine-grained
    instructions". Optional preference clauses are of step 2: give step 1 a feature length of 0
    for "preference".
    """
    return {
        f"ablation.{number}_{name}": tuple(
            variant for variant in variants(TEMPLATES) if 0 < _ablation_step(variant) <= number
        )
        for number, name in enumerate(ABLATION_STEPS, start=1)
    }


def _ablation_step(variant: Variant) -> int:
    """Returns the number of the step that brings a variant in; 0 for the held-out ones."""
    if variant.query is Query.VAGUE:
        return 0
    if variant.query is Query.SECOND_VAGUE:
        return 5
    if variant.template.kind is not Kind.PLAIN:
        return 4
    if variant.query is Query.SPECIFIC:
        return 3
    states = variant.query or Slot.PREFERENCE in variant.template.required_slots
    return 2 if states else 1
