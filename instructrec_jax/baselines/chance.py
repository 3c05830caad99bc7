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

    def __init__(self, data: PreparedData, *, seed: int) -> None:
        del data  # every baseline is made alike
        self._seed = seed

    def score(
        self, examples: Sequence[CandidateList], candidate_ids: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """Returns [n, c] float32, higher is better; see `score_randomly`."""
        names = [example.example_id for example in examples]
        return score_randomly(names, candidate_ids, seed=self._seed)


def score_randomly(
    example_ids: Sequence[str], candidate_ids: NDArray[np.int32], *, seed: int
) -> NDArray[np.float32]:
    """Returns uniform random scores.

    Args:
      example_ids: [n] ids of the examples.
      candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
      seed: seed of the draws.

    Returns:
      [n, c] float32, higher is better, -inf at padding.
    """
    num_candidates = candidate_ids.shape[1]
    rows = [
        np.random.default_rng(seeds.stable_seed(seed, "random baseline", name)).random(
            num_candidates
        )
        for name in example_ids
    ]
    scores = np.asarray(rows, dtype=np.float32).reshape(candidate_ids.shape)
    return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)
