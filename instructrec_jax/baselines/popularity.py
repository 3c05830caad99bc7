"""The popularity scorer: how often an item was chosen in the training part of the histories."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import CandidateList

NUM_HELD_OUT = 2  # validation and test target of leave-one-out


class Popularity:
    """How often an item was chosen."""

    name = "popularity"

    def __init__(self, data: PreparedData, *, seed: int) -> None:
        del seed  # nothing is drawn
        training = training_histories(history.item_ids for history in data.histories)
        self._counts = count_items(training, num_items=len(data.items))

    def score(
        self, examples: Sequence[CandidateList], candidate_ids: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Returns [n, c] float32, higher is better; see `score_by_popularity`."""
        del examples
        return score_by_popularity(candidate_ids, self._counts)


def training_histories(histories: Iterable[Sequence[int]]) -> list[NDArray[np.int64]]:
    """Returns every history without its last two items, the validation and test targets.

    Args:
      histories: item ids of every user, oldest first.

    Example:
      `training_histories([[3, 1, 4, 1]])` is `[array([3, 1])]`.
    """
    return [np.asarray(items, dtype=np.int64)[:-NUM_HELD_OUT] for items in histories]


def count_items(training: Sequence[NDArray[np.int64]], *, num_items: int) -> NDArray[np.int64]:
    """Returns [num_items] how often every item stands in the training histories."""
    if not training:
        return np.zeros(num_items, dtype=np.int64)
    return np.bincount(np.concatenate(training), minlength=num_items).astype(np.int64)


def score_by_popularity(
    candidate_ids: NDArray[np.int32], counts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns log(1 + training count) of every candidate.

    Args:
      candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
      counts: [num_items] training counts.

    Returns:
      [n, c] float32, higher is better, -inf at padding.
    """
    scores = np.log1p(counts)[np.maximum(candidate_ids, 0)]
    return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)
