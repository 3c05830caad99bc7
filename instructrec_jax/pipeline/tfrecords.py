"""TFRecord files by byte: where each record lies, and which one is not as it was written.

A file holds for each record its length (8 bytes), a checksum of the length (4), the record and a
checksum of it (4): the CRC-32C, rotated and shifted.
"""

import mmap
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError

_LENGTH, _HEAD, _TAIL = 8, 12, 4


def record_begins(path: Path) -> NDArray[np.int64]:
    """Returns where each record of a file begins, and at last where the file ends.

    Raises:
      UserError: if the file is cut short.
    """
    begins, end = [0], path.stat().st_size
    if not end:
        return np.array(begins)
    with (
        open(path, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        while (begin := begins[-1]) < end:
            if begin + _HEAD > end:
                raise _damaged_at(path, begin)
            (length,) = struct.unpack_from("<Q", mapped, begin)
            begins.append(begin + _HEAD + length + _TAIL)
    if begins[-1] != end:
        raise _damaged_at(path, begins[-2])
    return np.array(begins)


def read_record(path: Path, descriptor: int, begin: int, end: int) -> bytes:
    """Returns a record of an open file.

    Args:
      path: the file, for messages.
      descriptor: of the open file.
      begin: first byte of the record.
      end: first byte of the next.

    Raises:
      UserError: if it is not the one that was written.
    """
    whole = os.pread(descriptor, end - begin, begin)
    record, head = whole[_HEAD:-_TAIL], whole[:_LENGTH]
    if _packed(head) != whole[_LENGTH:_HEAD] or _packed(record) != whole[-_TAIL:]:
        raise _damaged_at(path, begin)
    return record


def check_records(paths: Iterable[Path]) -> None:
    """Reads all records of files.

    Raises:
      UserError: naming file and byte of the first that is not as it was written.
    """
    for path in paths:
        with open(path, "rb") as opened:
            end = 0
            while head := os.pread(opened.fileno(), _HEAD, begin := end):
                if _packed(head[:_LENGTH]) != head[_LENGTH:]:
                    raise _damaged_at(path, begin)
                end = begin + _HEAD + struct.unpack_from("<Q", head)[0] + _TAIL
                read_record(path, opened.fileno(), begin, end)


def damaged(folder: Path, problem: str) -> UserError:
    """Returns the error for records that cannot be read."""
    # TensorFlow's words, without the operation that read and without what it failed with.
    problem = re.sub(r"^\{\{.*?\}\} |' failed with .*", "", problem)
    again = f"; remove {folder.parents[1]} and run `instructrec build` again"
    return UserError(f"the records in {folder} are damaged ({problem}){again}")


def _damaged_at(path: Path, begin: int) -> UserError:
    return damaged(path.parent, f"the record at byte {begin} of {path.name}")


def _packed(data: bytes) -> bytes:
    """Returns the checksum that a file holds of some bytes."""
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)
