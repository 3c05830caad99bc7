"""TEM: attention over what is asked for and what the user has had, for personalised search.

Source: Bi, Ai and Croft, "A Transformer-based Embedding Model for Personalized Product Search"
(SIGIR 2020). The query is the last place of the sequence, and what is read there is compared with
items. Deviations: an item is an embedding of its own and its title's, where the paper has one that
predicts the item's words; negatives are the other items of the batch.
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

from instructrec_jax.baselines.item_sequences import ItemSequences, longest_history
from instructrec_jax.baselines.item_transformer import ItemTransformer, TransformerSizes
from instructrec_jax.baselines.recommender import Batch, Choices
from instructrec_jax.baselines.text_tower import TextEncoder, in_batch_nll, text_features
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.records import CandidateList


class TemRows:
    """A query, the items that its user had before, and what was chosen."""

    def __init__(self, data: PreparedData, choices: Choices, *, length: int) -> None:
        self.num_rows = len(choices.item_ids)
        self._histories = ItemSequences(data, training_length=length, scored_length=length)
        self._titles = np.concatenate(  # by item token: padding has no title
            [text_features([""]), text_features(item.title for item in data.items)]
        )
        self._users = np.maximum(choices.history_rows, 0)
        self._positions, self._tokens = choices.positions, choices.item_ids + 1
        self._counts = np.bincount(self._tokens, minlength=len(self._titles)).astype(np.int32)
        self._queries = text_features(choices.queries)

    def training_batch(self, rows: NDArray[np.integer]) -> Batch:
        """Returns `tokens` [n, length] before the choice, `query_features` [n, F], and of what was
        chosen `targets` [n], `title_features` [n, F] and `counts` [n], how often all choose it.

        Args:
          rows: [n] numbers from 0, below `num_rows`.
        """
        targets = self._tokens[rows]
        return {
            "tokens": self._histories.before(self._users[rows], self._positions[rows]),
            "query_features": self._queries[rows],
            "targets": targets,
            "title_features": self._titles[targets],
            "counts": self._counts[targets],
        }

    def scoring_batch(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None,
    ) -> Batch:
        """Returns `tokens` [n, length], `query_features` [n, F], `candidate_tokens` [n, c] and
        `candidate_features` [n, c, F], all int32."""
        positions = np.array([example.position for example in examples], np.int64)
        asked = [""] * len(examples) if queries is None else queries
        return {
            "tokens": self._histories.before(self._histories.users_of(examples), positions),
            "query_features": text_features(asked),
            "candidate_tokens": candidate_ids + 1,
            "candidate_features": self._titles[candidate_ids + 1],
        }


class TemModel(nnx.Module):
    """Maps a history and a query to what is chosen."""

    def __init__(self, sizes: TransformerSizes, key: Array, *, num_items: int, length: int) -> None:
        keys = jax.random.split(key, 3)
        self.body = ItemTransformer(sizes, keys[0], num_items=num_items, length=length + 1)
        self.query = TextEncoder(sizes.emb_dim, keys[1])
        self.title = TextEncoder(sizes.emb_dim, keys[2])

    def read(self, batch: dict[str, Array], dropout_key: Array | None = None) -> Array:
        """Returns what is read at the query, float32 [n, D]."""
        tokens, query = batch["tokens"], self.query(batch["query_features"])
        embedded = jnp.concatenate([self.body.embedded(tokens), query[:, None]], axis=1)
        is_there = jnp.pad(tokens > 0, ((0, 0), (0, 1)), constant_values=True)
        hidden = self.body.read(embedded, is_there, is_causal=False, dropout_key=dropout_key)
        return hidden[:, -1]

    def items(self, tokens: Array, title_vectors: Array) -> Array:
        """Maps tokens int32 [...] and their titles' vectors [..., D] to float32 [..., D]."""
        return self.body.embedded(tokens) + title_vectors

    def candidate_scores(self, batch: dict[str, Array]) -> Array:
        """Returns float32 [n, c], of a `scoring_batch` of `TemRows`."""
        titles = self.title.one_by_one(batch["candidate_features"])
        items = self.items(batch["candidate_tokens"], titles)
        return jnp.sum(self.read(batch)[:, None] * items, axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tem:
    """The system as gin configures it.

    Attributes:
      sizes: of the transformer; the query takes a place beside `max_length` items.
    """

    sizes: TransformerSizes = dataclasses.field(default_factory=TransformerSizes)

    def open(self, data: PreparedData, choices: Callable[[], Choices]) -> TemRows:
        """Returns the choices to learn from, and what is scored."""
        return TemRows(data, choices(), length=self._length(data))

    def init(self, data: PreparedData, key: Array) -> TemModel:
        """Returns a randomly initialised model."""
        return TemModel(self.sizes, key, num_items=len(data.items), length=self._length(data))

    def _length(self, data: PreparedData) -> int:
        return min(self.sizes.max_length, longest_history(data))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceLoss:
    """Cross-entropy of what was chosen among the choices of the batch."""

    def __call__(
        self, model: TemModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `TemRows`, float32 scalars."""
        targets = batch["targets"]
        items = model.items(targets, model.title(batch["title_features"]))
        is_same = targets[:, None] == targets
        hidden = model.read(batch, key)
        nll = in_batch_nll(hidden, items, is_excluded=is_same, counts=batch["counts"])
        return jnp.mean(nll), {}
