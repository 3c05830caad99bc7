"""A start for models without pretraining: what goes together is known, and attention passes it on.

Not in the paper, whose model is pretrained. Together the two parts make the untrained model score
a candidate by the likeness of its tokens to the instruction's, which training then refines.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from instructrec_jax.baselines.cooccurrence import cooccurrence_embeddings
from instructrec_jax.models.t5 import T5, Attention
from instructrec_jax.pipeline.record_store import column_batches
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary

logger = logging.getLogger(__name__)


def warm(model: T5, dataset: str, *, seed: int) -> T5:
    """Returns the model with a start that the training histories suggest.

    Args:
      model: the model; its arrays keep their shardings.
      dataset: name of a dataset in the data_dir in use.
      seed: of what is drawn.
    """
    sequences = training_token_sequences(dataset)
    config = model.config
    vectors = cooccurrence_embeddings(sequences, config.vocab_size, config.emb_dim, seed)
    logger.info("token embeddings start from co-occurrence in %d histories", len(sequences))
    return with_averaging_attention(with_token_embeddings(model, vectors), seed=seed)


def training_token_sequences(dataset: str) -> list[np.ndarray]:
    """Returns the tokens of each user's training titles, one int32 array per user.

    Of a user's training records the last one holds all titles: its history and its target.

    Args:
      dataset: name of a dataset in the data_dir in use.
    """
    titles: dict[bytes, list[bytes]] = {}
    last: dict[bytes, int] = {}
    fields = ("user_id", "position", "history", "target")
    for columns in column_batches(dataset, "leave_one_out", "train", fields):
        for user, position, history, target in zip(*(columns[f] for f in fields), strict=True):
            if position > last.get(user, -1):
                last[user], titles[user] = position, [*history, target]
    encode = CorpusVocabulary().encode
    return [
        np.array([token for title in of_user for token in encode(title.decode())], np.int32)
        for of_user in titles.values()
    ]


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
