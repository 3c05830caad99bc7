"""The few array shapes for which the scoring of a set is compiled, fitted to a sample of it."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from instructrec_jax.models.shared_decoding import NODES_PER_LOGITS
from instructrec_jax.scoring.prefix_trees import TokenRequest, TreeShape, count_nodes

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


_NUM_ROW_LENGTHS = 4  # each is compiled twice, for encoding and decoding
_CHUNK_LENGTHS = range(32, 257, 16)
_CHUNK_COST = 48  # of copying an instruction's keys and values for one more chunk, in nodes
_STEP_COST = 64  # of one more step, in tokens or nodes: each layer copies its weights once
_SPILL = 1.01  # candidates are not cut at the end of a decoding step
_MARGIN = 1.1  # room for candidates that are unlike the sample's


def fit_shapes(
    requests: Sequence[TokenRequest], *, max_tokens: int = 2048, num_groups: int = 1
) -> Shapes:
    """Returns shapes that waste little on requests like these.

    Args:
      requests: a sample of the set, the first shard of it for instance; at least one.
      max_tokens: of an encoding step of one group of devices; a decoding step takes half as many,
        since each of them is compared with the whole vocabulary.
      num_groups: groups of devices that share a step.
    """
    lengths = sorted((len(request.instruction) for request in requests), reverse=True)
    num_tokens = _best_num_tokens(lengths, max_tokens, num_groups)
    row_lengths, rows = _best_rows(lengths, num_tokens, num_groups)
    counts = [count_nodes(request.candidates) for request in requests]
    num_candidates = sum(len(request.candidates) for request in requests)
    longest = max(len(tokens) for request in requests for tokens in request.candidates)
    # A decoding step has what at most two encoding steps have left to decode.
    num_steps = math.ceil(sum(lengths) / num_tokens / num_groups)
    most_nodes = min(max_tokens // 2, 2 * math.ceil(sum(counts) / num_groups / num_steps))
    num_nodes = _best_num_nodes(sum(counts) / num_groups, max(most_nodes, longest))
    chunk_length = _best_chunk_length([min(count, num_nodes) for count in counts])
    num_chunks = sum(math.ceil(count / chunk_length) for count in counts)
    share = num_nodes / sum(counts)  # of the sample's nodes, in one step
    return Shapes(
        num_tokens=num_tokens,
        row_lengths=row_lengths,
        rows=rows,
        num_nodes=num_nodes,
        num_paths=math.ceil(_MARGIN * share * num_candidates) + 1,
        path_length=path_length(longest),
        chunk_length=chunk_length,
        num_chunks=math.ceil(share * num_chunks + 0.5),
    )


def _bins(lengths: Sequence[int], num_tokens: int) -> list[list[int]]:
    """Returns which instructions fill encoding steps of F tokens one after another."""
    return list(bins_of(enumerate(lengths), num_tokens, lambda _: len(lengths)))


def _best_num_tokens(lengths: Sequence[int], max_tokens: int, num_groups: int) -> int:
    """Returns the F with which the fewest tokens are encoded, padding included."""

    def num_encoded(size: int) -> int:
        return math.ceil(len(_bins(lengths, size)) / num_groups) * (size + _STEP_COST)

    most = rounded(max(min(max_tokens, sum(lengths)), lengths[0]))
    sizes = range(most, max(most // 2, rounded(lengths[0])) - 1, -ROUNDING)
    return min(sizes, key=num_encoded)


def _best_rows(
    lengths: Sequence[int], num_tokens: int, num_groups: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the few S, and I for each, with which attention costs least."""
    bins = _bins(lengths, num_tokens)
    steps = [bins[at : at + num_groups] for at in range(0, len(bins), num_groups)]
    longest = [rounded(lengths[step[0][0]]) for step in steps]
    most = [max(len(members) for members in step) for step in steps]

    def rows_of(row_lengths: Sequence[int]) -> list[int]:
        rows = [1] * len(row_lengths)
        for length, number in zip(longest, most, strict=True):
            index = bisect.bisect_left(row_lengths, length)
            rows[index] = max(rows[index], number)
        return rows

    def cost(row_lengths: Sequence[int]) -> int:
        rows = rows_of(row_lengths)
        indices = [bisect.bisect_left(row_lengths, length) for length in longest]
        return sum(rows[index] * row_lengths[index] ** 2 for index in indices)

    *shorter, last = sorted(set(longest))
    number = min(_NUM_ROW_LENGTHS - 1, len(shorter))
    row_lengths = min(
        ((*chosen, last) for chosen in itertools.combinations(shorter, number)), key=cost
    )
    return row_lengths, tuple(rows_of(row_lengths))


def _best_num_nodes(num_nodes: float, most: int) -> int:
    """Returns the E, up to `most` rounded up, with which the fewest nodes are decoded."""
    unit = NODES_PER_LOGITS
    sizes = range(unit * math.ceil(most / unit), unit * math.ceil(most / unit / 2) - 1, -unit)
    return min(sizes, key=lambda size: math.ceil(_SPILL * num_nodes / size) * (size + _STEP_COST))


def _best_chunk_length(counts: Sequence[int]) -> int:
    """Returns the Q with which the least is attended from and copied."""

    def cost(size: int) -> int:
        return sum(math.ceil(count / size) * (size + _CHUNK_COST) for count in counts)

    return min(_CHUNK_LENGTHS, key=cost)
