"""The rows of a training process: which examples it takes, and how they are laid into rows.

Records are left out before they are rendered, which takes most of the pipeline's time. What is left
is rendered as if nothing had been left out: every record has its random seed before.

The rows are those of SeqIO's `EncDecFeatureConverter`, whose packing does not tell which examples a
row holds. Here they are named, and packing takes a small part of the time.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

import numpy as np
import tensorflow as tf

Batch = dict[str, np.ndarray]
# Feature of the examples, side of the model, what its tokens are called there.
_SIDES = (("inputs", "encoder", "input"), ("targets", "decoder", "target"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which examples of a stream are kept; of a mixture, those of each of its tasks.

    Attributes:
      index: of this process; of every `num_shares` examples of a task it keeps one.
      num_shares: number of processes.
      num_skipped: examples of this process that were read before.
    """

    index: int = 0
    num_shares: int = 1
    num_skipped: int = 0

    def lengths(self) -> dict[str, int]:
        """Returns the fields as entries of `sequence_length`, which reaches every preprocessor."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, lengths: Mapping[str, int]) -> Self:
        """Returns the selection that `lengths` gave."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: lengths[name] for name in names & lengths.keys()})

    def __call__(self, ds: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the dataset of the kept elements, in their order."""
        return ds.shard(self.num_shares, self.index).skip(self.num_skipped)


def single_rows(examples: Batch, lengths: Mapping[str, int]) -> Batch:
    """Returns one row per example.

    Args:
      examples: `inputs`, `targets` int [n, any], 0 = padding; `example_id` [n] bytes.
      lengths: tokens of "inputs" and "targets".

    Returns:
      A training batch (DESIGN.md section 5) of n rows, and `example_id` str [n, 1].
    """
    inputs, targets = (_widened(examples[name], lengths[name]) for name, *_ in _SIDES)
    ids = decoded(examples["example_id"])[:, None]
    return _with_decoder_inputs(
        {"encoder_input_tokens": inputs, "decoder_target_tokens": targets, "example_id": ids}
    )


def packed_rows(examples: Batch, lengths: Mapping[str, int]) -> Batch:
    """Returns rows of several examples: each goes after the one before it, or into the next row.

    Args:
      examples: as in `single_rows`, each with at least one token.
      lengths: tokens of "inputs" and "targets" of a row.

    Returns:
      A packed training batch, and `example_id` str [rows, most examples in a row], "" for none.
    """
    tokens = {name: examples[name][:, : lengths[name]] for name, *_ in _SIDES}
    sizes = np.stack([np.count_nonzero(tokens[name], axis=1) for name, *_ in _SIDES], axis=1)
    row, segment, begin = _places(sizes, [lengths[name] for name, *_ in _SIDES])
    num_rows = int(row[-1]) + 1
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
    ids = decoded(examples["example_id"])
    batch["example_id"] = np.full((num_rows, int(segment.max())), "", ids.dtype)
    batch["example_id"][row, segment - 1] = ids
    return _with_decoder_inputs(batch)


def rebatched(parts: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """Yields batches of equal size out of parts of any number of rows; a rest is kept back."""
    rest: list[Batch] = []
    for part in parts:
        rest.append(part)
        while sum(len(rows["example_id"]) for rows in rest) >= batch_size:
            merged = _concatenated(rest)
            batch = {name: rows[:batch_size] for name, rows in merged.items()}
            ids = batch["example_id"]
            yield {**batch, "example_id": ids[:, : num_examples(batch).max()]}
            rest = [{name: rows[batch_size:] for name, rows in merged.items()}]


def num_examples(batch: Batch) -> np.ndarray:
    """Returns how many examples each row of a batch holds."""
    if "decoder_segment_ids" in batch:
        return batch["decoder_segment_ids"].max(axis=1)
    return np.ones(len(batch["example_id"]), np.int32)


def _places(sizes: np.ndarray, limits: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, segment (from 1) [n] and first token [n, 2] of examples of some sizes [n, 2]."""
    places, current, number, used = [], 0, 0, [0, 0]
    for size in sizes.tolist():
        if any(u + s > limit for u, s, limit in zip(used, size, limits, strict=True)):
            current, number, used = current + 1, 0, [0, 0]
        number += 1
        places.append((current, number, *used))
        used = [u + s for u, s in zip(used, size, strict=True)]
    found = np.array(places, np.int32)
    return found[:, 0], found[:, 1], found[:, 2:]


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


def _concatenated(parts: list[Batch]) -> Batch:
    """Returns the rows of all parts, whose ids may differ in width."""
    width = max(part["example_id"].shape[1] for part in parts)
    pad = lambda ids: np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values="")  # noqa: E731
    parts = [{**part, "example_id": pad(part["example_id"])} for part in parts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def decoded(ids: np.ndarray) -> np.ndarray:
    """Returns bytes as str."""
    return np.char.decode(ids.astype(np.bytes_), "utf-8")
