"""How training examples are laid into rows.

A row is as SeqIO's `EncDecFeatureConverter` lays it out, whose packing does not tell which examples
a row holds. Here they are named, and rows are fuller: an example goes into the fullest row of its
window that it fits into, not into the last one or the next.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Batch = dict[str, np.ndarray]
# Feature of the examples, side of the model, what its tokens are called there.
_SIDES = (("inputs", "encoder", "input"), ("targets", "decoder", "target"))
_NOTHING: dict[str, str | int] = {
    "example_id": "",
    "example_number": -1,
}  # of the examples that a row does not have


def single_rows(examples: Batch, lengths: Mapping[str, int]) -> Batch:
    """Returns one row per example.

    Args:
      examples: `inputs`, `targets` int [n, any], 0 = padding; `example_id` [n] bytes;
        `example_number` [n] int64.
      lengths: tokens of "inputs" and "targets".

    Returns:
      A training batch (DESIGN.md section 5) of n rows; `example_id` str, `example_number` [n, 1].
    """
    inputs, targets = (_widened(examples[name], lengths[name]) for name, *_ in _SIDES)
    return _with_decoder_inputs(
        {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "example_id": decoded(examples["example_id"])[:, None],
            "example_number": examples["example_number"][:, None],
        }
    )


def packed_rows(examples: Batch, lengths: Mapping[str, int]) -> Batch:
    """Returns rows of several examples, in the order of their first ones.

    Args:
      examples: a window of them, as in `single_rows`, each with at least one token.
      lengths: tokens of "inputs" and "targets" of a row.

    Returns:
      A packed training batch; `example_id` str and `example_number` [rows, most examples in a
      row], "" and -1 for none.
    """
    tokens = {name: examples[name][:, : lengths[name]] for name, *_ in _SIDES}
    sizes = np.stack([np.count_nonzero(tokens[name], axis=1) for name, *_ in _SIDES], axis=1)
    row = best_fit(sizes, [lengths[name] for name, *_ in _SIDES])
    segment, begin = _places(row, sizes)
    num_rows = int(row.max()) + 1
    batch: Batch = {}
    for side, (name, stack, kind) in enumerate(_SIDES):
        shape = (num_rows, lengths[name])
        example, place = np.nonzero(tokens[name])
        where = (row[example], begin[example, side] + place)
        for made, values in (
            (f"{stack}_{kind}_tokens", tokens[name][example, place]),
            (f"{stack}_segment_ids", segment[example]),
            (f"{stack}_positions", place),
        ):
            batch[made] = np.zeros(shape, np.int32)
            batch[made][where] = values
    told = {**examples, "example_id": decoded(examples["example_id"])}
    for name, nothing in _NOTHING.items():
        batch[name] = np.full((num_rows, int(segment.max())), nothing, told[name].dtype)
        batch[name][row, segment - 1] = told[name]
    return _with_decoder_inputs(batch)


def best_fit(sizes: np.ndarray, limits: Sequence[int]) -> np.ndarray:
    """Returns which row each example goes into: the fullest one it fits into, the largest first.

    Rows are numbered by their first example, so that long and short ones stay mixed.

    Args:
      sizes: [n, sides] tokens of the examples.
      limits: [sides] tokens of a row.

    Returns:
      [n] int32.

    Example:
      Sizes 6, 7, 4, 2 in rows of 10 give 0, 1, 0, 1.
    """
    shares = sizes / np.asarray(limits)
    free = np.ones((len(sizes), len(limits)))  # of as many rows as there may be
    row, num_rows = np.empty(len(sizes), np.int32), 0
    for example in np.argsort(-shares.max(axis=1), kind="stable").tolist():
        rest = free[: num_rows + 1] - shares[example]
        fits = rest.min(axis=1) > -1e-9
        best = int(np.where(fits, rest.sum(axis=1), np.inf).argmin())
        free[best], row[example] = rest[best], best
        num_rows = max(num_rows, best + 1)
    _, first = np.unique(row, return_index=True)
    return np.argsort(np.argsort(first)).astype(np.int32)[row]


def concatenated(parts: Sequence[Batch]) -> Batch:
    """Returns the rows of all parts, whose ids and numbers of examples may differ in width."""
    segments = [
        part["decoder_segment_ids"].max() for part in parts if "decoder_segment_ids" in part
    ]

    def of(part: Batch, name: str) -> np.ndarray:
        values = part[name]
        if not segments or name not in _NOTHING:
            return values
        values = values[:, : max(segments)]
        missing = ((0, 0), (0, max(segments) - values.shape[1]))
        return np.pad(values, missing, constant_values=_NOTHING[name])

    return {name: np.concatenate([of(part, name) for part in parts]) for name in parts[0]}


def _places(row: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns segment (from 1) [n] and first token [n, sides] of examples in their rows."""
    order = np.argsort(row, kind="stable")
    starts = np.flatnonzero(np.diff(row[order], prepend=-1))
    owner = row[order]
    before = np.cumsum(sizes[order], axis=0) - sizes[order]
    segment, begin = np.empty_like(row), np.empty_like(sizes)
    segment[order] = np.arange(len(row)) - starts[owner] + 1
    begin[order] = before - before[starts][owner]
    return segment, begin


def _with_decoder_inputs(batch: Batch) -> Batch:
    """Returns the batch with what the decoder reads, the targets shifted, and the loss weights."""
    targets = batch["decoder_target_tokens"]
    inputs = _shifted(targets)
    if (segments := batch.get("decoder_segment_ids")) is not None:
        inputs = inputs * (segments == _shifted(segments))
    weights = (targets > 0).astype(np.int32)
    return {**batch, "decoder_input_tokens": inputs, "decoder_loss_weights": weights}


def _shifted(tokens: np.ndarray) -> np.ndarray:
    return np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]


def _widened(tokens: np.ndarray, length: int) -> np.ndarray:
    """Returns int32 [n, length], cut or filled with 0."""
    tokens = tokens[:, :length].astype(np.int32)
    return np.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))


def decoded(ids: np.ndarray) -> np.ndarray:
    """Returns bytes as str."""
    return np.char.decode(ids.astype(np.bytes_), "utf-8")
