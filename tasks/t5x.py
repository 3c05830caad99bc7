"""Registers the tasks of the shipped datasets when it is imported, as T5X's programs want it.

gin/t5x names it as MIXTURE_OR_TASK_MODULE. `instructrec` names `instructrec_jax.tasks.mixtures`,
and registers the dataset that it reads.
"""

from . import mixtures

DATASETS = ("ml_100k", "amazon_games")

for _dataset in DATASETS:
    mixtures.register(_dataset)
