"""Log-likelihoods of candidates on a mesh, from numpy batches to numpy results."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructrec_jax.models.encoder_decoder import candidate_log_likelihood
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.sharding import batch_sharding, place_batch
from instructrec_jax.scoring.packing import pack_candidates

Scorer = Callable[[T5, Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
_INPUTS = ("encoder_input_tokens", "packed_tokens", "packed_candidates", "num_tokens")


def make_scorer(mesh: Mesh) -> Scorer:
    """Returns a function that scores ranking batches.

    Each instruction is encoded once and all its candidates are decoded against it. The function
    compiles once for each shape of batch that it is given.

    Args:
      mesh: the device mesh; the batch is split over it, the model lies as it was placed.

    Returns:
      A function of (model, ranking batch) that gives (log-likelihood float32 [B, C], natural log,
      sum over tokens including EOS, -inf where there is no candidate; number of tokens, int32
      [B, C]).
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    score = jax.jit(
        candidate_log_likelihood,
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=everywhere,
    )

    def run(model: T5, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        packed = pack_candidates(batch)
        placed = place_batch({name: packed[name] for name in _INPUTS}, mesh)
        return np.asarray(score(model, placed)), packed["num_tokens"]

    return run
