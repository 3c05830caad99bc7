"""T5 1.1 (the architecture of Flan-T5) in Flax NNX, from token ids to float32 logits.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (JMLR 2020), in the 1.1 form that Flan-T5 has: gated GELU, no biases, untied and
unscaled logits, no 1/sqrt(d) in attention, one relative-position table per stack, none in
cross-attention.

A module here is a pytree: `jax.vmap` over its constructor stacks layers, `jax.lax.scan` runs them.
Every parameter names its logical axes, and so does every activation that may be split over devices
(`models.sharding`); `parallel` maps them to mesh axes.

Letters of the einsums and shapes:
  B batch, R target rows of one instruction, T query length, S key length, D emb, N heads,
  H head_dim, F mlp, V vocab; of a flattened product X rows, I in, O out. Inside the decoder the
  rows of all instructions are one axis, BR.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers
from jax.typing import DTypeLike

from instructrec_jax.errors import UserError
from instructrec_jax.models.attention import (
    Bias,
    attention_bias,
    blockwise_attention,
    precision_of,
)
from instructrec_jax.models.sharding import constrain, in_use, is_constrained, kernels_in_use
from instructrec_jax.settings import OneOf, Range, check_fields

NORM_EPSILON = 1e-6


Width = Annotated[int, Range(1, 2**24)]
Layers = Annotated[int, Range(1, 1000)]
_OF_WEIGHTS = {  # what `kernels_in_use` is made of; of activations these cost little to do again
    "all_gather_invariant", "concatenate", "convert_element_type", "reshape",
    "sharding_constraint", "split", "transpose",
}  # fmt: skip
# What a layer stores for its backward pass, by T5X's names; all else is computed again there.
REMAT_POLICIES: Mapping[str, Callable[..., Any]] = {
    # Weights gathered from other devices would be those of all layers: they are gathered again.
    "none": lambda primitive, *_, **__: primitive.name not in _OF_WEIGHTS,
    "dots": jax.checkpoint_policies.dots_saveable,
    "minimal": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of a T5 1.1; the names are T5X's.

    Attributes:
      vocab_size: rows of the embedding; Flan-T5 pads its 32,100 pieces to 32,128.
      emb_dim: width of the residual stream.
      num_heads: attention heads of each layer.
      head_dim: width of one head; num_heads * head_dim need not be emb_dim.
      mlp_dim: width of the gated feed-forward layer.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      dropout_rate: probability of dropping, in training only.
      relative_buckets: rows of the relative-position table.
      relative_max_distance: distances from here on share the last bucket.
      dtype: compute type, "float32" or "bfloat16"; norms, softmax and logits are float32 always.
      key_block: in training, attention to more keys than this takes so many at a time and never
        holds the weights of all: less memory for long inputs, and the products of queries and keys
        once more. None, the default: all at once, which is faster for rows of a few hundred tokens.
      remat_policy: what each layer computes again in the backward pass to store less. "none": no
        more than weights gathered from other devices; "dots": all but matrix products; "minimal":
        all but products with weights (T5X's meaning); "full": everything.
    """

    vocab_size: Width = 32128
    emb_dim: Width
    num_heads: Width
    head_dim: Width = 64
    mlp_dim: Width
    num_encoder_layers: Layers
    num_decoder_layers: Layers
    dropout_rate: Annotated[float, Range(0, 0.99)] = 0.0
    relative_buckets: Width = 32
    relative_max_distance: Width = 128
    dtype: str = "float32"
    key_block: Width | None = None
    remat_policy: Annotated[str, OneOf(tuple(REMAT_POLICIES))] = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}: "
                "T5's activations overflow in 16-bit floats of smaller range"
            )

    def init(self, key: Array) -> "T5":
        """Returns a randomly initialised model."""
        return T5(self, key)


