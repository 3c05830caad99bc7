"""Scores of candidates by a trained model, on the devices of a mesh."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.recommender import RowSource, filled
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import num_batch_shares, place_batch
from instructrec_jax.records import CandidateList

_SCORED_ROWS = 1024  # examples scored at a time


class CandidateScorer:
    """Scores candidates with a model on the devices of a mesh."""

    def __init__(self, mesh: LogicalMesh, rows: RowSource) -> None:
        self._mesh, self._rows = mesh, rows
        shares = num_batch_shares(mesh)
        self._size = -(-_SCORED_ROWS // shares) * shares

        def scores(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
            with constrained_by(mesh.constraints):
                return model.candidate_scores(batch)

        self._scores = jax.jit(scores, out_shardings=mesh.sharding())

    def __call__(
        self,
        model: Any,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None = None,
    ) -> NDArray[np.float32]:
        """Returns float32 [n, c], -inf at padding.

        Args:
          model: with a method `candidate_scores`.
          examples: n of them.
          candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
          queries: [n] what the users ask for; None where they ask for nothing.
        """
        found = [np.zeros((0, candidate_ids.shape[1]), np.float32)]
        for begin in range(0, len(examples), self._size):
            end = min(begin + self._size, len(examples))
            asked = None if queries is None else queries[begin:end]
            batch = self._rows.scoring_batch(examples[begin:end], candidate_ids[begin:end], asked)
            placed = place_batch(filled(batch, self._size), self._mesh)
            found.append(np.asarray(self._scores(model, placed))[: end - begin])
        scores = np.concatenate(found)
        return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)
