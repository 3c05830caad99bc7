"""Fits the shapes of scoring steps to a sample of requests, so that little of them is padding."""

import bisect
import itertools
import math
from collections.abc import Sequence

from instructrec_jax.models.shared_decoding import NODES_PER_LOGITS
from instructrec_jax.scoring.prefix_trees import count_nodes
from instructrec_jax.scoring.requests import TokenRequest
from instructrec_jax.scoring.shapes import ROUNDING, Shapes, bins_of, path_length, rounded

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
            place = bisect.bisect_left(row_lengths, length)
            rows[place] = max(rows[place], number)
        return rows

    def cost(row_lengths: Sequence[int]) -> int:
        rows = rows_of(row_lengths)
        places = [bisect.bisect_left(row_lengths, length) for length in longest]
        return sum(rows[place] * row_lengths[place] ** 2 for place in places)

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
