"""The product-search split: 80/10/10 over all items with their queries, as in the paper."""

from collections.abc import Sequence

from instructrec_jax.data.titles import model_title
from instructrec_jax.records import Item
from instructrec_jax.seeds import stable_seed

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_SEED_RANGE = 1 << 63  # stable_seed returns 63 bits
_SHARES = ((TRAIN, 0.8), (VALIDATION, 0.9), (TEST, 1.0))  # upper bounds


def search_split(title: str, *, dataset: str, seed: int) -> str:
    """Returns the split of an item's (query, item) pair.

    It hashes the title, so it depends on no other item, and items of equal title fall together:
    a held-out title is not seen in training under another id.

    Args:
      title: cleaned title.
      dataset: name of the data set.
      seed: seed of the whole preparation.

    Returns:
      "train" for 8 of 10 titles, "validation" for one, "test" for one.
    """
    share = stable_seed(seed, dataset, "search_split", model_title(title).casefold()) / _SEED_RANGE
    return next(name for name, bound in _SHARES if share < bound or bound == 1.0)


def search_splits(items: Sequence[Item], *, dataset: str, seed: int) -> tuple[str, ...]:
    """Returns the split of every item, "" for items without a category: they have no query."""
    return tuple(
        search_split(item.title, dataset=dataset, seed=seed) if item.category else ""
        for item in items
    )
