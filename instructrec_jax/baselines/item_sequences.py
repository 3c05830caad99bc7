"""What a sequential recommender reads: histories as rows of item tokens, without any text.

The token of an item is its id + 1; 0 is padding. Rows are filled up on the left, so that the last
column holds the most recent item.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.popularity import NUM_HELD_OUT
from instructrec_jax.baselines.recommender import Batch
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.records import CandidateList

PADDING = 0


class ItemSequences:
    """The histories of a data set, for training and for scoring.

    Attributes:
      num_items: size of the catalogue; the tokens of items are 1 .. num_items.
      users: [num_rows] indices of the users that are trained on.
      num_rows: users with at least two training items, whose sequences are trained on.
    """

    def __init__(self, data: PreparedData, *, training_length: int, scored_length: int) -> None:
        """Takes the histories.

        Args:
          data: artefact A.
          training_length: most recent training items of a user that a row holds.
          scored_length: most recent items before the target that a row holds.
        """
        histories = data.histories
        self.num_items = len(data.items)
        self._training_length, self._scored_length = training_length, scored_length
        self._tokens = histories.item_ids.astype(np.int32) + 1
        self._starts = histories.starts
        self._rows = {user: row for row, user in enumerate(histories.user_ids.to_pylist())}
        training_ends = self._starts[1:] - NUM_HELD_OUT
        self.users = np.flatnonzero(training_ends - self._starts[:-1] >= 2)
        self.num_rows = len(self.users)

    def training_batch(self, rows: NDArray[np.integer]) -> Batch:
        """Returns the training part of some users' histories.

        Args:
          rows: [n] numbers from 0, below `num_rows`.

        Returns:
          `tokens` int32 [n, training_length].
        """
        users = self.users[rows]
        ends = self._starts[users + 1] - NUM_HELD_OUT
        return {"tokens": self._last(users, ends, self._training_length)}

    def scoring_batch(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None = None,
    ) -> Batch:
        """Returns the history of each example, and its candidates.

        Args:
          examples: n of them, of the leave-one-out protocol.
          candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
          queries: what the users ask for, which is not read.

        Returns:
          `tokens` int32 [n, scored_length] and `candidate_tokens` int32 [n, c].

        Raises:
          UserError: for product search, which has no history.
        """
        if any(example.position < 0 for example in examples):
            raise UserError("this system ranks by histories, which product search lacks")
        users = self.users_of(examples)
        positions = np.array([example.position for example in examples], np.int64)
        tokens = self.before(users, positions)
        return {"tokens": tokens, "candidate_tokens": candidate_ids + 1}

    def users_of(self, examples: Sequence[CandidateList]) -> NDArray[np.int64]:
        """Returns the index of each example's user, [n]; 0 where it has none."""
        return np.array([self._rows.get(example.user_id, 0) for example in examples], np.int64)

    def before(
        self, users: NDArray[np.integer], positions: NDArray[np.integer]
    ) -> NDArray[np.int32]:
        """Returns the items before positions of users' histories, int32 [n, scored_length].

        Args:
          users: [n] indices of histories.
          positions: [n] in them; at -1 there is nothing before.
        """
        return self._last(users, self._starts[users] + positions, self._scored_length)

    def _last(
        self, users: NDArray[np.integer], ends: NDArray[np.integer], length: int
    ) -> NDArray[np.int32]:
        """Returns [n, length] the last tokens of users before where their rows end."""
        places = ends[:, None] + np.arange(-length, 0)
        is_own = places >= self._starts[users][:, None]
        return np.where(is_own, self._tokens[np.maximum(places, 0)], PADDING)


def longest_history(data: PreparedData) -> int:
    """Returns the most items of a user, the held-out ones among them."""
    return int(np.diff(data.histories.starts).max(initial=0))
