"""Who chose an item, and when: where the texts of a product-search query come from."""

import numpy as np

from instructrec_jax.data.columnar import Histories
from instructrec_jax.data.splits import TEST, TRAIN, VALIDATION

_FROM_END = {VALIDATION: 2, TEST: 1}  # place of the held-out event, counted from the end


class SearchEvents:
    """The events of one split, by item."""

    def __init__(self, histories: Histories, *, split: str) -> None:
        """Indexes the events.

        Args:
          histories: [users].
          split: "train" for those before the held-out two, else the one held out for it.
        """
        lengths = np.diff(histories.starts)
        from_end = np.repeat(histories.starts[1:], lengths) - np.arange(len(histories.item_ids))
        if split == TRAIN:
            chosen = np.flatnonzero(from_end > max(_FROM_END.values()))
        else:
            chosen = np.flatnonzero(from_end == _FROM_END[split])
        by_item = np.argsort(histories.item_ids[chosen], kind="stable")
        self._places = chosen[by_item]
        self._items = histories.item_ids[self._places]
        self._starts = histories.starts

    def draw(self, item_id: int, *, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Returns (user index, position) of at most `number` events of an item, drawn from all."""
        begin, end = np.searchsorted(self._items, [item_id, item_id + 1])
        places = self._places[begin:end]
        if len(places) > number:
            places = rng.choice(places, size=number, replace=False)
        users = np.searchsorted(self._starts, places, side="right") - 1
        return list(zip(users.tolist(), (places - self._starts[users]).tolist(), strict=True))
