"""Instruction records (artefact C) by position, each read and checked alone."""

from collections.abc import Collection

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.pipeline import record_store
from instructrec_jax.pipeline.record_store import FIELDS, INTEGERS, RecordSource
from instructrec_jax.pipeline.tfrecords import read_record, record_begins


class RecordIndex:
    """The records of one config and split, in file order."""

    def __init__(self, source: RecordSource, split: str) -> None:
        """Notes where each record begins; no record is parsed.

        Raises:
          UserError: if a file is missing or damaged.
        """
        self._source, self._split = source, split
        self._paths = source.files(split)
        self._begins = [record_begins(path) for path in self._paths]
        self._first = np.cumsum([0, *(len(begins) - 1 for begins in self._begins)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def positions_with(self, needs: Collection[str]) -> NDArray[np.int64]:
        """Returns the positions of the records that have a text in each of some fields."""
        place, names = (self._source.dataset, self._source.config, self._split), sorted(needs)
        has_all = [
            all(map(any, values))
            for columns in record_store.column_batches(*place, names)
            for values in zip(*(columns[name] for name in names), strict=True)
        ]
        return np.flatnonzero(has_all)

    def read(self, positions: ArrayLike) -> list[bytes]:
        """Returns serialized records.

        Args:
          positions: [n] of the records, from 0.

        Raises:
          UserError: naming file and byte, if a record is not the one that was written.
        """
        positions = np.asarray(positions)
        owners = np.searchsorted(self._first, positions, side="right") - 1
        found: dict[int, bytes] = {}
        for owner in np.unique(owners).tolist():
            path, begins = self._paths[owner], self._begins[owner]
            with open(path, "rb") as opened:
                for number in np.flatnonzero(owners == owner).tolist():
                    place = int(positions[number] - self._first[owner])
                    begin, end = begins[place : place + 2].tolist()
                    found[number] = read_record(path, opened.fileno(), begin, end)
        return [found[number] for number in range(len(positions))]


def parsed(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns a record, scalar string as `read` gives it, with the dtypes that TFDS gives it."""
    spec = {name: record_store.feature_spec(name) for name in FIELDS}
    record = tf.io.parse_single_example(serialized, spec)
    return {k: tf.cast(v, tf.int32) if k in INTEGERS else v for k, v in record.items()}
