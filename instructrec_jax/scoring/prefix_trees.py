"""What is scored: token requests, and their candidates as prefix trees in flat host arrays."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.models.shared_decoding import PrefixTrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """One instruction and its candidates as token ids.

    Attributes:
      request_id: names the request in messages.
      instruction: int32 [S], ending in EOS, no padding.
      candidates: c arrays int32 [t], each ending in EOS, no padding; their lengths may differ.
    """

    request_id: str
    instruction: np.ndarray
    candidates: Sequence[np.ndarray]

    def __post_init__(self) -> None:
        """Checks that there is something to score.

        Raises:
          UserError: if there is no candidate, or nothing in one of them or in the instruction.
        """
        sizes = [len(tokens) for tokens in (self.instruction, *self.candidates)]
        if len(sizes) == 1 or not all(sizes):
            raise UserError(
                f"request {self.request_id!r} has an instruction of {sizes[0]} tokens and "
                f"candidates of {sizes[1:]}; expected at least one candidate and no empty text"
            )


Tokens = tuple[int, ...]
BEGIN = 0  # T5's decoder begins with the padding token


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeShape:
    """The sizes of the arrays, named as in `PrefixTrees`.

    Attributes:
      num_nodes: E.
      num_paths: P.
      path_length: T.
      num_chunks: K.
      chunk_length: Q.
      row_length: S, of the instructions that are read.
    """

    num_nodes: int
    num_paths: int
    path_length: int
    num_chunks: int
    chunk_length: int
    row_length: int


def reading_order(candidates: Sequence[np.ndarray]) -> list[tuple[Tokens, int]]:
    """Returns the candidates with their indices, those of a common prefix next to each other."""
    return sorted((tuple(tokens.tolist()), index) for index, tokens in enumerate(candidates))


def count_nodes(candidates: Sequence[np.ndarray]) -> int:
    """Returns the number of distinct prefixes, the empty one included.

    Example: [5, 6, 1], [5, 7, 1] and [5, 1] have four: none, 5, 5 6 and 5 7.
    """
    count = 0
    previous: Tokens = ()
    for tokens, _ in reading_order(candidates):
        path = (BEGIN, *tokens[:-1])
        count += len(path) - _num_shared(previous, path)
        previous = path
    return count


class TreeBuilder:
    """Fills one set of arrays with the candidates of one instruction after another."""

    def __init__(self, shape: TreeShape) -> None:
        self._shape = shape
        self._nodes: list[int] = []
        self._places: list[tuple[int, int]] = []  # of each node: its path and its depth there
        self._paths: list[list[int]] = []
        self._targets: list[Tokens] = []
        self._chunks: list[tuple[int, int, int]] = []  # begin, and the instruction's in memory
        self._chunk_of_node: list[tuple[int, int]] = []

    def add(self, candidates: Sequence[tuple[Tokens, int]], *, begin: int, length: int) -> int:
        """Adds candidates of one instruction while there is room.

        Args:
          candidates: what is left of its `reading_order`.
          begin: index of the instruction's first token in memory.
          length: its number of tokens.

        Returns:
          How many were added, from the first on.
        """
        shape, first = self._shape, len(self._nodes)
        most_nodes = min(
            shape.num_nodes, first + (shape.num_chunks - len(self._chunks)) * shape.chunk_length
        )
        previous: Tokens = ()
        path: list[int] = []
        num_added = 0
        for tokens, _ in candidates:
            read = (BEGIN, *tokens[:-1])
            num_shared = _num_shared(previous, read)
            begin_new, end = len(self._nodes), len(self._nodes) + len(read) - num_shared
            if end > most_nodes or len(self._paths) == shape.num_paths:
                break
            path = [*path[:num_shared], *range(begin_new, end)]
            self._places += [(len(self._paths), depth) for depth in range(num_shared, len(read))]
            self._nodes += read[num_shared:]
            self._paths.append(path)
            self._targets.append(tokens)
            previous = read
            num_added += 1
        for node in range(first, len(self._nodes)):
            if (node - first) % shape.chunk_length == 0:
                self._chunks.append((node, begin, length))
            self._chunk_of_node.append((len(self._chunks) - 1, (node - first) % shape.chunk_length))
        return num_added

    def arrays(self) -> PrefixTrees:
        """Returns the arrays, filled up with padding."""
        shape = self._shape
        paths = np.zeros((shape.num_paths, shape.path_length), np.int32)
        targets = np.zeros_like(paths)
        for row, (path, tokens) in enumerate(zip(self._paths, self._targets, strict=True)):
            paths[row, : len(path)] = path
            targets[row, : len(tokens)] = tokens
        chunks = _column_arrays(self._chunks, shape.num_chunks, 3)
        return PrefixTrees(
            nodes=_column_arrays([(node,) for node in self._nodes], shape.num_nodes, 1)[0],
            paths=paths,
            targets=targets,
            place_in_paths=_places(self._places, shape.num_nodes, shape.path_length),
            chunk_begin=chunks[0],
            place_in_chunks=_places(self._chunk_of_node, shape.num_nodes, shape.chunk_length),
            memory_begin=chunks[1],
            memory_length=chunks[2],
            chunk_length=shape.chunk_length,
            row_length=shape.row_length,
        )


def _num_shared(left: Tokens, right: Tokens) -> int:
    """Returns the length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _column_arrays(rows: Sequence[tuple[int, ...]], size: int, width: int) -> np.ndarray:
    """Returns [width, size] int32 of at most `size` rows, 0 after the last."""
    columns = np.zeros((width, size), np.int32)
    if rows:
        columns[:, : len(rows)] = np.asarray(rows, np.int32).T
    return columns


def _places(rows: Sequence[tuple[int, int]], size: int, row_length: int) -> np.ndarray:
    """Returns [size] int32, each (row, column) as one index among rows of that length."""
    row, column = _column_arrays(rows, size, 2)
    return row * row_length + column
