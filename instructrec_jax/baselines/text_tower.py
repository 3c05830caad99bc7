"""Texts as vectors: a bag of hashed words and letter trigrams, and the loss of two towers.

Source of the trigrams: Huang et al., "Learning Deep Structured Semantic Models for Web Search using
Clickthrough Data" (CIKM 2013). The paper's baselines have a pretrained BERT-mini in this place,
which the project does not bring along.

Letters of the shapes: F features of a text, D emb; n rows of a batch.
"""

import functools
import zlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from instructrec_jax.instructions.leaks import words
from instructrec_jax.models.sharding import constrain, in_use
from instructrec_jax.models.t5 import Dropout, Kernel, einsum

NUM_BUCKETS = 1 << 14
MAX_FEATURES = 48  # of one text; its words come before their trigrams
_INITIAL_DEVIATION = 0.1
_EXCLUDED = -1e10


def text_features(texts: Iterable[str]) -> NDArray[np.int32]:
    """Returns the hashed words and letter trigrams of texts, int32 [n, F], 0 = padding.

    Example:
      "Red" has the features of "red", "#re", "red" as a trigram, and "ed#".
    """
    rows = [_features(text) for text in texts]
    found = np.zeros((len(rows), MAX_FEATURES), np.int32)
    for row, own in enumerate(rows):
        found[row, : len(own)] = own
    return found


@functools.lru_cache(maxsize=1 << 16)
def _features(text: str) -> tuple[int, ...]:
    spelt = words(text)
    trigrams = (f"#{word}#"[i : i + 3] for word in spelt for i in range(len(word)))
    named = [*(f"word {word}" for word in spelt), *(f"trigram {three}" for three in trigrams)]
    hashes = (1 + zlib.crc32(name.encode()) % (NUM_BUCKETS - 1) for name in named)
    return tuple(dict.fromkeys(hashes))[:MAX_FEATURES]


class TextEncoder(nnx.Module):
    """The sum of a text's features, over the root of their number, and a layer after it."""

    def __init__(self, emb_dim: int, key: Array) -> None:
        """Draws the parameters.

        Args:
          emb_dim: width of a feature and of a text.
          key: of the random start.
        """
        keys = jax.random.split(key)
        table = _INITIAL_DEVIATION * jax.random.normal(keys[0], (NUM_BUCKETS, emb_dim))
        self.features = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.dense = Kernel(keys[1], (emb_dim, emb_dim), ("embed", "kv"), stddev=emb_dim**-0.5)

    def __call__(self, features: Array, dropout: Dropout | None = None) -> Array:
        """Maps int32 [..., F] to float32 [..., D]; a text without features is 0.

        Args:
          features: of the texts.
          dropout: of whole features, so that no rare word names a text on its own; None: of none.
        """
        table = in_use(self.features, jnp.float32)
        is_there = features > 0
        if dropout is not None:
            is_there = dropout(is_there.astype(jnp.float32)) > 0
        total = jnp.sum(jnp.where(is_there[..., None], table[features], 0.0), axis=-2)
        number = jnp.maximum(jnp.sum(is_there, axis=-1, keepdims=True), 1)
        mean = constrain(total * jax.lax.rsqrt(number.astype(jnp.float32)), "embed")
        return jnp.tanh(self.dense(mean))

    def one_by_one(self, features: Array) -> Array:
        """Maps int32 [n, c, F] to float32 [n, c, D], one of the c texts of each row at a time.

        The features of all at once would take c times the memory.
        """
        return jnp.moveaxis(jax.lax.map(self, jnp.moveaxis(features, 1, 0)), 0, 1)


def in_batch_nll(
    rows: Array, items: Array, *, is_excluded: Array, counts: Array | None = None
) -> Array:
    """Returns the negative log-likelihood of each row's item among those of the batch, [n].

    Args:
      rows: float32 [n, D].
      items: float32 [n, D], the item of each row.
      is_excluded: bool [n, n], the items that are no negatives of a row; its own always counts.
      counts: int32 [n], how often the item is chosen in training. A common item is a negative so
        much the more often, which its logarithm takes back (logQ correction: Yi et al.,
        "Sampling-Bias-Corrected Neural Modeling", RecSys 2019). None: all are as common.
    """
    logits = einsum("XD,YD->XY", rows, items)
    if counts is not None:
        logits = logits - jnp.log(jnp.maximum(counts, 1).astype(jnp.float32))
    own = jnp.diagonal(logits)
    is_negative = ~is_excluded & ~jnp.eye(len(rows), dtype=bool)
    others = jnp.where(is_negative, logits, _EXCLUDED)
    return jnp.logaddexp(own, jax.nn.logsumexp(others, axis=-1)) - own
