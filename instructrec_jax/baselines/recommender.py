"""What a system that is trained has to offer, and the choices that it learns from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import CandidateList

Batch: TypeAlias = dict[str, NDArray[np.int32]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Choices:
    """Who asked for what, and chose which item, in training.

    Attributes:
      history_rows: [n] int32, index of the user's history; -1 in product search.
      positions: [n] int32, of the item in the history; -1 in product search.
      item_ids: [n] int32, what was chosen.
      queries: [n] what was asked for; "" where nothing was.
    """

    history_rows: NDArray[np.int32]
    positions: NDArray[np.int32]
    item_ids: NDArray[np.int32]
    queries: Sequence[str]


class RowSource(Protocol):
    """The rows of one data set that a system learns from, and those that it scores."""

    num_rows: int

    def training_batch(self, rows: NDArray[np.int64]) -> Batch:
        """Returns training rows by their numbers."""
        ...

    def scoring_batch(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None,
    ) -> Batch:
        """Returns what the model's `candidate_scores` takes of examples; UserError if it cannot.

        Args:
          examples: n of them.
          candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
          queries: [n] what the users ask for; None where they ask for nothing.
        """
        ...


class Recommender(Protocol):
    """A system that is trained; its model has a method `candidate_scores` of a batch."""

    def open(self, data: PreparedData, choices: Callable[[], Choices]) -> RowSource:
        """Returns the rows of a data set.

        Args:
          data: artefact A.
          choices: makes the choices of the scenarios that are asked for, where they are needed.
        """
        ...

    def init(self, data: PreparedData, key: jax.Array) -> Any:
        """Returns a randomly initialised model for a data set."""
        ...


def filled(batch: Batch, size: int) -> Batch:
    """Returns a batch of so many rows, the first one repeated: all batches are of one shape."""
    return {
        name: np.concatenate([rows, rows[:1].repeat(size - len(rows), 0)])
        for name, rows in batch.items()
    }
