"""Registers every family for the shipped datasets, and mixtures over them.

Importing this module registers; nothing is read until a task is opened. For data of your own call
`register` with the name you gave it.
"""

from instructrec_jax.instructions.language import Template, unique_templates, variants
from instructrec_jax.pipeline.task_registration import GROUPED, register_family, register_mixture
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
    register_mixture(f"{dataset}.all", ((f"{dataset}.{v.name}", 1.0) for v in members))
    ranking = (v for v in members if v.template.task_form is TaskForm.RERANKING)
    register_mixture(
        f"{dataset}.all.{GROUPED}", ((f"{dataset}.{v.name}.{GROUPED}", 1.0) for v in ranking)
    )


for _dataset in DATASETS:
    register(_dataset)