class Dropout:
    """Draws one mask after another from a key; without a key it changes nothing."""

    def __init__(self, rate: float, key: Array | None) -> None:
        self.rate = rate
        self.key = key

    def __call__(self, x: Array, *, broadcast_axis: int | None = None) -> Array:
        """Drops elements of `x`, the same ones along `broadcast_axis` if it is given."""
        if self.key is None or self.rate == 0.0:
            return x
        self.key, key = jax.random.split(self.key)
        shape = list(x.shape)
        if broadcast_axis is not None:
            shape[broadcast_axis] = 1
        keep = jax.random.bernoulli(key, 1.0 - self.rate, shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros((), x.dtype))


class Kernel(nnx.Module):
    """A weight without bias: maps the last axes of its input to others.

    Attributes:
      adapter: what fine-tuning adds to the weight, an `adapters.LowRank`; None: nothing.
      kernel_scale: float32 [out], what a step of an int8 kernel counts (`models.int8`), else None.
    """

    adapter: Any = None
    kernel_scale: Any = None

    def __init__(
        self,
        key: Array,
        shape: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        stddev: float,
        num_contracted: int = 1,
    ) -> None:
        # A normal cut at two deviations has this deviation left: divide it out.
        init = initializers.truncated_normal(stddev / 0.87962566103423978)
        self.kernel = nnx.Param(init(key, shape, jnp.float32), logical_axes=axes)
        self.num_contracted = num_contracted

    def weight(self, dtype: DTypeLike) -> Array:
        """Returns the weight for any number of products in a dtype."""
        return in_use(self.kernel, dtype)

    def __call__(self, x: Array, weight: Array | None = None) -> Array:
        """Contracts the last `num_contracted` axes of `x` with the kernel's first, in its dtype."""
        num, kernel = self.num_contracted, self.weight(x.dtype) if weight is None else weight
        into, out_of = kernel.shape[:num], kernel.shape[num:]
        shape = (*x.shape[: x.ndim - num], *out_of)
        rows = x.reshape(-1, math.prod(into))
        if is_constrained():  # merged axes cannot be split over several mesh axes
            product = jnp.tensordot(x, kernel, num, precision=precision_of(x, kernel))
        else:
            # As one matrix product: of more than two axes, XLA's CPU code is three times slower.
            product = einsum("XI,IO->XO", rows, kernel.reshape(math.prod(into), -1))
        if self.kernel_scale is not None:
            scale = self.kernel_scale[...].reshape(out_of if is_constrained() else -1)
            product = (product * scale).astype(x.dtype)
        if self.adapter is not None:
            product = product.reshape(len(rows), -1) + self.adapter(rows)
        axes = self.kernel.get_metadata()["logical_axes"]
        return constrain(product.reshape(shape), *axes[num:])


