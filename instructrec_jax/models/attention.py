"""The bias of attention's logits, and attention to some keys at a time.

For long inputs: plain attention keeps several float32 arrays [batch, heads, queries, keys] of every
layer for its backward pass. In blocks, the softmax is taken with a running maximum and sum, and the
backward pass computes each block's weights again: those of all keys are never held.

Source: Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory" (2021); the backward pass is
that of Dao et al., "FlashAttention" (NeurIPS 2022), algorithm 4, with a position bias.

Letters of the shapes: B batch, T queries, S keys, N heads, H head_dim; K blocks of C keys.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MASKED = -1e10
_Parts = tuple[Array, Array | None]  # mask and position of a `Bias`


class Bias(NamedTuple):
    """What is added to the logits of attention, in parts that are small.

    Attributes:
      mask: bool [B, T, S], which keys each query may see.
      position: float32 [N, T, S], added where it may; None: nothing is.
      block: keys that attention is to look at at a time.
    """

    mask: Array
    position: Array | None
    block: int


def attention_bias(mask: Array, position: Array | None, key_block: int | None) -> Array | Bias:
    """Returns what is added to the logits of attention, whole or in parts for blocks of keys.

    Args:
      mask: bool [B, T, S], which keys each query may see.
      position: float32 [N, T, S], what is added where it may; None: 0.
      key_block: see `T5Config`.

    Returns:
      float32 that broadcasts to [B, N, T, S], -1e10 where the mask forbids; or its parts.
    """
    if key_block is not None and mask.shape[-1] > key_block:
        return Bias(mask, position, key_block)
    if position is None:
        return jnp.where(mask[:, None], 0.0, MASKED)
    return add_position_bias(mask[:, None], position)


@jax.custom_vjp
def add_position_bias(mask: Array, bias: Array) -> Array:
    """Returns `bias` [N, T, S] where `mask` [B, 1, T, S] allows attention, else -1e10."""
    return jnp.where(mask, bias, MASKED)


def _add_position_bias_forward(mask: Array, bias: Array) -> tuple[Array, Array]:
    return add_position_bias(mask, bias), mask


def _add_position_bias_backward(mask: Array, gradient: Array) -> tuple[None, Array]:
    # Summing over the batch as a product with ones: several times faster than XLA's reduction
    # on CPU. Masked entries need no masking here: softmax gave them no gradient.
    return None, _einsum("B,BNTS->NTS", jnp.ones(gradient.shape[0]), gradient)


add_position_bias.defvjp(_add_position_bias_forward, _add_position_bias_backward)


def blockwise_attention(query: Array, key: Array, value: Array, bias: Bias) -> Array:
    """Returns the values weighted by a softmax over the keys, computed in float32.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      value: [B, S, N, H].
      bias: of the logits.

    Returns:
      [B, T, N, H] in the dtype of `query`.
    """
    return _attend(query, key, value, bias[:2], bias.block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: Array, key: Array, value: Array, bias: _Parts, block: int) -> Array:
    return _forward(query, key, value, bias, block)[0]


def _forward(
    query: Array, key: Array, value: Array, bias: _Parts, block: int
) -> tuple[Array, tuple[Any, ...]]:
    """Returns what is mixed, and what the backward pass needs."""
    batch, length, heads, _ = query.shape

    def add(carry: tuple[Array, Array, Array], part: _Block) -> tuple[tuple, None]:
        highest, total, mixed = carry
        logits = _logits(query, part)
        higher = jnp.maximum(highest, jnp.max(logits, axis=-1))
        weights, old = jnp.exp(logits - higher[..., None]), jnp.exp(highest - higher)
        own = _einsum("BNTC,BCNH->BNTH", weights.astype(query.dtype), part.value)
        total = total * old + jnp.sum(weights, axis=-1)
        return (higher, total, mixed * old[..., None] + own), None

    rows = (batch, heads, length)
    start = (
        jnp.full(rows, -jnp.inf, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*rows, query.shape[-1]), jnp.float32),
    )
    (highest, total, mixed), _ = jax.lax.scan(add, start, _blocks(key, value, bias, block))
    found = jnp.moveaxis(mixed / total[..., None], 1, 2).astype(query.dtype)
    return found, (query, key, value, bias, found, highest + jnp.log(total))


def _backward(block: int, kept: tuple, gradient: Array) -> tuple[Array, Array, Array, Any]:
    """Returns the gradients of query, key, value and position bias."""
    query, key, value, bias, found, log_total = kept
    dtype, num_keys = query.dtype, key.shape[1]
    # What every weight of a query is lowered by, as they sum to 1.
    common = _einsum("BTNH,BTNH->BNT", gradient.astype(jnp.float32), found.astype(jnp.float32))

    def add(query_gradient: Array, part: _Block) -> tuple[Array, tuple]:
        weights = jnp.exp(_logits(query, part) - log_total[..., None])
        of_weights = _einsum("BTNH,BCNH->BNTC", gradient, part.value)
        of_logits = weights * (of_weights - common[..., None])
        narrow = of_logits.astype(dtype)
        query_gradient = query_gradient + _einsum("BNTC,BCNH->BTNH", narrow, part.key)
        of_key = _einsum("BNTC,BTNH->BCNH", narrow, query).astype(dtype)
        of_value = _einsum("BNTC,BTNH->BCNH", weights.astype(dtype), gradient).astype(dtype)
        of_position = None if part.position is None else jnp.sum(of_logits, axis=0)
        return query_gradient, (of_key, of_value, of_position)

    start = jnp.zeros(query.shape, jnp.float32)
    found, parts = jax.lax.scan(add, start, _blocks(key, value, bias, block))
    of_key, of_value, of_position = parts
    if of_position is not None:
        of_position = _joined(of_position, num_keys, axis=2)
    keys = (_joined(part, num_keys, axis=1) for part in (of_key, of_value))
    return found.astype(dtype), *keys, (None, of_position)


_attend.defvjp(_forward, _backward)


class _Block(NamedTuple):
    """Some keys, or with one axis more in front the blocks of all keys.

    Attributes:
      key: [B, C, N, H].
      value: [B, C, N, H].
      mask: bool [B, T, C].
      is_key: bool [C], False after the last key.
      position: float32 [N, T, C] or None.
    """

    key: Array
    value: Array
    mask: Array
    is_key: Array
    position: Array | None


def _blocks(key: Array, value: Array, bias: _Parts, block: int) -> _Block:
    """Returns all keys in blocks, [K, ...]."""
    num_keys = key.shape[1]
    split = functools.partial(_split, block=block)
    mask, position = bias
    position = None if position is None else split(position, axis=2)
    is_key = split(jnp.ones(num_keys, bool), axis=0)
    return _Block(split(key, axis=1), split(value, axis=1), split(mask, axis=2), is_key, position)


def _split(array: Array, *, axis: int, block: int) -> Array:
    """Returns an axis in blocks, which come first; the last one is filled with zeros."""
    number = math.ceil(array.shape[axis] / block)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, number * block - array.shape[axis])
    shape = (*array.shape[:axis], number, block, *array.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(array, padding).reshape(shape), axis, 0)


def _joined(blocks: Array, length: int, *, axis: int) -> Array:
    """Returns what `_split` took apart, without the filling."""
    array = jnp.moveaxis(blocks, 0, axis)
    shape = (*array.shape[:axis], -1, *array.shape[axis + 2 :])
    return jax.lax.slice_in_dim(array.reshape(shape), 0, length, axis=axis)


def _logits(query: Array, part: _Block) -> Array:
    """Returns the logits of a block's keys, float32 [B, N, T, C]."""
    logits = _einsum("BTNH,BCNH->BNTC", query, part.key)
    position = 0.0 if part.position is None else part.position
    logits = logits + jnp.where(part.mask[:, None], position, MASKED)
    return jnp.where(part.is_key, logits, -jnp.inf)


def _einsum(subscripts: str, one: Array, other: Array) -> Array:
    """Returns a product in float32."""
    precision = precision_of(one, other)
    return jnp.einsum(
        subscripts, one, other, precision=precision, preferred_element_type=jnp.float32
    )


def precision_of(*factors: Array) -> jax.lax.Precision | None:
    """Returns the precision of a product: full on every device where all factors are float32.

    By default GPUs and TPUs round the factors of float32 products to TF32 or bfloat16, and nothing
    would hold to 1e-5. On CPU, where the tests run (at XLA's optimisation level 0), both are equal.
    """
    is_float32 = all(factor.dtype == jnp.float32 for factor in factors)
    return jax.lax.Precision.HIGHEST if is_float32 else None
