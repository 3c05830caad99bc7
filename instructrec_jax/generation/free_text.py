"""What a model writes by itself: greedy decoding of any text, such as a chain of thought."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from instructrec_jax.models.incremental_decoding import (
    Cache,
    empty_cache,
    read_instructions,
    read_tokens,
)
from instructrec_jax.models.t5 import T5
from instructrec_jax.tokenizer import EOS_ID

_ROUNDING = 64  # instructions are padded to multiples of it, for few compiled shapes


def write_texts(
    model: T5, instructions: Sequence[np.ndarray], *, max_tokens: int
) -> list[np.ndarray]:
    """Returns the likeliest next token after each other, up to EOS.

    Args:
      model: the model.
      instructions: int32 [s] each, tokens ending in EOS, no padding.
      max_tokens: where a text ends that has no EOS.

    Returns:
      For each instruction int32 [t], without EOS.
    """
    if not instructions:
        return []
    length = -(-max(map(len, instructions)) // _ROUNDING) * _ROUNDING
    tokens = np.zeros((len(instructions), length), np.int32)
    for row, own in zip(tokens, instructions, strict=True):
        row[: len(own)] = own
    found = np.asarray(_greedy(model, tokens, max_tokens=max_tokens))
    ends = [np.flatnonzero(row == EOS_ID) for row in found]
    return [row[: end[0]] if len(end) else row for row, end in zip(found, ends, strict=True)]


@functools.partial(jax.jit, static_argnames="max_tokens")
def _greedy(model: T5, tokens: Array, *, max_tokens: int) -> Array:
    """Returns int32 [B, max_tokens] of instructions [B, S]."""
    instructions = read_instructions(model, tokens)

    def step(state: tuple[Array, Cache], position: Array) -> tuple[tuple[Array, Cache], Array]:
        last, cache = state
        hidden, cache = read_tokens(
            model, last[:, None], position, instructions=instructions, cache=cache
        )
        chosen = jnp.argmax(model.logits(hidden)[:, 0], axis=-1).astype(jnp.int32)
        return (chosen, cache), chosen

    start = (jnp.zeros(len(tokens), jnp.int32), empty_cache(model, len(tokens), 1, max_tokens))
    return jax.lax.scan(step, start, jnp.arange(max_tokens))[1].T
