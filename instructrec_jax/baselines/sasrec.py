"""SASRec: attention over the items before, which predicts the next one at every position.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), with the layers
that its successors have (a norm before each part, GELU, a wider feed-forward layer). Both losses:
the paper's binary one with one negative, and the softmax over all items, which is far stronger and
which many papers' baselines lack.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from instructrec_jax.baselines.item_sequences import ItemSequences, longest_history
from instructrec_jax.baselines.item_transformer import (
    ItemTransformer,
    TransformerSizes,
    mean_over,
)
from instructrec_jax.baselines.recommender import Choices
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.models.sharding import constrain


class SasRecModel(nnx.Module):
    """Maps what a user has had to what comes next."""

    def __init__(self, body: ItemTransformer) -> None:
        self.body = body

    def candidate_scores(self, batch: dict[str, Array]) -> Array:
        """Returns float32 [B, C], of a `scoring_batch` of `ItemSequences`."""
        last = self.body(batch["tokens"], is_causal=True)[:, -1]
        return self.body.token_logits(last, batch["candidate_tokens"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SasRec:
    """The system as gin configures it.

    Attributes:
      sizes: of the transformer.
    """

    sizes: TransformerSizes = dataclasses.field(default_factory=TransformerSizes)

    def open(
        self, data: PreparedData, choices: Callable[[], Choices] | None = None
    ) -> ItemSequences:
        """Returns the rows to train on and to score; a training row has one item more to predict.

        Rows are no longer than the longest history.
        """
        length = min(self.sizes.max_length, longest_history(data))
        return ItemSequences(data, training_length=length + 1, scored_length=length)

    def init(self, data: PreparedData, key: Array) -> SasRecModel:
        """Returns a randomly initialised model."""
        length = min(self.sizes.max_length, longest_history(data))
        body = ItemTransformer(self.sizes, key, num_items=len(data.items), length=length)
        return SasRecModel(body)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryLoss:
    """The paper's loss (equation 7): each next item against one negative, item by item.

    A negative is drawn evenly from the catalogue; one that stands in the row is not counted.
    """

    def __call__(
        self, model: SasRecModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `ItemSequences`, float32 scalars."""
        keys = jax.random.split(key)
        inputs, targets, hidden = _read(model, batch["tokens"], keys[0])
        negatives = jax.random.randint(keys[1], targets.shape, 1, model.body.num_items + 1)
        is_own = (negatives[..., None] == batch["tokens"][:, None, :]).any(axis=-1)
        both = model.body.token_logits(hidden, jnp.stack([targets, negatives], axis=-1))
        against = jnp.where(is_own, 0.0, jax.nn.softplus(both[..., 1]))
        loss = mean_over(jax.nn.softplus(-both[..., 0]) + against, inputs > 0)
        hits = (both[..., 0] > both[..., 1]).astype(jnp.float32)
        return loss, {"above_negative": mean_over(hits, (inputs > 0) & ~is_own)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxLoss:
    """Cross-entropy of each next item over the whole catalogue."""

    def __call__(
        self, model: SasRecModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `ItemSequences`, float32 scalars."""
        inputs, targets, hidden = _read(model, batch["tokens"], key)
        nll = item_nll(model.body, hidden, targets)
        return mean_over(nll, inputs > 0), {}


def item_nll(body: ItemTransformer, hidden: Array, targets: Array) -> Array:
    """Returns the negative log-likelihood of target tokens among all items, float32 [B, L].

    Args:
      body: whose items they are.
      hidden: float32 [B, L, D].
      targets: int32 [B, L].
    """
    log_z = jax.nn.logsumexp(body.logits(hidden), axis=-1)
    return log_z - body.token_logits(hidden, targets[..., None])[..., 0]


def _read(model: SasRecModel, tokens: Array, key: Array) -> tuple[Array, Array, Array]:
    """Returns the inputs and targets of rows, int32 [B, L], and what was read at each input."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    hidden = model.body(inputs, is_causal=True, dropout_key=key)
    return inputs, targets, constrain(hidden, "batch", "length", "embed")
