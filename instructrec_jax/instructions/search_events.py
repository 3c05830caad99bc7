"""The events of one split by item: where the texts of a product-search query come from."""

import numpy as np

from instructrec_jax.data.columnar import TEST, TRAIN, VALIDATION, Histories

_FROM_END = {VALIDATION: 2, TEST: 1}  # index of the held-out event, counted from the end


class SearchEvents:
    """The events of one split by item."""

    def __init__(self, histories: Histories, *, split: str) -> None:
        """Indexes the events.

        Args:
          histories: [users].
          split: "train" for those before the held-out two, else the one held out for it.
        """
        from_end = histories.from_end()
        if split == TRAIN:
            chosen = np.flatnonzero(from_end > max(_FROM_END.values()))
        else:
            chosen = np.flatnonzero(from_end == _FROM_END[split])
        by_item = np.argsort(histories.item_ids[chosen], kind="stable")
        self._events = chosen[by_item]
        self._items = histories.item_ids[self._events]
        self._starts = histories.starts

    def draw(self, item_id: int, *, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Returns (user index, position) of at most `number` events of an item, drawn from all."""
        begin, end = np.searchsorted(self._items, [item_id, item_id + 1])
        events = self._events[begin:end]
        if len(events) > number:
            events = rng.choice(events, size=number, replace=False)
        users = np.searchsorted(self._starts, events, side="right") - 1
        return list(zip(users.tolist(), (events - self._starts[users]).tolist(), strict=True))
