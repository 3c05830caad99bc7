"""Instruction records (artefact C) by position: where each one lies, read and checked alone.

A TFRecord file holds for each record its length (8 bytes), a checksum of the length (4), the record
and a checksum of it (4): the CRC-32C, rotated and shifted.
"""

import mmap
import os
import struct
from collections.abc import Collection
from pathlib import Path

import google_crc32c
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.pipeline import record_store
from instructrec_jax.pipeline.record_store import FIELDS, INTEGERS, RecordSource, damaged

_HEAD, _TAIL = 12, 4


class RecordIndex:
    """The records of one config and split, in file order."""

    def __init__(self, source: RecordSource, split: str) -> None:
        """Notes where each record begins; no record is parsed.

        Raises:
          UserError: if a file is missing or damaged.
        """
        self._source, self._split = source, split
        self._paths = source.files(split)
        self._begins = [_begins(path) for path in self._paths]
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
                    whole = os.pread(opened.fileno(), end - begin, begin)
                    record, stored = whole[_HEAD:-_TAIL], whole[-_TAIL:]
                    if struct.pack("<I", masked_checksum(record)) != stored:
                        raise damaged(path.parent, _at(path, begin))
                    found[number] = record
        return [found[number] for number in range(len(positions))]


def parsed(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns a record, scalar string as `read` gives it, with the dtypes that TFDS gives it."""
    spec = {name: record_store.feature_spec(name) for name in FIELDS}
    record = tf.io.parse_single_example(serialized, spec)
    return {k: tf.cast(v, tf.int32) if k in INTEGERS else v for k, v in record.items()}


def _begins(path: Path) -> NDArray[np.int64]:
    """Returns where each record of a file begins, and at last where the file ends."""
    begins, end = [0], path.stat().st_size
    if not end:
        return np.array(begins)
    with (
        open(path, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        while (begin := begins[-1]) < end:
            if begin + _HEAD > end:
                raise damaged(path.parent, _at(path, begin))
            (length,) = struct.unpack_from("<Q", mapped, begin)
            begins.append(begin + _HEAD + length + _TAIL)
    if begins[-1] != end:
        raise damaged(path.parent, _at(path, begins[-2]))
    return np.array(begins)


def _at(path: Path, begin: int) -> str:
    return f"the record at byte {begin} of {path.name}"


def masked_checksum(data: bytes) -> int:
    """Returns the checksum that a TFRecord file holds of some bytes."""
    value = google_crc32c.value(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
