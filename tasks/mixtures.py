"""Registers every family for the shipped datasets, and mixtures over them.

Importing this module registers; nothing is read until a task is opened. For data of your own call
`register` with the name you gave it.
"""

from instructrec_jax.instructions.language import Template, unique_templates, variants
from instructrec_jax.pipeline.task_registration import (
    GROUPED,
    num_training_examples,
    register_family,
    register_mixture,
)
from instructrec_jax.records import TaskForm
from tasks import personalized_search, product_search, sequential

DATASETS = ("ml_100k", "amazon_games")
FAMILIES = {
    "sequential": sequential,
    "product_search": product_search,
    "personalized_search": personalized_search,
}
TEMPLATES: tuple[Template, ...] = unique_templates(
    *(module.TEMPLATES for module in FAMILIES.values()), where=__file__
)


def register(dataset: str) -> None:
    """Registers all tasks and mixtures of a dataset; does nothing for what is there already."""
    for family, module in FAMILIES.items():
        register_family(dataset, family, config=module.CONFIG, templates=module.TEMPLATES)
    members = tuple(variants(TEMPLATES))
    names = [f"{dataset}.{variant.name}" for variant in members]
    ranking = [
        f"{dataset}.{variant.name}.{GROUPED}"
        for variant in members
        if variant.template.task_form is TaskForm.RERANKING
    ]
    # A product-search template has one example an item, the others one a user's position: at equal
    # rates the few items would come round many times an epoch.
    register_mixture(f"{dataset}.all", ((name, num_training_examples) for name in names))
    register_mixture(
        f"{dataset}.all.{GROUPED}", ((name, num_training_examples) for name in ranking)
    )


for _dataset in DATASETS:
    register(_dataset)
