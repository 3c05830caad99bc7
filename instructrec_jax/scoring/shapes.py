"""The few array shapes for which the scoring of a set is compiled."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from instructrec_jax.scoring.prefix_trees import TreeShape
from instructrec_jax.scoring.requests import TokenRequest

ROUNDING = 16  # lengths are multiples of it, so that vector units are filled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of encoding and decoding steps; the letters are those of `models.shared_decoding`.

    Attributes:
      num_tokens: F, instruction tokens of an encoding step.
      row_lengths: S, ascending; a step takes the smallest that holds its longest instruction.
      rows: I for each of them.
      num_nodes: E, nodes of a decoding step.
      num_paths: P.
      path_length: T.
      chunk_length: Q.
      num_chunks: K.
    """

    num_tokens: int
    row_lengths: Sequence[int]
    rows: Sequence[int]
    num_nodes: int
    num_paths: int
    path_length: int
    chunk_length: int
    num_chunks: int

    def row_length(self, longest: int) -> int:
        """Returns the S of a step whose longest instruction has that many tokens."""
        return next((size for size in self.row_lengths if longest <= size), rounded(longest))

    def num_instructions(self, row_length: int) -> int:
        """Returns I, the most instructions of an encoding step with that S."""
        sizes = dict(zip(self.row_lengths, self.rows, strict=True))
        return sizes.get(row_length, self.rows[-1])

    def tree_shape(self, row_length: int, longest: int) -> TreeShape:
        """Returns the sizes of a decoding step.

        Args:
          row_length: S of the instructions that are read.
          longest: tokens of the longest candidate.
        """
        return TreeShape(
            num_nodes=self.num_nodes,
            num_paths=self.num_paths,
            path_length=max(self.path_length, path_length(longest)),
            num_chunks=self.num_chunks,
            chunk_length=self.chunk_length,
            row_length=row_length,
        )

    def encoding_bins(
        self, requests: Sequence[TokenRequest], *, num_groups: int = 1
    ) -> Iterator[list[int]]:
        """Yields the indices of the requests that each group encodes in a step, longest first."""
        lengths = [len(request.instruction) for request in requests]
        order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
        most = lambda longest: self.num_instructions(self.row_length(longest))  # noqa: E731
        items = ((index, lengths[index]) for index in order)
        return bins_of(items, self.num_tokens, most, num_groups)

    def grown(self, requests: Sequence[TokenRequest]) -> "Shapes":
        """Returns shapes in which every one of the requests has room."""
        longest = max((len(request.instruction) for request in requests), default=0)
        title = max((len(t) for request in requests for t in request.candidates), default=0)
        return dataclasses.replace(
            self,
            num_tokens=max(self.num_tokens, rounded(longest)),
            num_nodes=max(self.num_nodes, rounded(title)),
            chunk_length=max(self.chunk_length, math.ceil(title / self.num_chunks)),
        )


def bins_of(
    items: Iterable[tuple[int, int]], size: int, most: Callable[[int], int], num_groups: int = 1
) -> Iterator[list[int]]:
    """Yields items in their order, as many as fit, bin after bin.

    Args:
      items: pairs of an index and a length.
      size: what the lengths in a bin sum up to at most.
      most: how many items a bin takes at most, given the length of the first item of its step.
      num_groups: bins of a step.

    Example:
      Lengths 5, 4, 3 and 3 in bins of 7 are the bins [0], [1, 2] and [3].
    """
    members: list[int] = []
    used = limit = num_bins = 0
    for index, length in items:
        if members and (used + length > size or len(members) == limit):
            yield members
            members, used, num_bins = [], 0, num_bins + 1
        if not members and num_bins % num_groups == 0:
            limit = most(length)
        members.append(index)
        used += length
    if members:
        yield members


def rounded(length: float) -> int:
    """Returns a length rounded up."""
    return ROUNDING * math.ceil(length / ROUNDING)


def path_length(longest: int) -> int:
    """Returns the T for titles of at most that many tokens."""
    return 4 * math.ceil(longest / 4)
