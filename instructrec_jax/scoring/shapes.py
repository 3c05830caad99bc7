"""The few array shapes for which the scoring of a set is compiled, fitted to a sample of it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from instructrec_jax.models.shared_decoding import NODES_PER_LOGITS
from instructrec_jax.scoring.prefix_trees import TreeShape, count_nodes
from instructrec_jax.scoring.requests import TokenRequest

_ROUNDING = 16  # sizes are multiples of it, so that vector units are filled
_NUM_ROW_LENGTHS = 3
_CHUNK_LENGTHS = range(32, 257, 16)
# What it costs to copy an instruction's keys and values for one more chunk, in nodes.
_CHUNK_COST = 48
_SPILL = 1.01  # candidates are not cut at the end of a step
_MARGIN = 1.1  # room for requests that are unlike the sample


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
        return next((size for size in self.row_lengths if longest <= size), _rounded(longest))

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
            path_length=max(self.path_length, _path_length(longest)),
            num_chunks=self.num_chunks,
            chunk_length=self.chunk_length,
            row_length=row_length,
        )

    def encoding_bins(self, requests: Sequence[TokenRequest]) -> Iterator[list[int]]:
        """Yields the indices of the requests of each encoding step, longest first."""
        lengths = [len(request.instruction) for request in requests]
        members: list[int] = []
        used = 0
        for index in _longest_first(lengths):
            most = members and self.num_instructions(self.row_length(lengths[members[0]]))
            if members and (used + lengths[index] > self.num_tokens or len(members) == most):
                yield members
                members, used = [], 0
            members.append(index)
            used += lengths[index]
        if members:
            yield members

    def grown(self, requests: Sequence[TokenRequest]) -> "Shapes":
        """Returns shapes in which every one of the requests has room."""
        longest = max((len(request.instruction) for request in requests), default=0)
        title = max((len(t) for request in requests for t in request.candidates), default=0)
        return dataclasses.replace(
            self,
            num_tokens=max(self.num_tokens, _rounded(longest)),
            num_nodes=max(self.num_nodes, _rounded(title)),
            chunk_length=max(self.chunk_length, math.ceil(title / self.num_chunks)),
        )


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
    counts = [count_nodes(request.candidates) for request in requests]
    num_candidates = sum(len(request.candidates) for request in requests)
    longest = max(len(tokens) for request in requests for tokens in request.candidates)
    # A decoding step has what at most two encoding steps have left to decode.
    num_steps = math.ceil(sum(lengths) / num_tokens / num_groups)
    most_nodes = min(max_tokens // 2, 2 * math.ceil(sum(counts) / num_groups / num_steps))
    num_nodes = _best_num_nodes(sum(counts) / num_groups, max(most_nodes, longest))
    chunk_length = _chunk_length([min(count, num_nodes) for count in counts])
    num_chunks = sum(math.ceil(count / chunk_length) for count in counts)
    share = _MARGIN * num_nodes / sum(counts)  # of the sample's nodes, in one step
    row_lengths = _row_lengths(lengths)
    return Shapes(
        num_tokens=num_tokens,
        row_lengths=row_lengths,
        rows=_rows(lengths, row_lengths, num_tokens),
        num_nodes=num_nodes,
        num_paths=math.ceil(share * num_candidates) + 1,
        path_length=_path_length(longest),
        chunk_length=chunk_length,
        num_chunks=math.ceil(share * num_chunks) + 1,
    )


def _rounded(size: float) -> int:
    return _ROUNDING * math.ceil(size / _ROUNDING)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return np.argsort(-np.asarray(lengths), kind="stable").tolist()


def _best_num_tokens(lengths: Sequence[int], max_tokens: int, num_groups: int) -> int:
    """Returns the F with which the fewest tokens are encoded, padding included."""

    def num_encoded(size: int) -> int:
        num_bins, used = 1, 0
        for length in lengths:
            if used + length > size:
                num_bins, used = num_bins + 1, 0
            used += length
        return math.ceil(num_bins / num_groups) * size

    most = _rounded(max(max_tokens, lengths[0]))
    sizes = range(most, max(most // 2, _rounded(lengths[0])) - 1, -_ROUNDING)
    return min(sizes, key=num_encoded)


def _best_num_nodes(num_nodes: float, most: int) -> int:
    """Returns the E, up to `most` rounded up, with which the fewest nodes are decoded."""
    size = NODES_PER_LOGITS // 2
    sizes = range(size * math.ceil(most / size), size * math.ceil(most / size / 2) - 1, -size)
    return min(sizes, key=lambda each: math.ceil(_SPILL * num_nodes / each) * (each + size // 8))


def _path_length(longest: int) -> int:
    return _ROUNDING // 4 * math.ceil(longest / (_ROUNDING // 4))


def _row_lengths(lengths: Sequence[int]) -> list[int]:
    """Returns the S that split the sorted lengths into equal parts, ascending."""
    places = [len(lengths) * part // _NUM_ROW_LENGTHS for part in range(_NUM_ROW_LENGTHS)]
    return sorted({_rounded(lengths[place]) for place in places})


def _chunk_length(counts: Sequence[int]) -> int:
    """Returns the Q with which the least is attended from and copied."""

    def cost(size: int) -> int:
        return sum(math.ceil(count / size) * (size + _CHUNK_COST) for count in counts)

    return min(_CHUNK_LENGTHS, key=cost)


def _rows(lengths: Sequence[int], row_lengths: Sequence[int], num_tokens: int) -> list[int]:
    """Returns the I for each S: as many instructions as usually fill F, with a margin."""
    rows, shorter = [], 0
    for row_length in row_lengths:
        own = [length for length in lengths if shorter < length <= row_length]
        rows.append(math.ceil(_MARGIN * num_tokens / (sum(own) / len(own))))
        shorter = row_length
    return rows
