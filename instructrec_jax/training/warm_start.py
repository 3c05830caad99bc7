"""A start for models without pretraining: what goes together is known, and attention passes it on.

Not in the paper, whose model is pretrained. Together the two parts make the untrained model score
a candidate by the likeness of its tokens to the instruction's, which training then refines.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from instructrec_jax.models.t5 import T5, Attention


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


def with_averaging_attention(model: T5, *, seed: int) -> T5:
    """Returns the model with attention to the instruction that begins as plain averaging.

    Where the output kernel is the transpose of an orthogonal value kernel, a layer adds the
    average of what it attends to, instead of a random rotation of it.

    Args:
      model: the model; its arrays keep their shardings.
      seed: of the orthogonal kernels.
    """
    keys = jax.random.split(jax.random.key(seed))
    _average(model.encoder.layers.attention, keys[0])
    _average(model.decoder.layers.encoder_decoder_attention, keys[1])
    return model


def _average(attention: Attention, key: jax.Array) -> None:
    """Makes the output kernel of every stacked layer undo its value kernel."""
    value, out = attention.value.kernel, attention.out.kernel
    layers, width, heads, head_dim = value.shape
    orthogonal = jax.vmap(lambda k: initializers.orthogonal()(k, (width, heads * head_dim)))
    kernels = orthogonal(jax.random.split(key, layers))
    undoing = kernels.transpose(0, 2, 1).reshape(out.shape)
    value[...] = jax.device_put(kernels.reshape(value.shape), value[...].sharding)
    out[...] = jax.device_put(undoing, out[...].sharding)
