"""Candidates side by side in rows, so that short titles pay for their own tokens only."""

from collections.abc import Mapping, Sequence

import numpy as np

from instructrec_jax.errors import UserError

ROW_LENGTHS = (128, 256)


def pack_candidates(
    batch: Mapping[str, np.ndarray], row_lengths: Sequence[int] = ROW_LENGTHS
) -> dict[str, np.ndarray]:
    """Returns a ranking batch with its candidates packed into rows.

    Candidates keep their order: each goes after the one before it, or into the next row. The row
    length is the smallest of `row_lengths` in which every example needs one row; with the largest
    an example takes as many rows as it needs. So a few shapes serve all batches.

    Args:
      batch: `candidate_tokens` int32 [B, C, T], 0 = padding, and anything else, which is kept.
      row_lengths: ascending.

    Returns:
      The batch with, in place of `candidate_tokens`: `packed_tokens` and `packed_candidates`
      int32 [B, R, row length], the latter 1 + index of the candidate, 0 = padding; and
      `num_tokens` int32 [B, C].

    Raises:
      UserError: if a candidate is longer than the longest row.

    Example:
      Candidates [5, 1] and [6, 7, 1] in rows of 6 become tokens [5, 1, 6, 7, 1, 0] of candidates
      [1, 1, 2, 2, 2, 0].
    """
    tokens = batch["candidate_tokens"]
    num_tokens = (tokens > 0).sum(axis=-1, dtype=np.int32)
    if num_tokens.max(initial=0) > row_lengths[-1]:
        raise UserError(
            f"a candidate has {num_tokens.max()} tokens and a packed row holds {row_lengths[-1]}; "
            "shorten titles with `instructrec prepare --max_title_chars`"
        )
    longest = num_tokens.sum(axis=1).max(initial=0)
    row_length = next((size for size in row_lengths if size >= longest), row_lengths[-1])
    row, begin = _places(num_tokens, row_length)
    shape = (len(tokens), int(row.max(initial=0)) + 1, row_length)
    packed = {name: np.zeros(shape, np.int32) for name in ("packed_tokens", "packed_candidates")}
    example, candidate, place = np.nonzero(tokens)
    where = (example, row[example, candidate], begin[example, candidate] + place)
    packed["packed_tokens"][where] = tokens[example, candidate, place]
    packed["packed_candidates"][where] = candidate + 1
    kept = {name: value for name, value in batch.items() if name != "candidate_tokens"}
    return {**kept, **packed, "num_tokens": num_tokens}


def _places(num_tokens: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of each candidate and where it begins in it, both int [B, C]."""
    row, begin = np.zeros_like(num_tokens), np.zeros_like(num_tokens)
    current, used = np.zeros(len(num_tokens), np.int32), np.zeros(len(num_tokens), np.int32)
    for column, length in enumerate(num_tokens.T):
        is_full = used + length > row_length
        current, used = current + is_full, np.where(is_full, 0, used)
        row[:, column], begin[:, column] = current, used
        used = used + length
    return row, begin
