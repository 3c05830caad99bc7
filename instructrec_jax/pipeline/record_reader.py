"""Reads instruction records a few thousand at a time: for passes over all of them."""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline.record_store import VERSION, data_dir_in_use
from instructrec_jax.records import InstructionRecord

_BATCH_SIZE = 4096
_NUM_THREADS = 2
_INTEGERS = frozenset({"position", "target_id", "candidate_ids"})
_LISTS = frozenset(
    {
        "history",
        "preference",
        "vague_intention",
        "second_vague_intention",
        "candidate_ids",
        "candidates",
    }
)
Columns = dict[str, list[Any]]


def column_batches(
    dataset: str, config: str, split: str, fields: Collection[str]
) -> Iterator[Columns]:
    """Yields some fields of all records of a split, in file order.

    Nothing but these fields is parsed, and texts stay bytes: a pass over 100,000 records takes
    about a second.

    Args:
      dataset: name of a dataset in the data_dir in use.
      config: "leave_one_out" or "product_search".
      split: "train", "validation" or "test"; without any records it yields nothing.
      fields: names of fields of `InstructionRecord`.

    Yields:
      By field, one entry a record: an int or bytes, or a list of them.

    Raises:
      UserError: if a file is damaged.
    """
    folder = data_dir_in_use() / dataset / config / VERSION
    paths = sorted(str(path) for path in folder.glob(f"{dataset}-{split}.tfrecord-*"))
    if not paths:
        return
    spec = {name: _feature(name) for name in fields}
    ds = tf.data.TFRecordDataset(paths).batch(_BATCH_SIZE)
    ds = ds.map(lambda batch: tf.io.parse_example(batch, spec))
    options = tf.data.Options()
    options.threading.private_threadpool_size = _NUM_THREADS
    options.autotune.enabled = False
    try:
        for batch in ds.with_options(options).prefetch(1):
            yield {name: _rows(values) for name, values in batch.items()}
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise UserError(
            f"a {split} file of records in {folder} is damaged ({error.message.splitlines()[0]}); "
            f"remove {folder.parents[1]} and run `instructrec build` again"
        ) from None


def as_record(example: Mapping[str, Any]) -> InstructionRecord:
    """Returns a record from the numpy values that TFDS gives of it."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return tuple(plain(part) for part in value.tolist())
        return value.decode() if isinstance(value, bytes) else int(value)

    names = [field.name for field in dataclasses.fields(InstructionRecord)]
    return InstructionRecord(**{name: plain(example[name]) for name in names})


def _feature(name: str) -> tf.io.RaggedFeature | tf.io.FixedLenFeature:
    """Returns how a field is parsed."""
    dtype = tf.int64 if name in _INTEGERS else tf.string
    if name in _LISTS:
        return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    return tf.io.FixedLenFeature([], dtype)


def _rows(values: tf.Tensor | tf.RaggedTensor) -> list[Any]:
    """Returns one entry a record."""
    if not isinstance(values, tf.RaggedTensor):
        return values.numpy().tolist()
    flat, ends = values.values.numpy().tolist(), values.row_splits.numpy().tolist()
    return [flat[begin:end] for begin, end in itertools.pairwise(ends)]
