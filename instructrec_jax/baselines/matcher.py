"""The two-tower matcher that retrieves the hard negatives of the paper's Table 9.

Source: PAPER.md, 1.6. The user's tower adds an embedding of the user, the items before through a
transformer, and their titles; the item's tower adds an embedding and the title. Deviation: titles
go through hashed words and trigrams instead of BERT, those of a history as their mean.

Letters of the shapes: B users, L length, D emb, F features of a title.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from instructrec_jax.baselines.item_sequences import PADDING, ItemSequences, longest_history
from instructrec_jax.baselines.item_transformer import (
    ItemTransformer,
    TransformerSizes,
    mean_over,
)
from instructrec_jax.baselines.recommender import Batch, Choices
from instructrec_jax.baselines.text_tower import TextEncoder, in_batch_nll, text_features
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.models.sharding import constrain, in_use
from instructrec_jax.models.t5 import Dropout, Kernel
from instructrec_jax.records import CandidateList
from instructrec_jax.settings import Count, check_fields

_INITIAL_DEVIATION = 0.02
_ROWS = 128  # the table of users has a multiple of so many rows, which devices may share


class MatcherRows(ItemSequences):
    """Histories with their users and titles."""

    def __init__(self, data: PreparedData, *, length: int) -> None:
        super().__init__(data, training_length=length + 1, scored_length=length)
        self.titles = np.concatenate(  # by item token: padding has no title
            [text_features([""]), text_features(item.title for item in data.items)]
        )
        numbers = [super().training_batch(np.arange(self.num_rows))["tokens"]]
        self._counts = np.bincount(
            np.concatenate(numbers)[:, 1:].ravel(), minlength=len(self.titles)
        ).astype(np.int32)

    def training_batch(self, rows: NDArray[np.integer]) -> Batch:
        """Returns `tokens` [n, length + 1], `users` [n], `title_features` [n, length + 1, F] and
        `counts` [n, length + 1], how often each item is to be predicted; all int32."""
        tokens = super().training_batch(rows)["tokens"]
        return {
            "tokens": tokens,
            "users": self.users[rows].astype(np.int32),
            "title_features": self.titles[tokens],
            "counts": self._counts[tokens],
        }

    def scoring_batch(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None = None,
    ) -> Batch:
        """Returns what `ItemSequences` does, and `users` [n], `title_features` [n, length, F] and
        `candidate_features` [n, c, F], all int32."""
        batch = super().scoring_batch(examples, candidate_ids)
        return {
            **batch,
            "users": self.users_of(examples).astype(np.int32),
            "title_features": self.titles[batch["tokens"]],
            "candidate_features": self.titles[batch["candidate_tokens"]],
        }

    def request_batch(self, history: Sequence[int], user_id: str | None) -> Batch:
        """Returns what `last_user_vectors` reads of one user, whom the data need not know.

        Args:
          history: item ids, oldest first, at least one.
          user_id: as in the data; who is not there, or None, has no embedding.
        """
        recent = [item + 1 for item in history[-self._scored_length :]]
        tokens = np.array([[PADDING] * (self._scored_length - len(recent)) + recent], np.int32)
        user = -1 if user_id is None else self._rows.get(user_id, -1)
        return {
            "tokens": tokens,
            "users": np.array([user], np.int32),
            "title_features": self.titles[tokens],
        }


class MatcherModel(nnx.Module):
    """The two towers; the logit of a user and an item is the product of their vectors."""

    def __init__(
        self, sizes: TransformerSizes, key: Array, *, num_users: int, num_items: int, length: int
    ) -> None:
        keys = jax.random.split(key, 4)
        self.dropout_rate = sizes.dropout_rate
        self.body = ItemTransformer(sizes, keys[0], num_items=num_items, length=length)
        rows = -(-num_users // _ROWS) * _ROWS
        table = _INITIAL_DEVIATION * jax.random.normal(keys[1], (rows, sizes.emb_dim))
        self.users = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.title = TextEncoder(sizes.emb_dim, keys[2])
        shape, deviation = (sizes.emb_dim, sizes.emb_dim), sizes.emb_dim**-0.5
        self.titles_before = Kernel(keys[3], shape, ("embed", "kv"), stddev=deviation)

    def user_vectors(
        self,
        tokens: Array,
        users: Array,
        titles: Array,
        *,
        dropout_key: Array | None = None,
    ) -> Array:
        """Returns a vector of each user after each item, float32 [B, L, D].

        Args:
          tokens: int32 [B, L], 0 = padding.
          users: int32 [B]; -1 is somebody who was not trained on, and has no embedding.
          titles: float32 [B, L, D], of the items.
          dropout_key: a key in training, None otherwise.
        """
        keys = jax.random.split(jax.random.key(0) if dropout_key is None else dropout_key, 2)
        dropout = Dropout(self.dropout_rate, None if dropout_key is None else keys[0])
        hidden = self.body(
            tokens, is_causal=True, dropout_key=None if dropout_key is None else keys[1]
        )
        is_item = (tokens > 0)[..., None]
        number = jnp.maximum(jnp.cumsum(is_item, axis=1), 1)
        mean = jnp.cumsum(jnp.where(is_item, titles, 0.0), axis=1) / number
        own = constrain(in_use(self.users, jnp.float32)[users], "embed")
        own = jnp.where(users[:, None] >= 0, own, 0.0)
        return hidden + self.titles_before(dropout(mean)) + dropout(own)[:, None]

    def item_vectors(self, tokens: Array, titles: Array) -> Array:
        """Maps tokens int32 [...] and their titles' vectors [..., D] to float32 [..., D]."""
        return self.body.embedded(tokens) + titles

    def last_user_vectors(self, batch: dict[str, Array]) -> Array:
        """Returns float32 [B, D] after the last item, of a `scoring_batch` of `MatcherRows`."""
        titles = self.title.one_by_one(batch["title_features"])
        return self.user_vectors(batch["tokens"], batch["users"], titles)[:, -1]

    def candidate_scores(self, batch: dict[str, Array]) -> Array:
        """Returns float32 [B, c], of a `scoring_batch` of `MatcherRows`."""
        titles = self.title.one_by_one(batch["candidate_features"])
        items = self.item_vectors(batch["candidate_tokens"], titles)
        return jnp.sum(self.last_user_vectors(batch)[:, None] * items, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matcher:
    """The system as gin configures it.

    Attributes:
      sizes: of the transformer.
      num_retrieved: items of each user's list that `baseline matcher` writes.
    """

    sizes: TransformerSizes = dataclasses.field(default_factory=TransformerSizes)
    num_retrieved: Count = 100

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self, data: PreparedData, choices: Callable[[], Choices] | None = None) -> MatcherRows:
        """Returns the rows to train on and to score; queries are not read."""
        return MatcherRows(data, length=self._length(data))

    def init(self, data: PreparedData, key: Array) -> MatcherModel:
        """Returns a randomly initialised model."""
        return MatcherModel(
            self.sizes,
            key,
            num_users=len(data.histories),
            num_items=len(data.items),
            length=self._length(data),
        )

    def _length(self, data: PreparedData) -> int:
        return min(self.sizes.max_length, longest_history(data))


@dataclasses.dataclass(frozen=True, kw_only=True)
class InBatchLoss:
    """Cross-entropy of each next item among those of the batch, with logQ correction.

    The other items of a user's own row are no negatives: they were chosen too.
    """

    def __call__(
        self, model: MatcherModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `MatcherRows`, float32 scalars."""
        tokens, titles = batch["tokens"], model.title(batch["title_features"])
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        users = model.user_vectors(inputs, batch["users"], titles[:, :-1], dropout_key=key)
        items = model.item_vectors(targets, titles[:, 1:])
        width, flat = users.shape[-1], targets.reshape(-1)
        rows = jnp.repeat(jnp.arange(len(tokens)), targets.shape[1])
        is_excluded = (flat[:, None] == flat) | (rows[:, None] == rows) | (flat == 0)
        nll = in_batch_nll(
            users.reshape(-1, width),
            items.reshape(-1, width),
            is_excluded=is_excluded,
            counts=batch["counts"][:, 1:].reshape(-1),
        )
        return mean_over(nll, (inputs > 0).reshape(-1)), {}
