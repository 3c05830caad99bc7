"""In which order a set of requests is encoded and decoded, in steps of a few fixed shapes.

Instructions are taken longest first and laid side by side, as many as an encoding step holds. What
the decoder needs of them stays in one half of the memory until all their candidates are decoded;
meanwhile the other half takes the next instructions, so that a decoding step is full even where the
candidates of one encoding step do not fill it.

With several groups of devices each step holds one part for each of them.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from instructrec_jax.models.shared_decoding import FlatInstructions, PrefixTrees
from instructrec_jax.scoring.prefix_trees import Tokens, TreeBuilder, reading_order
from instructrec_jax.scoring.requests import TokenRequest
from instructrec_jax.scoring.shapes import Shapes

NUM_HALVES = 2
_Part = TypeVar("_Part", FlatInstructions, PrefixTrees)
Place = tuple[int, int]  # a request and one of its candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeStep:
    """Instructions to encode.

    Attributes:
      instructions: arrays [groups, ...].
      half: which half of the memory they go to.
    """

    instructions: FlatInstructions
    half: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """Candidates to decode against what is in memory.

    Attributes:
      trees: arrays [groups, ...].
      places: of each group, request and candidate of each path.
    """

    trees: PrefixTrees
    places: Sequence[Sequence[Place]]


@dataclasses.dataclass
class _Waiting:
    """Candidates of one encoded instruction that are not decoded yet."""

    request: int
    candidates: list[tuple[Tokens, int]]
    begin: int
    length: int
    step: int
    row_length: int


def num_halves(requests: Sequence[TokenRequest], shapes: Shapes, *, num_groups: int = 1) -> int:
    """Returns how much memory `schedule` needs, in halves: one where a single step encodes all."""
    num_bins = len(list(shapes.encoding_bins(requests, num_groups=num_groups)))
    return min(NUM_HALVES, math.ceil(num_bins / num_groups))


def schedule(
    requests: Sequence[TokenRequest], shapes: Shapes, *, num_groups: int = 1
) -> Iterator[EncodeStep | DecodeStep]:
    """Yields the steps that score the requests."""
    waiting: list[collections.deque[_Waiting]] = [collections.deque() for _ in range(num_groups)]
    every = list(shapes.encoding_bins(requests, num_groups=num_groups))
    for step, first in enumerate(range(0, len(every), num_groups)):
        rows = every[first : first + num_groups]
        while any(queue and queue[0].step <= step - NUM_HALVES for queue in waiting):
            yield _decode_step(waiting, shapes)
        bins = [*rows, *([()] * (num_groups - len(rows)))]
        half = step % NUM_HALVES
        row_length = shapes.row_length(max(_lengths(requests, itertools.chain(*bins))))
        yield EncodeStep(
            instructions=_stacked([_flat(requests, b, shapes, row_length) for b in bins]), half=half
        )
        for queue, members in zip(waiting, bins, strict=True):
            begin = half * shapes.num_tokens
            for index in members:
                length = len(requests[index].instruction)
                order = reading_order(requests[index].candidates)
                queue.append(_Waiting(index, order, begin, length, step, row_length))
                begin += length
        while any(_num_nodes(queue) >= shapes.num_nodes for queue in waiting):
            yield _decode_step(waiting, shapes)
    while any(waiting):
        yield _decode_step(waiting, shapes)


def _lengths(requests: Sequence[TokenRequest], indices: Iterator[int]) -> list[int]:
    return [len(requests[index].instruction) for index in indices]


def _num_nodes(queue: collections.deque[_Waiting]) -> int:
    """Returns how many nodes wait, without what they share: at least as many as there will be."""
    return sum(len(tokens) for item in queue for tokens, _ in item.candidates)


def _flat(
    requests: Sequence[TokenRequest], members: Sequence[int], shapes: Shapes, row_length: int
) -> FlatInstructions:
    """Returns the instructions of some requests side by side."""
    num_rows = shapes.num_instructions(row_length)
    tokens, place = np.zeros((2, shapes.num_tokens), np.int32)
    begin, length = np.zeros((2, num_rows), np.int32)
    end = 0
    for row, index in enumerate(members):
        instruction = requests[index].instruction
        begin[row], length[row] = end, len(instruction)
        end += len(instruction)
        tokens[begin[row] : end] = instruction
        place[begin[row] : end] = row * row_length + np.arange(len(instruction))
    return FlatInstructions(
        tokens=tokens, begin=begin, length=length, place=place, row_length=row_length
    )


def _decode_step(waiting: Sequence[collections.deque[_Waiting]], shapes: Shapes) -> DecodeStep:
    """Takes as many candidates from each group's queue as a decoding step holds."""
    row_length = max(queue[0].row_length for queue in waiting if queue)
    longest = max(
        (len(t) for queue in waiting for item in queue for t, _ in item.candidates), default=1
    )
    shape = shapes.tree_shape(row_length, longest)
    parts, places = [], []
    for queue in waiting:
        builder = TreeBuilder(shape)
        taken: list[Place] = []
        while queue:
            item = queue[0]
            number = builder.add(item.candidates, begin=item.begin, length=item.length)
            taken += [(item.request, index) for _, index in item.candidates[:number]]
            item.candidates = item.candidates[number:]
            if item.candidates:
                break
            queue.popleft()
        parts.append(builder.arrays())
        places.append(taken)
    return DecodeStep(trees=_stacked(parts), places=places)


def _stacked(parts: Sequence[_Part]) -> _Part:
    """Returns the groups' arrays side by side, [groups, ...]."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)
