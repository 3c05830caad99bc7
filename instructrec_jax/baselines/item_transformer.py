"""A transformer over item tokens, which SASRec, BERT4Rec, TEM and the matcher share.

Items and positions are embedded; layers of attention and feed-forward follow, each after a norm and
added to the stream; logits are products with the items' own embeddings.

Letters of the shapes: B batch, L length, D emb, V rows of the table, C candidates.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from instructrec_jax.models.attention import Bias, attention_bias
from instructrec_jax.models.sharding import constrain, in_use
from instructrec_jax.models.t5 import Attention, Dropout, Kernel, einsum, same_segment
from instructrec_jax.settings import Range, check_fields, refuse

NORM_EPSILON = 1e-6
_INITIAL_DEVIATION = 0.02
_ROWS = 128  # the table has a multiple of so many rows, which devices may share
_NO_ITEM = -1e10

Width = Annotated[int, Range(1, 2**16)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """Sizes of a transformer over items.

    Attributes:
      emb_dim: width of the residual stream, and of an item's embedding.
      num_heads: attention heads of each layer; they divide emb_dim.
      mlp_dim: width of the feed-forward layer.
      num_layers: layers.
      max_length: most recent items that are read.
      dropout_rate: probability of dropping, in training only.
    """

    emb_dim: Width = 64
    num_heads: Width = 2
    mlp_dim: Width = 256
    num_layers: Annotated[int, Range(1, 100)] = 2
    max_length: Annotated[int, Range(2, 2**16)] = 50
    dropout_rate: Annotated[float, Range(0, 0.99)] = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.emb_dim % self.num_heads:
            raise refuse(self, "num_heads", f"a divisor of emb_dim, which is {self.emb_dim}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.emb_dim // self.num_heads


class LayerNorm(nnx.Module):
    """Norm to mean 0 and variance 1, then a learned scale and shift; in float32."""

    def __init__(self, emb_dim: int) -> None:
        self.scale = nnx.Param(jnp.ones((emb_dim,), jnp.float32), logical_axes=("embed",))
        self.bias = nnx.Param(jnp.zeros((emb_dim,), jnp.float32), logical_axes=("embed",))

    def __call__(self, x: Array) -> Array:
        """Norms the last axis of [..., D]."""
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        scale, bias = in_use(self.scale, jnp.float32), in_use(self.bias, jnp.float32)
        return centred * jax.lax.rsqrt(variance + NORM_EPSILON) * scale + bias


class Layer(nnx.Module):
    """Self-attention and feed-forward."""

    def __init__(self, sizes: TransformerSizes, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.dropout_rate = sizes.dropout_rate
        self.attention_norm = LayerNorm(sizes.emb_dim)
        self.attention = Attention(sizes, keys[0])  # type: ignore[arg-type]  # has its sizes
        self.mlp_norm = LayerNorm(sizes.emb_dim)
        into, back = (sizes.emb_dim, sizes.mlp_dim), (sizes.mlp_dim, sizes.emb_dim)
        self.wi = Kernel(keys[1], into, ("embed", "mlp"), stddev=sizes.emb_dim**-0.5)
        self.wo = Kernel(keys[2], back, ("mlp", "embed"), stddev=sizes.mlp_dim**-0.5)

    def __call__(self, x: Array, bias: Array | Bias, dropout_key: Array | None) -> Array:
        """Maps [B, L, D] to [B, L, D] under an `attention_bias`."""
        dropout = Dropout(self.dropout_rate, dropout_key)
        y = self.attention_norm(x)
        x = x + dropout(self.attention(y, y, bias, dropout))
        y = jax.nn.gelu(self.wi(self.mlp_norm(x)))
        return x + dropout(self.wo(dropout(y)))


class ItemTransformer(nnx.Module):
    """Reads rows of item tokens.

    Attributes:
      num_items: the tokens 1 .. num_items are items; only they have logits.
      mask_token: the token after them, which stands for an item to be found.
    """

    def __init__(self, sizes: TransformerSizes, key: Array, *, num_items: int, length: int) -> None:
        """Draws the parameters.

        Args:
          sizes: of the layers.
          key: of the random start.
          num_items: size of the catalogue.
          length: of the rows.
        """
        keys = jax.random.split(key, 3)
        self.num_items, self.mask_token = num_items, num_items + 1
        self.dropout_rate, self.num_layers = sizes.dropout_rate, sizes.num_layers
        num_rows = -(-(num_items + 2) // _ROWS) * _ROWS
        table = _INITIAL_DEVIATION * jax.random.normal(keys[0], (num_rows, sizes.emb_dim))
        self.items = nnx.Param(table, logical_axes=("vocab", "embed"))
        places = _INITIAL_DEVIATION * jax.random.normal(keys[1], (length, sizes.emb_dim))
        self.positions = nnx.Param(places, logical_axes=(None, "embed"))
        layer_keys = jax.random.split(keys[2], sizes.num_layers)
        self.layers = jax.vmap(functools.partial(Layer, sizes))(layer_keys)
        self.norm = LayerNorm(sizes.emb_dim)

    def __call__(
        self, tokens: Array, *, is_causal: bool, dropout_key: Array | None = None
    ) -> Array:
        """Returns what was read up to each token, or around it, float32 [B, L, D].

        Args:
          tokens: int32 [B, L], 0 = padding.
          is_causal: whether a token sees only itself and those before it.
          dropout_key: a key in training, None otherwise.
        """
        embedded, is_there = self.embedded(tokens), tokens > 0
        return self.read(embedded, is_there, is_causal=is_causal, dropout_key=dropout_key)

    def read(
        self, embedded: Array, is_there: Array, *, is_causal: bool, dropout_key: Array | None = None
    ) -> Array:
        """Returns the same of tokens that are embedded already, float32 [B, L, D].

        Args:
          embedded: float32 [B, L, D], without their places.
          is_there: bool [B, L], which are no padding.
          is_causal: whether a token sees only itself and those before it.
          dropout_key: a key in training, None otherwise.
        """
        keys = jax.random.split(jax.random.key(0) if dropout_key is None else dropout_key, 2)
        dropout = Dropout(self.dropout_rate, None if dropout_key is None else keys[0])
        x = embedded + in_use(self.positions, jnp.float32)
        segments = is_there.astype(jnp.int32)
        mask = same_segment(segments, segments)
        if is_causal:
            mask = mask & jnp.tril(jnp.ones(mask.shape[1:], bool))
        bias = attention_bias(mask, None, None)

        def run(x: Array, layer_and_key: tuple[Layer, Array]) -> tuple[Array, None]:
            layer, key = layer_and_key
            x = layer(x, bias, None if dropout_key is None else key)
            return constrain(x, "batch", "length", "embed"), None

        layer_keys = jax.random.split(keys[1], self.num_layers)
        x, _ = jax.lax.scan(run, dropout(x), (self.layers, layer_keys))
        return self.norm(x)

    def logits(self, hidden: Array) -> Array:
        """Returns the logits of all tokens, float32 [..., V]; those of no item are -1e10."""
        products = einsum("XD,VD->XV", hidden.reshape(-1, hidden.shape[-1]), self._table())
        products = constrain(products.reshape(*hidden.shape[:-1], -1), "vocab")
        numbers = jnp.arange(products.shape[-1])
        is_item = (numbers > 0) & (numbers <= self.num_items)
        return jnp.where(is_item, products, _NO_ITEM)

    def token_logits(self, hidden: Array, tokens: Array) -> Array:
        """Returns the logits of some tokens, float32: [..., D] and [..., C] give [..., C]."""
        return jnp.sum(hidden[..., None, :] * self.embedded(tokens), axis=-1)

    def embedded(self, tokens: Array) -> Array:
        """Maps tokens int32 [...] to their embeddings, float32 [..., D]."""
        return constrain(self._table()[tokens], "embed")

    def _table(self) -> Array:
        return in_use(self.items, jnp.float32)


def mean_over(values: Array, is_counted: Array) -> Array:
    """Returns the mean of the counted values, a float32 scalar; 0 where none is."""
    total = jnp.sum(jnp.where(is_counted, values, 0.0))
    return total / jnp.maximum(jnp.sum(is_counted, dtype=jnp.float32), 1.0)