class RMSNorm(nnx.Module):
    """Root-mean-square norm: no mean, no bias, computed in float32."""

    def __init__(self, emb_dim: int) -> None:
        self.scale = nnx.Param(jnp.ones((emb_dim,), jnp.float32), logical_axes=("embed",))

    def __call__(self, x: Array) -> Array:
        """Norms the last axis of [..., D]; the result has the dtype of `x`."""
        wide, scale = x.astype(jnp.float32), in_use(self.scale, jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + NORM_EPSILON) * scale).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention over precomputed keys and values."""

    def __init__(self, config: T5Config, key: Array) -> None:
        c, keys = config, jax.random.split(key, 4)
        narrow = (c.emb_dim, c.num_heads, c.head_dim)
        axes = ("embed", "heads", "kv")
        # The missing 1/sqrt(head_dim) of the logits lives in the query's initial scale.
        query_stddev = (c.emb_dim * c.head_dim) ** -0.5
        self.query = Kernel(keys[0], narrow, axes, stddev=query_stddev)
        self.key = Kernel(keys[1], narrow, axes, stddev=c.emb_dim**-0.5)
        self.value = Kernel(keys[2], narrow, axes, stddev=c.emb_dim**-0.5)
        wide, axes = (c.num_heads, c.head_dim, c.emb_dim), ("heads", "kv", "embed")
        stddev = (c.num_heads * c.head_dim) ** -0.5
        self.out = Kernel(keys[3], wide, axes, stddev=stddev, num_contracted=2)

    def __call__(
        self, queries_from: Array, keys_from: Array, bias: Array | Bias, dropout: Dropout
    ) -> Array:
        """Attends from [B, T, D] to [B, S, D].

        Args:
          queries_from: [B, T, D].
          keys_from: [B, S, D].
          bias: from `attention_bias`.
          dropout: of the weights.
        """
        query = constrain(self.query(queries_from), "batch", "length", "heads", "kv")
        key, value = (
            constrain(kernel(keys_from), "batch", "whole_length", "heads", "kv")
            for kernel in (self.key, self.value)
        )
        if isinstance(bias, Bias):
            # All queries drop the same weights, so that the values can be dropped instead.
            rows, num_keys, heads, _ = key.shape
            kept = dropout(jnp.ones((rows, heads, 1, num_keys), key.dtype), broadcast_axis=-2)
            value = value * jnp.moveaxis(kept, 3, 1)
            mixed = blockwise_attention(query, key, value, bias)
        else:
            logits = einsum("BTNH,BSNH->BNTS", query, key).astype(jnp.float32)
            weights = jax.nn.softmax(logits + bias, axis=-1).astype(query.dtype)
            weights = dropout(weights, broadcast_axis=-2)
            mixed = einsum("BNTS,BSNH->BTNH", weights, value)
        return self.out(constrain(mixed, "batch", "length", "heads", "kv"))


class GatedMlp(nnx.Module):
    """Feed-forward layer with a gate: wo(gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config, key: Array) -> None:
        c, keys = config, jax.random.split(key, 3)
        into, back = (c.emb_dim, c.mlp_dim), (c.mlp_dim, c.emb_dim)
        self.wi_0 = Kernel(keys[0], into, ("embed", "mlp"), stddev=c.emb_dim**-0.5)
        self.wi_1 = Kernel(keys[1], into, ("embed", "mlp"), stddev=c.emb_dim**-0.5)
        self.wo = Kernel(keys[2], back, ("mlp", "embed"), stddev=c.mlp_dim**-0.5)

    def __call__(self, x: Array, dropout: Dropout) -> Array:
        """Maps [B, T, D] to [B, T, D]."""
        hidden = jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x)
        return self.wo(dropout(hidden, broadcast_axis=-2))


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each after a norm and added to the stream."""

    def __init__(self, config: T5Config, key: Array) -> None:
        keys = jax.random.split(key, 2)
        self.dropout_rate = config.dropout_rate
        self.pre_attention_layer_norm = RMSNorm(config.emb_dim)
        self.attention = Attention(config, keys[0])
        self.pre_mlp_layer_norm = RMSNorm(config.emb_dim)
        self.mlp = GatedMlp(config, keys[1])

    def __call__(self, x: Array, bias: Array | Bias, dropout_key: Array | None) -> Array:
        """Maps [B, S, D] to [B, S, D] under an `attention_bias`."""
        dropout = Dropout(self.dropout_rate, dropout_key)
        y = self.pre_attention_layer_norm(x)
        x = x + dropout(self.attention(y, y, bias, dropout), broadcast_axis=-2)
        y = self.pre_mlp_layer_norm(x)
        return x + dropout(self.mlp(y, dropout), broadcast_axis=-2)


class DecoderLayer(nnx.Module):
    """Causal self-attention, attention to the instruction, feed-forward."""

    def __init__(self, config: T5Config, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.dropout_rate = config.dropout_rate
        self.pre_self_attention_layer_norm = RMSNorm(config.emb_dim)
        self.self_attention = Attention(config, keys[0])
        self.pre_cross_attention_layer_norm = RMSNorm(config.emb_dim)
        self.encoder_decoder_attention = Attention(config, keys[1])
        self.pre_mlp_layer_norm = RMSNorm(config.emb_dim)
        self.mlp = GatedMlp(config, keys[2])

    def __call__(
        self,
        x: Array,
        encoded: Array,
        *,
        self_bias: Array | Bias,
        cross_bias: Array | Bias,
        dropout_key: Array | None,
    ) -> Array:
        """Maps [BR, T, D] to [BR, T, D]; the rows of one instruction share its `encoded`."""
        dropout = Dropout(self.dropout_rate, dropout_key)
        y = self.pre_self_attention_layer_norm(x)
        x = x + dropout(self.self_attention(y, y, self_bias, dropout), broadcast_axis=-2)
        # All rows of an instruction are one long query: its keys and values are computed once
        # and never copied per row.
        y = self.pre_cross_attention_layer_norm(x).reshape(encoded.shape[0], -1, x.shape[-1])
        y = self.encoder_decoder_attention(y, encoded, cross_bias, dropout).reshape(x.shape)
        x = x + dropout(y, broadcast_axis=-2)
        y = self.pre_mlp_layer_norm(x)
        return x + dropout(self.mlp(y, dropout), broadcast_axis=-2)


class RelativeBias(nnx.Module):
    """One learned number per head and distance bucket, shared by all layers of a stack."""

    def __init__(self, config: T5Config, key: Array, *, bidirectional: bool) -> None:
        shape = (config.num_heads, config.relative_buckets)
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform")
        self.rel_embedding = nnx.Param(
            init(key, shape, jnp.float32), logical_axes=("heads", "relpos_buckets")
        )
        self.max_distance = config.relative_max_distance
        self.bidirectional = bidirectional

    def __call__(self, length: int) -> Array:
        """Returns the bias of every query for every key, [N, length, length], float32."""
        positions = jnp.arange(length)
        buckets = relative_buckets(
            positions[None, :] - positions[:, None],
            num_buckets=self.rel_embedding.shape[-1],
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        one_hot = jax.nn.one_hot(buckets, self.rel_embedding.shape[-1], dtype=jnp.float32)
        # A product instead of a gather: its gradient is a product too, not a slow scatter.
        bias = einsum("NP,TSP->NTS", self.rel_embedding[...], one_hot)
        return constrain(bias, "heads", "length", "whole_length")


class Encoder(nnx.Module):
    """A stack of encoder layers over embedded tokens."""

    def __init__(self, config: T5Config, key: Array) -> None:
        keys = jax.random.split(key, 2)
        self.config = config
        self.relpos_bias = RelativeBias(config, keys[0], bidirectional=True)
        layer_keys = jax.random.split(keys[1], config.num_encoder_layers)
        self.layers = jax.vmap(functools.partial(EncoderLayer, config))(layer_keys)
        self.encoder_norm = RMSNorm(config.emb_dim)

    def __call__(self, embedded: Array, segments: Array, dropout_key: Array | None) -> Array:
        """Maps [B, S, D] to [B, S, D]; attention stays within equal non-zero `segments` [B, S]."""
        keys = _split_or_none(dropout_key, 3)
        position = self.relpos_bias(embedded.shape[1])
        bias = attention_bias(same_segment(segments, segments), position, self.config.key_block)
        x = Dropout(self.config.dropout_rate, keys[0])(_looked_up(embedded), broadcast_axis=-2)

        def run(x: Array, layer_and_key: Any) -> tuple[Array, None]:
            layer, key = layer_and_key
            layer = kernels_in_use(layer, self.config.dtype)
            return _stream(layer(x, bias, key)), None

        layer_keys = _split_or_none(keys[1], self.config.num_encoder_layers)
        x, _ = jax.lax.scan(_with_remat(run, self.config), x, (self.layers, _stacked(layer_keys)))
        return Dropout(self.config.dropout_rate, keys[2])(self.encoder_norm(x))


class Decoder(nnx.Module):
    """A stack of decoder layers over embedded, shifted targets."""

    def __init__(self, config: T5Config, key: Array) -> None:
        keys = jax.random.split(key, 2)
        self.config = config
        self.relpos_bias = RelativeBias(config, keys[0], bidirectional=False)
        layer_keys = jax.random.split(keys[1], config.num_decoder_layers)
        self.layers = jax.vmap(functools.partial(DecoderLayer, config))(layer_keys)
        self.decoder_norm = RMSNorm(config.emb_dim)

    def __call__(
        self,
        embedded: Array,
        segments: Array,
        *,
        encoded: Array,
        cross_mask: Array,
        dropout_key: Array | None,
    ) -> Array:
        """Maps [BR, T, D] to [BR, T, D].

        Args:
          embedded: [BR, T, D].
          segments: int32 [BR, T]; self-attention stays within equal ones.
          encoded: [B, S, D].
          cross_mask: bool [B, RT, S], which encoder tokens each decoder token may see.
          dropout_key: a key in training, None otherwise.
        """
        keys = _split_or_none(dropout_key, 3)
        length, key_block = embedded.shape[1], self.config.key_block
        causal = jnp.tril(jnp.ones((length, length), bool))
        self_mask = same_segment(segments, segments) & causal
        self_bias = attention_bias(self_mask, self.relpos_bias(length), key_block)
        cross_bias = attention_bias(cross_mask, None, key_block)
        x = Dropout(self.config.dropout_rate, keys[0])(_looked_up(embedded), broadcast_axis=-2)

        def run(x: Array, layer_and_key: Any) -> tuple[Array, None]:
            layer, key = layer_and_key
            layer = kernels_in_use(layer, self.config.dtype)
            biases = {"self_bias": self_bias, "cross_bias": cross_bias}
            return _stream(layer(x, encoded, **biases, dropout_key=key)), None

        layer_keys = _split_or_none(keys[1], self.config.num_decoder_layers)
        x, _ = jax.lax.scan(_with_remat(run, self.config), x, (self.layers, _stacked(layer_keys)))
        # As in T5X the last mask is one for all tokens of a row, unlike the encoder's.
        return Dropout(self.config.dropout_rate, keys[2])(self.decoder_norm(x), broadcast_axis=-2)


class Embedding(nnx.Module):
    """The token table, read by both stacks; rows of an int8 one count `embedding_scale` each."""

    embedding_scale: Any = None

    def __init__(self, config: T5Config, key: Array) -> None:
        table = jax.random.normal(key, (config.vocab_size, config.emb_dim), jnp.float32)
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.dtype = config.dtype

    def __call__(self, tokens: Array) -> Array:
        """Maps token ids, int32 of any shape, to [..., D] in the compute dtype."""
        if self.embedding_scale is None:
            return constrain(in_use(self.embedding, self.dtype)[tokens], "embed")
        rows = in_use(self.embedding, jnp.int8)[tokens]  # not floats of the whole table
        scale = self.embedding_scale[...][tokens][..., None]
        return constrain((rows * scale).astype(self.dtype), "embed")


class T5(nnx.Module):
    """T5 1.1: `encode` an instruction once, `decode` any number of targets against it."""

    def __init__(self, config: T5Config, key: Array) -> None:
        keys = jax.random.split(key, 4)
        self.config = config
        self.token_embedder = Embedding(config, keys[0])
        self.encoder = Encoder(config, keys[1])
        self.decoder = Decoder(config, keys[2])
        shape = (config.emb_dim, config.vocab_size)
        self.logits_dense = Kernel(keys[3], shape, ("embed", "vocab"), stddev=config.emb_dim**-0.5)

    def encode(
        self, tokens: Array, segments: Array | None = None, *, dropout_key: Array | None = None
    ) -> Array:
        """Encodes instructions.

        Args:
          tokens: int32 [B, S], 0 = padding.
          segments: int32 [B, S], which packed example a token belongs to, 0 = padding; without it
            each row is one example.
          dropout_key: a key in training, None otherwise.

        Returns:
          [B, S, D] in the compute dtype.
        """
        if segments is None:
            segments = example_segments(tokens)
        return self.encoder(self.token_embedder(tokens), segments, self._used(dropout_key))

    def decode(
        self,
        input_tokens: Array,
        segments: Array,
        *,
        encoded: Array,
        cross_mask: Array,
        dropout_key: Array | None = None,
    ) -> Array:
        """Reads targets up to each token, ready for predicting the next one.

        Args:
          input_tokens: int32 [B, R, T], each target shifted right, beginning with 0; a row may
            hold several targets.
          segments: int32 [B, R, T], which target of its row a token belongs to, 0 = padding.
          encoded: [B, S, D] from `encode`.
          cross_mask: bool [B, R, T, S], which encoder tokens each token may see.
          dropout_key: a key in training, None otherwise.

        Returns:
          float32 [B, R, T, D], for `logits` and `target_logits`.
        """
        batch, num_rows, length = input_tokens.shape
        rows = input_tokens.reshape(batch * num_rows, length)
        hidden = self.decoder(
            self.token_embedder(rows),
            segments.reshape(rows.shape),
            encoded=encoded,
            cross_mask=cross_mask.reshape(batch, num_rows * length, -1),
            dropout_key=self._used(dropout_key),
        )
        # What follows runs in float32: logits are where bfloat16 changes rankings.
        return hidden.astype(jnp.float32).reshape(batch, num_rows, length, -1)

    def logits(self, hidden: Array) -> Array:
        """Maps [..., T, D] from `decode` to the logits of every next token, [..., T, V]."""
        return self.logits_dense(hidden)

    def target_logits(self, hidden: Array, targets: Array, logits: Array) -> Array:
        """Returns the logit of each target token alone, float32 [..., T].

        Reading the targets' columns of the kernel costs far less than picking them out of all
        logits, whose gradient would be scattered over the whole vocabulary. Where devices share
        the vocabulary each picks from its own logits, without a scatter.

        Args:
          hidden: float32 [..., T, D] from `decode`.
          targets: int32 [..., T].
          logits: float32 [..., T, V], those of `hidden`.
        """
        if is_constrained():
            is_target = targets[..., None] == jnp.arange(logits.shape[-1])
            return jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        columns = self.logits_dense.kernel[...].T[targets]
        if self.logits_dense.adapter is not None:
            columns = columns + self.logits_dense.adapter.columns(targets)
        return einsum("...TD,...TD->...T", hidden, columns)

    def _used(self, dropout_key: Array | None) -> Array | None:
        """Returns the key where something is dropped: without dropout none is split."""
        return dropout_key if self.config.dropout_rate > 0 else None


def einsum(subscripts: str, *arrays: Array) -> Array:
    """Returns the product, of float32 arrays in full precision on every device."""
    return jnp.einsum(subscripts, *arrays, precision=precision_of(*arrays))


def example_segments(tokens: Array) -> Array:
    """Returns the segments of unpacked rows: 1 on tokens, 0 on padding, int32, same shape."""
    return (tokens > 0).astype(jnp.int32)


def relative_buckets(
    distance: Array, *, num_buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    """Maps key position minus query position to a bucket: exact when near, logarithmic when far.

    Args:
      distance: int32, any shape.
      num_buckets: number of buckets in all.
      max_distance: distances from here on share the last bucket.
      bidirectional: whether keys after the query get buckets of their own (the second half);
        otherwise they all fall into bucket 0.

    Returns:
      int32 of the same shape, 0 .. num_buckets - 1.

    Example:
      With 8 buckets, causal: distances 0, -1, -2, -3, -4 give buckets 0, 1, 2, 3, 4.
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)


