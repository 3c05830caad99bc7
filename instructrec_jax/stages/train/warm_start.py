"""A start for models without pretraining: what goes together is known, attention passes it on.

Not in the paper, whose model is pretrained. Attention begins as plain averaging and everything
else as silence, so that an untrained model scores a candidate by the likeness of its tokens to the
instruction's. Where titles are one token each (`build --title_pieces`) it ranks as the
co-occurrence baseline does, by likeness to the titles and the words of the query in the
instruction, and by popularity. Training refines that.
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

# Where titles are one token each. Few directions: with more, what stood together in training
# histories is remembered, all of which seems right in training (MovieLens, validation, A1, after
# equally many steps: HR@1 .524 with 62 directions of 64, .559 with 20). Ten times as many items
# take more (Games, validation, A1, before the first step: .659 with 24 directions, .676 with 64).
_RANK_SHARE = 4  # of the width, as its inverse
# Two directions of the stream are kept apart. BEGIN is what tokens that are no titles share, the
# decoder's first among them: where an answer begins, it stands for popularity. END is in titles:
# after one, EOS follows.
_OTHERS = 2
_KNOWN = 0.2  # of a title's typical vector: words with less are mixed with BEGIN
_END = 0.5  # part of a title's embedding that is END
_NOISE = 0.02  # of the random start that words keep, to be told apart
# Weights of the logits. In an instruction of which a fifth of the tokens are titles they give
# about the baseline's scores, likeness x 10 + log(1 + count); EOS is likelier than any title after
# the end of one, and less likely anywhere else.
_LIKENESS, _POPULARITY, _TITLE, _EOS = 15.0, 0.13, 6.0, 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """What training records say, in tokens.

    Attributes:
      titles: of each user, those of all training items, oldest first.
      queries: (title, specific intention) of each record that has one.
    """

    titles: list[list[Tokens]]
    queries: list[tuple[Tokens, Tokens]]


def warm(model: T5, dataset: str, *, seed: int, rank: int | None = None) -> T5:
    """Returns the model with a start that the training histories and queries suggest.

    Args:
      model: the model; its arrays keep their shardings.
      dataset: name of a dataset in the data_dir in use.
      seed: of what is drawn.
      rank: directions in which titles of one token are told apart, at most two fewer than the
        width; None: a quarter of the width.
    """
    texts, config = training_texts(dataset), model.config
    model = with_averaging_attention(model, seed=seed)
    whole = [[title for title in of_user if len(title) == 1] for of_user in texts.titles]
    if 2 * sum(map(len, whole)) <= sum(map(len, texts.titles)):
        sequences = [np.concatenate(of_user) for of_user in texts.titles]
        logger.info("token embeddings start from co-occurrence in %d histories", len(sequences))
        vectors = cooccurrence_embeddings(sequences, config.vocab_size, config.emb_dim, seed)
        return with_token_embeddings(model, vectors)
    # The pieces of the few other titles mean little.
    queries = [pair for pair in texts.queries if len(pair[0]) == 1]
    logger.info(
        "titles, %d of them whole tokens, and words start from co-occurrence in %d histories and "
        "%d queries",
        len({int(title[0]) for of_user in whole for title in of_user}),
        len(whole),
        len(queries),
    )
    sequences = [np.concatenate(together) for together in (*filter(None, whole), *queries)]
    rank = max(1, min(rank or config.emb_dim // _RANK_SHARE, config.emb_dim - _OTHERS))
    vectors = cooccurrence_embeddings(sequences, config.vocab_size, rank, seed)
    titles = np.concatenate([title for of_user in whole for title in of_user])
    return with_whole_titles(model, vectors, np.bincount(titles, minlength=config.vocab_size))


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
    distinct = {title for of_user in titles.values() for title in of_user}
    distinct.update(*queries)
    encode = CorpusVocabulary().encode
    tokens = {text: np.array(encode(text.decode()), np.int32) for text in distinct}
    return TrainingTexts(
        titles=[[tokens[title] for title in of_user] for of_user in titles.values()],
        queries=[(tokens[title], tokens[query]) for title, query in queries],
    )


def with_token_embeddings(model: T5, vectors: NDArray[np.float32]) -> T5:
    """Returns the model with these vectors as token embeddings and, scaled, as logit weights.

    Logits then begin as likeness between what was read and what is to be said.

    Args:
      model: the model; its arrays keep their shardings.
      vectors: float32 [vocab_size, emb_dim], rows of norm 1 on average; zero rows keep their
        random start.
    """
    known = np.linalg.norm(vectors, axis=1, keepdims=True) > 0
    embedding, kernel = model.token_embedder.embedding, model.logits_dense.kernel
    # Rows of norm sqrt(width) have the unit variance of the random start; the logit weights'
    # random start has variance 1 / width.
    scaled = vectors * vectors.shape[1] ** 0.5
    embedding[...] = _as(embedding[...], jnp.where(known, scaled, embedding[...]))
    kernel[...] = _as(kernel[...], jnp.where(known.T, vectors.T, kernel[...]))
    return model


def with_whole_titles(model: T5, vectors: NDArray[np.float32], counts: NDArray[np.int64]) -> T5:
    """Returns the model with embeddings and logit weights of titles of one token each.

    Args:
      model: the model; its arrays keep their shardings.
      vectors: float32 [vocab_size, rank], of titles and of words; zero where nothing is known.
      counts: [vocab_size] how often training histories have a title; 0 for other tokens.
    """
    width = model.config.emb_dim
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    is_title = (counts > 0)[:, None]
    known = np.where(is_title, 1.0, np.minimum(norms / (_KNOWN * np.median(norms[is_title])), 1.0))
    direction = vectors / np.maximum(norms, 1e-9) * known
    direction = np.pad(direction, ((0, 0), (0, width - _OTHERS - vectors.shape[1])))
    begin, end = np.sqrt(1 - known**2), _END * is_title
    embedding, kernel = model.token_embedder.embedding, model.logits_dense.kernel
    # Rows of norm sqrt(width) have the unit variance of the random start.
    rows = width**0.5 * np.hstack([direction * np.sqrt(1 - end**2), begin, end])
    popularity = _TITLE + _POPULARITY * np.log1p(counts)[:, None]
    columns = np.hstack([_LIKENESS * direction, popularity, np.full_like(end, -_EOS)])
    columns[EOS_ID] = np.append(np.zeros(width - 1), _EOS)
    is_set = is_title | (np.arange(len(counts)) == EOS_ID)[:, None]
    random = np.where(is_title, 0.0, _NOISE) * embedding[...]
    embedding[...] = _as(embedding[...], rows + random)
    kernel[...] = _as(kernel[...], jnp.where(is_set.T, columns.T, _NOISE * kernel[...]))
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
    place = jax.jit(lambda new: jnp.asarray(new, old.dtype), out_shardings=old.sharding)
    return place(new)
