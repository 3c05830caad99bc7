"""A start for models without pretraining: they rank as the co-occurrence baseline does.

Not in the paper, whose model is pretrained. Attention begins as plain averaging and everything
else as silence, so that an untrained model scores a title by its likeness to the titles and the
words of the query in the instruction, and by how often training histories have it. Training
refines that.

Two directions of the stream are kept apart. BEGIN is what words that are no titles share, the
decoder's first token among them: where an answer begins, it stands for nothing but popularity. END
is in the tokens that end a title: after one, EOS follows.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import initializers
from numpy.typing import NDArray

from instructrec_jax.baselines.cooccurrence import cooccurrence_embeddings
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TRAIN
from instructrec_jax.models.t5 import T5, Attention
from instructrec_jax.pipeline.record_store import column_batches
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.tokenizer import EOS_ID

logger = logging.getLogger(__name__)
Tokens = NDArray[np.int32]

# Few directions: more of them remember which titles stood together in training histories, which
# all seem right in training (rank 62 of 64: HR@1 .524 on MovieLens' validation after as many steps
# as give .559 with 20).
_RANK_SHARE = 4  # of the width, as its inverse
_OTHERS = 2  # directions: BEGIN and END
_KNOWN = 0.2  # of a title's typical vector: words with less are mixed with BEGIN
_END_SHARE = 0.5  # of a title's embedding, that is END
_NOISE = 0.02  # of the random start that words keep, to be told apart
# Weights of the logits. In an instruction of which a fifth of the tokens are titles they give
# about the baseline's scores, likeness x 10 + log(1 + count); EOS is likelier than any title after
# the end of one, and less likely anywhere else.
_LIKENESS, _POPULARITY, _IS_TITLE, _EOS = 15.0, 0.13, 6.0, 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """What training records say, in tokens.

    Attributes:
      titles: of each user, those of all training items, oldest first.
      queries: (title, specific intention) of each record that has one.
    """

    titles: list[list[Tokens]]
    queries: list[tuple[Tokens, Tokens]]


def warm(model: T5, dataset: str, *, seed: int) -> T5:
    """Returns the model with a start that the training histories and queries suggest.

    Args:
      model: the model; its arrays keep their shardings.
      dataset: name of a dataset in the data_dir in use.
      seed: of what is drawn.
    """
    texts = _of_whole_titles(training_texts(dataset))
    flat = [title for of_user in texts.titles for title in of_user]
    size, width = model.config.vocab_size, model.config.emb_dim
    logger.info(
        "token embeddings start from co-occurrence in %d histories and %d queries",
        len(texts.titles),
        len(texts.queries),
    )
    sequences = [np.concatenate(of_user) for of_user in texts.titles if of_user]
    sequences += [np.concatenate(pair) for pair in texts.queries]
    rank = max(width // _RANK_SHARE, 1)
    vectors = cooccurrence_embeddings(sequences, size, rank, seed)
    counts = np.bincount(np.concatenate([*flat, []]).astype(np.int64), minlength=size)
    ends = np.bincount([title[-1] for title in flat], minlength=size)
    return with_averaging_attention(with_tokens(model, vectors, counts, ends), seed=seed)


def training_texts(dataset: str) -> TrainingTexts:
    """Returns the titles and queries of the training records.

    Of a user's training records the last one holds all titles: its history and its target.

    Args:
      dataset: name of a dataset in the data_dir in use.
    """
    titles: dict[bytes, list[bytes]] = {}
    last: dict[bytes, int] = {}
    queries: list[tuple[bytes, bytes]] = []
    fields = ("user_id", "position", "history", "target", "specific_intention")
    for columns in column_batches(dataset, LEAVE_ONE_OUT, TRAIN, fields):
        rows = zip(*(columns[name] for name in fields), strict=True)
        for user, position, history, target, query in rows:
            if position > last.get(user, -1):
                last[user], titles[user] = position, [*history, target]
            if query:
                queries.append((target, query))
    distinct = {*(t for of_user in titles.values() for t in of_user), *(q for _, q in queries)}
    distinct |= {title for title, _ in queries}
    encode = CorpusVocabulary().encode
    tokens = {text: np.array(encode(text.decode()), np.int32) for text in distinct}
    return TrainingTexts(
        titles=[[tokens[title] for title in of_user] for of_user in titles.values()],
        queries=[(tokens[title], tokens[query]) for title, query in queries],
    )


def _of_whole_titles(texts: TrainingTexts) -> TrainingTexts:
    """Returns the texts on titles of one token, if most are: pieces of the others mean little."""
    whole = [[title for title in of_user if len(title) == 1] for of_user in texts.titles]
    if 2 * sum(map(len, whole)) <= sum(map(len, texts.titles)):
        return texts
    queries = [(title, query) for title, query in texts.queries if len(title) == 1]
    return TrainingTexts(titles=whole, queries=queries)


def with_tokens(
    model: T5, vectors: NDArray[np.float32], counts: NDArray[np.int64], ends: NDArray[np.int64]
) -> T5:
    """Returns the model with token embeddings and logit weights made of these vectors.

    Args:
      model: the model; its arrays keep their shardings.
      vectors: float32 [vocab_size, rank], zero for tokens of which nothing is known.
      counts: [vocab_size] how often training histories have the token in a title.
      ends: [vocab_size] how often it ends one.
    """
    width = model.config.emb_dim
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    is_title = (counts > 0)[:, None] & (norms > 0)
    typical = np.median(norms[is_title]) if is_title.any() else 1.0
    known = np.where(is_title, 1.0, np.minimum(norms / (_KNOWN * typical), 1.0))
    direction = vectors / np.maximum(norms, 1e-9) * known
    direction = np.pad(direction, ((0, 0), (0, max(width - _OTHERS - vectors.shape[1], 0))))
    end = _END_SHARE * (ends / np.maximum(counts, 1))[:, None]
    embedding, kernel = model.token_embedder.embedding, model.logits_dense.kernel
    # Rows of norm sqrt(width) have the unit variance of the random start.
    rows = width**0.5 * np.hstack(
        [direction * np.sqrt(1 - end**2), np.sqrt(1 - known**2), end * is_title]
    )
    rows += np.where(is_title, 0.0, _NOISE) * np.asarray(embedding[...])
    popularity = _IS_TITLE + _POPULARITY * np.log1p(counts)[:, None]
    columns = np.hstack([_LIKENESS * direction, popularity, np.full_like(end, -_EOS)])
    columns = np.where(is_title, columns, _NOISE * np.asarray(kernel[...]).T)
    columns[EOS_ID] = 0.0
    columns[EOS_ID, -1] = _EOS
    embedding[...] = _as(embedding[...], rows)
    kernel[...] = _as(kernel[...], columns.T)
    return model


def with_averaging_attention(model: T5, *, seed: int) -> T5:
    """Returns the model with attention that begins as plain averaging, and nothing beside it.

    Where the output kernel is the transpose of an orthogonal value kernel, a layer adds the
    average of what it attends to, instead of a random rotation of it.

    Args:
      model: the model; its arrays keep their shardings.
      seed: of the orthogonal kernels.
    """
    encoder, decoder = model.encoder.layers, model.decoder.layers
    cross = decoder.encoder_decoder_attention
    _average(cross, jax.random.key(seed))
    # Zero outputs learn, since their gradient is not zero; with queries of zero all keys are equal.
    for quiet in (
        encoder.attention.out,
        encoder.mlp.wo,
        decoder.self_attention.out,
        decoder.mlp.wo,
        cross.query,
    ):
        quiet.kernel[...] = jnp.zeros_like(quiet.kernel[...])
    return model


def _average(attention: Attention, key: Array) -> None:
    """Makes the output kernel of every stacked layer undo its value kernel."""
    value, out = attention.value.kernel, attention.out.kernel
    layers, width, heads, head_dim = value.shape
    orthogonal = jax.vmap(lambda k: initializers.orthogonal()(k, (width, heads * head_dim)))
    kernels = orthogonal(jax.random.split(key, layers))
    undoing = kernels.transpose(0, 2, 1).reshape(out.shape)
    value[...] = _as(value[...], kernels.reshape(value.shape))
    out[...] = _as(out[...], undoing)


def _as(old: Array, new: NDArray[np.floating] | Array) -> Array:
    """Returns a new value of a parameter, in its dtype and sharding."""
    return jax.device_put(jnp.asarray(new, old.dtype), old.sharding)