def same_segment(queries: Array, keys: Array) -> Array:
    """Returns which key each query may see, bool [B, T, S]; padding (0) sees nothing."""
    return (queries[:, :, None] == keys[:, None, :]) & (queries[:, :, None] > 0)


def _split_or_none(key: Array | None, num: int) -> list[Array] | list[None]:
    return [None] * num if key is None else list(jax.random.split(key, num))


def _stacked(keys: list[Array] | list[None]) -> Array | None:
    """Returns the layers' keys as one array to scan over, or None without dropout."""
    return None if keys[0] is None else jnp.stack(keys)


def _looked_up(x: Array) -> Array:
    """Returns embedded tokens: devices that share the vocabulary look all of their rows up."""
    return _stream(constrain(x, "batch", "whole_length", "embed"))


def _stream(x: Array) -> Array:
    """Returns what goes from layer to layer, [B, T, D], split as the rules say."""
    return constrain(x, "batch", "length", "embed")


def _with_remat(body: Any, config: T5Config) -> Any:
    """Returns the body of a scan over layers, which stores what the policy lets it store."""
    if config.remat_policy == "none" and not is_constrained():
        return body
    # In a scan nothing can be merged with its recomputation, which is what `prevent_cse` prevents.
    policy = REMAT_POLICIES[config.remat_policy]
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
