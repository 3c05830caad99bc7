"""Decoding one token at a time: keys and values of what was read are kept, never computed again.

For beams: B instructions, each encoded once, with W beams per instruction. The numbers are those
of `T5.decode`.

Letters of the shapes, beside those of `t5`: W beams, L decoder layers, T tokens of the longest
target.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from instructrec_jax.models.attention import MASKED
from instructrec_jax.models.t5 import T5, Attention, Dropout, einsum

_NO_DROPOUT = Dropout(0.0, None)


class Instructions(NamedTuple):
    """What the decoder's layers need of encoded instructions.

    Attributes:
      keys: [L, B, S, N, H] in the compute dtype, cross-attention keys of every layer.
      values: the same for values.
      bias: float32 [B, 1, 1, S], which hides padding.
    """

    keys: Array
    values: Array
    bias: Array


class Cache(NamedTuple):
    """What the decoder's layers need of the tokens that each beam has read.

    Attributes:
      keys: [L, B, W, T, N, H] in the compute dtype, self-attention keys; 0 where nothing was read.
      values: the same for values.
    """

    keys: Array
    values: Array


def read_instructions(model: T5, tokens: Array) -> Instructions:
    """Encodes instructions, int32 [B, S], 0 = padding."""
    encoded = model.encode(tokens)

    def keys_and_values(_, layer):
        attention = layer.encoder_decoder_attention
        return None, (attention.key(encoded), attention.value(encoded))

    _, (keys, values) = jax.lax.scan(keys_and_values, None, model.decoder.layers)
    return Instructions(keys, values, jnp.where(tokens > 0, 0.0, MASKED)[:, None, None])


def empty_cache(model: T5, num_instructions: int, num_beams: int, length: int) -> Cache:
    """Returns the cache of beams that have read nothing, with room for `length` tokens."""
    c = model.config
    shape = (c.num_decoder_layers, num_instructions, num_beams, length, c.num_heads, c.head_dim)
    return Cache(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))


def reorder(cache: Cache, beams: Array) -> Cache:
    """Returns a cache in which each beam continues another one.

    Args:
      cache: of W beams.
      beams: int32 [B, any number of new beams], whose cache each of them takes over.
    """
    index = beams[None, :, :, None, None, None]
    return Cache(*(jnp.take_along_axis(array, index, axis=2) for array in cache))


def read_tokens(
    model: T5, tokens: Array, position: Array | int, *, instructions: Instructions, cache: Cache
) -> tuple[Array, Cache]:
    """Lets each beam read one token more.

    Args:
      model: the model.
      tokens: int32 [B, W]; at position 0 T5's decoder reads 0.
      position: how many tokens each beam has read.
      instructions: those of the beams.
      cache: what the beams have read.

    Returns:
      (what each beam has read, float32 [B, W, D], for `T5.logits`; the cache with the token).
    """
    decoder, length = model.decoder, cache.keys.shape[3]
    is_read = jnp.arange(length) <= position
    self_bias = jnp.where(is_read, decoder.relpos_bias(length)[:, position], MASKED)

    def read(x, layer_and_state):
        layer, cross_keys, cross_values, keys, values = layer_and_state
        y, attention = layer.pre_self_attention_layer_norm(x), layer.self_attention
        at = (0, 0, position, 0, 0)
        keys = jax.lax.dynamic_update_slice(keys, attention.key(y)[:, :, None], at)
        values = jax.lax.dynamic_update_slice(values, attention.value(y)[:, :, None], at)
        x = x + _attend_own(attention, y, keys, values, bias=self_bias)
        y, attention = layer.pre_cross_attention_layer_norm(x), layer.encoder_decoder_attention
        x = x + _attend_shared(attention, y, cross_keys, cross_values, bias=instructions.bias)
        return x + layer.mlp(layer.pre_mlp_layer_norm(x), _NO_DROPOUT), (keys, values)

    state = (decoder.layers, instructions.keys, instructions.values, *cache)
    x, kept = jax.lax.scan(read, model.token_embedder(tokens), state)
    return decoder.decoder_norm(x).astype(jnp.float32), Cache(*kept)


def _attend_own(
    attention: Attention, x: Array, keys: Array, values: Array, *, bias: Array
) -> Array:
    """Attends from [B, W, D] to each beam's own [B, W, T, N, H] under a bias [N, T]."""
    logits = einsum("BWNH,BWTNH->BWNT", attention.query(x), keys).astype(jnp.float32)
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(values.dtype)
    return attention.out(einsum("BWNT,BWTNH->BWNH", weights, values))


def _attend_shared(
    attention: Attention, x: Array, keys: Array, values: Array, *, bias: Array
) -> Array:
    """Attends from [B, W, D] to what all beams share, [B, S, N, H], under [B, 1, 1, S]."""
    logits = einsum("BWNH,BSNH->BNWS", attention.query(x), keys).astype(jnp.float32)
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(values.dtype)
    return attention.out(einsum("BNWS,BSNH->BWNH", weights, values))
