"""Attention in blocks of keys equals attention to all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructrec_jax.models.attention import MASKED, Bias, blockwise_attention

rng = np.random.default_rng(0)
ROWS, QUERIES, KEYS, HEADS, WIDTH = 3, 5, 11, 2, 4
QUERY, KEY, VALUE, WEIGHT = (
    rng.normal(size=(ROWS, length, HEADS, WIDTH)).astype(np.float32)
    for length in (QUERIES, KEYS, KEYS, QUERIES)
)
POSITION = rng.normal(size=(HEADS, QUERIES, KEYS)).astype(np.float32)
MASK = rng.random((ROWS, QUERIES, KEYS)) < 0.6
MASK[0, 1] = False  # a query of padding sees nothing, and nothing depends on it
WEIGHT[0, 1] = 0


def plain(query, key, value, position):
    logits = jnp.einsum("BTNH,BSNH->BNTS", query, key)
    logits += jnp.where(MASK[:, None], position, MASKED)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(logits, axis=-1), value)


@pytest.mark.parametrize("block", [1, 4, 11, 16])
@pytest.mark.parametrize("has_position", [True, False])
def test_blocks_of_any_size_give_the_same_numbers_and_gradients(block, has_position):
    position = POSITION if has_position else None

    def in_blocks(query, key, value, position):
        return blockwise_attention(query, key, value, Bias(MASK, position, block))

    def found(attend, position):
        loss = lambda *arrays: jnp.sum(attend(*arrays) * WEIGHT)  # noqa: E731
        arrays = (QUERY, KEY, VALUE, position)
        numbers = (0, 1, 2, 3) if has_position else (0, 1, 2)
        return [attend(*arrays), *jax.grad(loss, numbers)(*arrays)]

    expected = found(plain, POSITION if has_position else np.float32(0))
    for own, other in zip(found(in_blocks, position), expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


def test_the_softmax_is_computed_in_float32_whatever_the_dtype():
    narrow = [array.astype(jnp.bfloat16) for array in (QUERY, KEY, VALUE)]
    rounded = blockwise_attention(*narrow, Bias(MASK, POSITION, 4))
    assert rounded.dtype == jnp.bfloat16
    exact = plain(*(array.astype(np.float32) for array in narrow), POSITION)
    np.testing.assert_allclose(rounded.astype(np.float32), exact, rtol=0.02, atol=0.02)
