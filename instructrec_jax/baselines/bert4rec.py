"""BERT4Rec: attention over the items on both sides, which finds the ones that are masked.

Source: Sun et al., "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
from Transformer" (CIKM 2019). To score, a mask is appended to the history; so that training knows
this case, some rows have their last item alone masked.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from instructrec_jax.baselines.item_sequences import ItemSequences, longest_history
from instructrec_jax.baselines.item_transformer import (
    ItemTransformer,
    LayerNorm,
    TransformerSizes,
    mean_over,
)
from instructrec_jax.baselines.recommender import Choices
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.models.sharding import in_use
from instructrec_jax.models.t5 import Kernel
from instructrec_jax.settings import Range, Share, check_fields


class Bert4RecModel(nnx.Module):
    """Maps a history with masks to the items behind them."""

    def __init__(self, sizes: TransformerSizes, key: Array, *, num_items: int, length: int) -> None:
        keys = jax.random.split(key)
        self.body = ItemTransformer(sizes, keys[0], num_items=num_items, length=length)
        shape, deviation = (sizes.emb_dim, sizes.emb_dim), sizes.emb_dim**-0.5
        self.dense = Kernel(keys[1], shape, ("embed", "kv"), stddev=deviation)
        self.norm = LayerNorm(sizes.emb_dim)
        biases = jnp.zeros(self.body.items.shape[0])
        self.item_bias = nnx.Param(biases, logical_axes=("vocab",))

    def read(self, tokens: Array, dropout_key: Array | None = None) -> Array:
        """Maps tokens int32 [B, L] to float32 [B, L, D], ready for products with items."""
        hidden = self.body(tokens, is_causal=False, dropout_key=dropout_key)
        return self.norm(jax.nn.gelu(self.dense(hidden)))

    def candidate_scores(self, batch: dict[str, Array]) -> Array:
        """Returns float32 [B, C], of a `scoring_batch` of `ItemSequences`."""
        masks = jnp.full((len(batch["tokens"]), 1), self.body.mask_token, jnp.int32)
        last = self.read(jnp.concatenate([batch["tokens"], masks], axis=1))[:, -1]
        candidates = batch["candidate_tokens"]
        return self.body.token_logits(last, candidates) + self._bias()[candidates]

    def nll(self, hidden: Array, targets: Array) -> Array:
        """Returns the negative log-likelihood of targets among all items, float32 [B, M].

        Args:
          hidden: float32 [B, M, D], from `read`.
          targets: int32 [B, M].
        """
        log_z = jax.nn.logsumexp(self.body.logits(hidden) + self._bias(), axis=-1)
        chosen = self.body.token_logits(hidden, targets[..., None])[..., 0]
        return log_z - chosen - self._bias()[targets]

    def _bias(self) -> Array:
        return in_use(self.item_bias, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bert4Rec:
    """The system as gin configures it.

    Attributes:
      sizes: of the transformer; a mask takes one of its places.
    """

    sizes: TransformerSizes = dataclasses.field(default_factory=TransformerSizes)

    def open(
        self, data: PreparedData, choices: Callable[[], Choices] | None = None
    ) -> ItemSequences:
        """Returns the rows to train on and to score; rows are as long as the longest history."""
        length = min(self.sizes.max_length, longest_history(data))
        return ItemSequences(data, training_length=length, scored_length=length - 1)

    def init(self, data: PreparedData, key: Array) -> Bert4RecModel:
        """Returns a randomly initialised model."""
        length = min(self.sizes.max_length, longest_history(data))
        return Bert4RecModel(self.sizes, key, num_items=len(data.items), length=length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cloze:
    """Cross-entropy of the masked items over the whole catalogue (the paper's equation 8).

    Attributes:
      mask_share: of a row's items that are masked, at least one.
      last_share: of the rows whose last item alone is masked.
    """

    mask_share: Annotated[float, Range(0, 0.9, is_open=True)] = 0.2
    last_share: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, model: Bert4RecModel, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Any]]:
        """Returns (loss, metrics) of a `training_batch` of `ItemSequences`, float32 scalars."""
        keys = jax.random.split(key)
        tokens = batch["tokens"]
        places, is_masked = self.masked_places(tokens, keys[0])
        rows = jnp.arange(len(tokens))[:, None]
        targets = tokens[rows, places]
        masked = jnp.where(is_masked, model.body.mask_token, targets)
        hidden = model.read(tokens.at[rows, places].set(masked), keys[1])[rows, places]
        return mean_over(model.nll(hidden, targets), is_masked), {}

    def masked_places(self, tokens: Array, key: Array) -> tuple[Array, Array]:
        """Returns the places of a row that may be masked, and which of them are.

        Only there are logits needed: a few of a row's places instead of all.

        Args:
          tokens: int32 [B, L], padded on the left.
          key: of the draws.

        Returns:
          int32 [B, M], different places of each row; bool [B, M].
        """
        keys = jax.random.split(key)
        length = tokens.shape[1]
        num_items = jnp.sum(tokens > 0, axis=1, keepdims=True)
        number = jnp.clip(jnp.round(self.mask_share * num_items), 1, num_items)
        order = jax.random.uniform(keys[0], tokens.shape)
        only_last = jax.random.bernoulli(keys[1], self.last_share, num_items.shape)
        order = jnp.where(only_last, -jnp.arange(length), order)  # the last place comes first
        order = jnp.where(tokens > 0, order, jnp.inf)
        places = jnp.argsort(order, axis=1)[:, : max(1, math.ceil(self.mask_share * length))]
        is_masked = jnp.arange(places.shape[1]) < jnp.where(only_last, 1, number)
        return places, is_masked
