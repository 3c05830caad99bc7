"""Candidates from a whole catalogue: by the words of a query, by what occurs with a history.

Both orders are fused by reciprocal rank (Cormack, Clarke and Büttcher, SIGIR 2009). Where a request
tells of neither words nor items that the catalogue knows, the most popular items are taken.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.cooccurrence import (
    ITEM_DIM,
    cooccurrence_embeddings,
    score_by_cooccurrence,
)
from instructrec_jax.baselines.popularity import count_items, training_histories
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.titles import model_title, path_labels
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.instructions.leaks import content_words
from instructrec_jax.metrics.bm25 import BM25
from instructrec_jax.records import Item

_DAMPING = 60  # of reciprocal ranks
_SEED = 0


class Retriever:
    """An index of a catalogue; threads may share it."""

    def __init__(self, data: PreparedData) -> None:
        """Indexes what `prepare` wrote; of histories only what is for training."""
        self.items: Sequence[Item] = data.items
        histories = training_histories([history.item_ids for history in data.histories])
        self._counts = count_items(histories, num_items=len(data.items))
        self._vectors = cooccurrence_embeddings(histories, len(data.items), ITEM_DIM, _SEED)
        self._index = BM25(
            [content_words(f"{item.title} {item.brand} {item.category}") for item in data.items]
        )
        self._number = {_read(item.title): item.item_id for item in reversed(data.items)}
        self._labels = [
            {label.casefold() for label in (*path_labels(item.category), item.brand) if label}
            for item in data.items
        ]

    def find(
        self,
        query: str,
        history: Sequence[str],
        *,
        number: int,
        exclude: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> list[Item]:
        """Returns the items that suit a request best, none of its history, no two titles equal.

        Args:
          query: what is wanted, and liked, in words.
          history: titles, oldest first; unknown ones count as words.
          number: how many to return; fewer where the catalogue has fewer.
          exclude: titles that are not to be returned.
          labels: categories and brands that an item has to have, all of them.

        Raises:
          UserError: if fewer than two items have the labels.
        """
        known = [self._number[_read(title)] for title in history if _read(title) in self._number]
        words = content_words(" ".join([query, *([] if known else history)]))
        scores: list[NDArray[np.floating]] = []
        by_words = self._index.scores(words)
        if (by_words > 0).any():
            scores.append(by_words)
        if known or not scores:
            everything = np.arange(len(self.items), dtype=np.int32)[None]
            scores.append(
                score_by_cooccurrence(
                    everything, [known], vectors=self._vectors, counts=self._counts
                )[0]
            )
        hidden = {_read(title) for title in (*history, *exclude)}
        found: dict[str, Item] = {}
        for item_id in _fused(scores):
            item = self.items[item_id]
            title = _read(item.title)
            if title in hidden or title in found or not self._has(item_id, labels):
                continue
            found[title] = item
            if len(found) == number:
                break
        if len(found) < 2:
            what = f" with {', '.join(labels)}" if labels else ""
            raise UserError(f"the catalogue has {len(found)} items{what} that may be recommended")
        return list(found.values())

    def _has(self, item_id: int, labels: Sequence[str]) -> bool:
        return all(label.casefold() in self._labels[item_id] for label in labels)


def _fused(scores: Sequence[NDArray[np.floating]]) -> list[int]:
    """Returns item ids by the sum of their reciprocal ranks; a score of 0 or less tells nothing."""
    total = np.zeros(len(scores[0]))
    for own in scores:
        order = np.argsort(-own, kind="stable")
        rank = np.empty(len(own))
        rank[order] = np.arange(1, len(own) + 1)
        total += np.where(own > 0, 1 / (_DAMPING + rank), 0.0)
    return np.argsort(-total, kind="stable").tolist()


def _read(title: str) -> str:
    """Returns a title as a model tells it from others."""
    return model_title(plain_title(title))
