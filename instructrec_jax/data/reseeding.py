"""Many short random streams, one a seed, without making a generator anew for each.

Making `numpy.random.default_rng(seed)` takes longer than drawing the few numbers an example needs.
Here the seeds' states are computed for all at once, by the two algorithms that NumPy documents and
keeps unchanged (SeedSequence and PCG64, M. E. O'Neill), and one generator is set to each in turn.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
_POOL_SIZE = 4  # words that SeedSequence mixes
_STATE_WORDS = 8  # 32-bit words that PCG64 is seeded with
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
_SHIFT = np.uint32(16)
_WORD = (1 << 32) - 1
_PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
_PCG_WORD = (1 << 128) - 1


def generators(seeds: npt.NDArray[np.uint64]) -> Iterator[np.random.Generator]:
    """Yields for each seed a generator that draws what `numpy.random.default_rng(seed)` would.

    It is one object, set anew each time: what is drawn from it must be drawn before the next.

    Args:
      seeds: [streams].
    """
    bits = np.random.PCG64(0)
    generator = np.random.Generator(bits)
    state = {"state": 0, "inc": 0}
    full: Any = {"bit_generator": "PCG64", "state": state, "has_uint32": 0, "uinteger": 0}
    for high, low, high_inc, low_inc in _seed_words(seeds).tolist():
        increment = ((high_inc << 64 | low_inc) << 1 | 1) & _PCG_WORD
        start = (increment + (high << 64 | low)) & _PCG_WORD
        state["inc"] = increment
        state["state"] = (start * _PCG_MULTIPLIER + increment) & _PCG_WORD
        bits.state = full
        yield generator


def _seed_words(seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns [streams, 4], each row `SeedSequence(seed).generate_state(4, numpy.uint64)`."""
    constant = _INIT_A

    def hashed(word: Words) -> Words:
        nonlocal constant
        word = word ^ np.uint32(constant)
        constant = constant * _MULT_A & _WORD
        word = word * np.uint32(constant)
        return word ^ word >> _SHIFT

    def mixed(one: Words, other: Words) -> Words:
        word = one * _MIX_LEFT - other * _MIX_RIGHT
        return word ^ word >> _SHIFT

    nothing = np.zeros(len(seeds), dtype=np.uint32)
    low, high = seeds.astype(np.uint32), (seeds >> np.uint64(32)).astype(np.uint32)
    pool = [hashed(word) for word in (low, high, nothing, nothing)]
    for source in range(_POOL_SIZE):
        for target in range(_POOL_SIZE):
            if source != target:
                pool[target] = mixed(pool[target], hashed(pool[source]))
    words = np.empty((len(seeds), _STATE_WORDS), dtype=np.uint32)
    constant = _INIT_B
    for place in range(_STATE_WORDS):
        word = pool[place % _POOL_SIZE] ^ np.uint32(constant)
        constant = constant * _MULT_B & _WORD
        word = word * np.uint32(constant)
        words[:, place] = word ^ word >> _SHIFT
    wide = words.astype(np.uint64)
    return wide[:, 0::2] | wide[:, 1::2] << np.uint64(32)
