"""The order of training examples, a function of integers: nothing is read or kept to compute it.

The i-th example of a mixture is of some task, of which it is the k-th (`draws`). A task shows its
records epoch by epoch, each epoch in a permutation of its own (`permuted`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Integers = NDArray[np.int64]
_NUM_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Draws:
    """Consecutive examples of a mixture.

    Attributes:
      tasks: [n] index of the task of each.
      counts: [n] how many examples of that task came before it.
    """

    tasks: Integers
    counts: Integers


def draws(rates: Sequence[float], key: int, *, begin: int, number: int) -> Draws:
    """Returns which tasks the examples from `begin` on are of.

    The k-th example of a task with a share p of all comes at the time (k + u) / p, where u in
    [0, 1) depends on the key, the task and k alone, and examples are in the order of their times.
    So before a time t a task has had p t examples, up to one: that many are known without a look
    at the draws before.

    Args:
      rates: mixing rate of each task, above 0.
      key: of the order.
      begin: number of the first example.
      number: how many.
    """
    shares = np.asarray(rates, np.float64) / np.sum(rates)
    every = np.arange(len(shares))

    def times(tasks: Integers, counts: Integers) -> NDArray[np.float64]:
        jitter = hashed(key, tasks, counts) >> np.uint64(11)
        return (counts + jitter / 2.0**53) / shares[tasks]

    def counts_before(time: int) -> Integers:
        sure = np.floor(shares * time).astype(np.int64)
        return sure + (times(every, sure) < time)

    # Before a time t there are t examples, up to one of each task.
    first = counts_before(max(begin - len(shares), 0))
    last = counts_before(begin + number + len(shares))
    tasks = np.repeat(every, last - first)
    counts = np.arange(len(tasks)) - np.repeat(np.cumsum(last - first) - last, last - first)
    order = np.lexsort((tasks, times(tasks, counts)))[begin - first.sum() :][:number]
    return Draws(tasks[order], counts[order])


def permuted(positions: ArrayLike, sizes: ArrayLike, keys: ArrayLike) -> Integers:
    """Returns where permutations take positions.

    Each is a Feistel network over the bits of a position, repeated until it stays below the size.

    Args:
      positions: [n] from 0, below the size.
      sizes: [n] or scalar, of the permutation.
      keys: [n] or scalar; each key is another permutation.

    Returns:
      [n] from 0, below the size.

    Example:
      `permuted(range(5), 5, 7)` holds each of 0, 1, 2, 3, 4 once.
    """
    found, sizes, keys = np.broadcast_arrays(
        np.asarray(positions, np.uint64), np.asarray(sizes, np.uint64), np.asarray(keys, np.uint64)
    )
    num_bits = np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64)))
    half = np.ceil(num_bits / 2).astype(np.uint64)
    found, mask = found.copy(), (np.uint64(1) << half) - np.uint64(1)
    is_outside = np.ones(len(found), bool)
    while is_outside.any():
        left, right = found[is_outside] >> half[is_outside], found[is_outside] & mask[is_outside]
        for number in range(_NUM_ROUNDS):
            mixed = hashed(keys[is_outside], number, right) & mask[is_outside]
            left, right = right, left ^ mixed
        found[is_outside] = left << half[is_outside] | right
        is_outside = found >= sizes
    return found.astype(np.int64)


def hashed(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Returns a hash of integers, elementwise: the finaliser of SplitMix64, part by part.

    Args:
      *parts: of shapes that broadcast.
    """
    found = np.zeros(1, np.uint64)  # of arrays, since scalars warn where they overflow
    for part in parts:
        found = (found ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ found >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ found >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        found = found ^ found >> np.uint64(31)
    return found
