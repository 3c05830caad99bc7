"""The random scorer: what any number must beat first."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax import seeds
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import CandidateList


class Chance:
    """Uniform random scores; an example's scores depend only on its id and the seed."""

    name = "random"

    def __init__(self, data: PreparedData | None = None, *, seed: int) -> None:
        del data  # every baseline is made alike
        self._seed = seed

    def score(
        self, examples: Sequence[CandidateList], candidate_ids: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Returns [n, c] float32, higher is better, -inf at padding.

        Args:
          examples: n of them.
          candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
        """
        scores = np.empty(candidate_ids.shape, dtype=np.float32)
        for row, example in enumerate(examples):
            seed = seeds.stable_seed(self._seed, "random baseline", example.example_id)
            scores[row] = np.random.default_rng(seed).random(candidate_ids.shape[1])
        return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)
