"""A start for models without pretraining: token embeddings that already know what goes together."""

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.models.t5 import T5


def with_token_embeddings(model: T5, vectors: np.ndarray) -> T5:
    """Returns the model with these vectors as token embeddings and, scaled, as logit weights.

    Logits then begin as likeness between what was read and what is to be said.

    Args:
      model: the model; its arrays keep their shardings.
      vectors: float32 [vocab_size, emb_dim], rows of norm 1 on average; zero rows keep their
        random start.
    """
    known = np.linalg.norm(vectors, axis=1, keepdims=True) > 0
    width = vectors.shape[1]

    def replace(old: jax.Array, new: np.ndarray, kept: np.ndarray) -> jax.Array:
        return jax.device_put(jnp.where(kept, new, old), old.sharding)

    embedding = model.token_embedder.embedding
    kernel = model.logits_dense.kernel
    # Rows of norm sqrt(width) have the unit variance of the random start; the logit weights'
    # random start has variance 1 / width.
    embedding[...] = replace(embedding[...], vectors * width**0.5, known)
    kernel[...] = replace(kernel[...], vectors.T, known.T)
    return model
