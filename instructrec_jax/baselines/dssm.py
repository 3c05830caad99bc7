"""DSSM: a tower for what is asked for, a tower for titles, and the cosine between them.

Source: Huang et al., "Learning Deep Structured Semantic Models for Web Search using Clickthrough
Data" (CIKM 2013); negatives are the other titles of the batch. It knows no users.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from instructrec_jax.baselines.item_transformer import LayerNorm, Width
from instructrec_jax.baselines.recommender import Batch, Choices
from instructrec_jax.baselines.text_tower import TextEncoder, in_batch_nll, text_features
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import Dropout, Kernel
from instructrec_jax.records import CandidateList
from instructrec_jax.settings import Positive, Range, check_fields


class DssmRows:
    """Pairs of a query and a title."""

    def __init__(self, data: PreparedData, choices: Choices) -> None:
        asked = [row for row, query in enumerate(choices.queries) if query]
        queries = [choices.queries[row] for row in asked]
        self.num_rows = len(asked)
        self._titles = text_features(item.title for item in data.items)
        self._item_ids = choices.item_ids[asked]
        self._queries = text_features(queries)
        numbers = {query: number for number, query in enumerate(dict.fromkeys(queries))}
        self._numbers = np.array([numbers[query] for query in queries], np.int32)

    def training_batch(self, rows: NDArray[np.integer]) -> Batch:
        """Returns `query_features` [n, F], `query_numbers` [n] (equal ones are one query),
        `item_ids` [n] and `title_features` [n, F], all int32.

        Args:
          rows: [n] numbers from 0, below `num_rows`.
        """
        items = self._item_ids[rows]
        return {
            "query_features": self._queries[rows],
            "query_numbers": self._numbers[rows],
            "item_ids": items,
            "title_features": self._titles[items],
        }

    def scoring_batch(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None,
    ) -> Batch:
        """Returns `query_features` int32 [n, F] and `candidate_features` int32 [n, c, F].

        Raises:
          UserError: where nothing is asked for.
        """
        if queries is None:
            raise UserError(
                "dssm ranks by what is asked for; of the SCENARIOS leave out sequential, where "
                "nobody asks"
            )
        features = self._titles[np.maximum(candidate_ids, 0)]
        return {"query_features": text_features(queries), "candidate_features": features}


class Tower(nnx.Module):
    """A text as a vector of length 1."""

    def __init__(self, emb_dim: int, dropout_rate: float, key: Array) -> None:
        keys = jax.random.split(key)
        self.dropout_rate = dropout_rate
        self.encoder = TextEncoder(emb_dim, keys[0])
        self.norm = LayerNorm(emb_dim)
        self.dense = Kernel(keys[1], (emb_dim, emb_dim), ("embed", "kv"), stddev=emb_dim**-0.5)

    def __call__(self, features: Array, dropout_key: Array | None = None) -> Array:
        """Maps int32 [..., F] to float32 [..., D]."""
        dropout = Dropout(self.dropout_rate, dropout_key)
        vectors = self.dense(dropout(self.norm(self.encoder(features, dropout))))
        length = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1, keepdims=True) + 1e-12)
        return vectors / length


class DssmModel(nnx.Module):
    """The two towers."""

    def __init__(self, emb_dim: int, dropout_rate: float, key: Array) -> None:
        keys = jax.random.split(key)
        self.query = Tower(emb_dim, dropout_rate, keys[0])
        self.title = Tower(emb_dim, dropout_rate, keys[1])

    def candidate_scores(self, batch: dict[str, Array]) -> Array:
        """Returns the cosines, float32 [n, c], of a `scoring_batch` of `DssmRows`."""
        queries = self.query(batch["query_features"])
        by_candidate = jnp.moveaxis(batch["candidate_features"], 1, 0)  # one at a time: memory
        cosines = jax.lax.map(lambda one: jnp.sum(queries * self.title(one), axis=-1), by_candidate)
        return cosines.T


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dssm:
    """The system as gin configures it.

    Attributes:
      emb_dim: width of both towers.
      dropout_rate: probability of dropping, in training only.
    """

    emb_dim: Width = 64
    dropout_rate: Annotated[float, Range(0, 0.99)] = 0.3

    def __post_init__(self) -> None:
        check_fields(self)

    def open(self, data: PreparedData, choices: Callable[[], Choices]) -> DssmRows:
        """Returns the pairs to learn from, and the texts of what is scored."""
        return DssmRows(data, choices())

    def init(self, data: PreparedData, key: Array) -> DssmModel:
        """Returns a randomly initialised model."""
        return DssmModel(self.emb_dim, self.dropout_rate, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineLoss:
    """Cross-entropy of a query's title among those of the batch (the paper's equation 4).

    Titles that were asked for in the same words are no negatives.

    Attributes:
      smoothing: what cosines are multiplied by (the paper's gamma).
    """

    smoothing: Positive = 10.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, model: DssmModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `DssmRows`, float32 scalars."""
        keys = jax.random.split(key)
        queries = self.smoothing * model.query(batch["query_features"], keys[0])
        titles = model.title(batch["title_features"], keys[1])
        numbers, items = batch["query_numbers"], batch["item_ids"]
        is_same = (numbers[:, None] == numbers) | (items[:, None] == items)
        return jnp.mean(in_batch_nll(queries, titles, is_excluded=is_same)), {}
