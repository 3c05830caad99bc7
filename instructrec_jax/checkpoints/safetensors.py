"""Safetensors files, read and written array by array.

The file is 8 bytes (length of the header, little-endian), a JSON header {name: {dtype, shape,
data_offsets}} and the arrays' bytes without gaps. Source: the format's description in
huggingface/safetensors. The package of that name maps whole files and writes whole dictionaries
only; this reader and writer hold one array at a time, and check all sizes before reading any.
"""

import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.settings import misfit, shown

_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_GIVEN = {**_STORED, "F16": "float32"}  # which holds each of its values exactly
_CODES = {"float32": "F32", "bfloat16": "BF16"}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # as the format's own reader has it
_AGAIN = "copy or download the file again"


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one array is in a file.

    Attributes:
      path: its file.
      code: the format's own name of its type, such as "BF16".
      shape: of the array.
      start: first byte in the file.
    """

    path: Path
    code: str
    shape: tuple[int, ...]
    start: int

    @property
    def dtype(self) -> str:
        """What reading gives, "float32" or "bfloat16"; the code where it is neither."""
        return _GIVEN.get(self.code, self.code)


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Reads and checks what a file says it holds; no array is read.

    Args:
      path: a safetensors file.

    Returns:
      (the arrays by name, the file's own metadata).

    Raises:
      UserError: if the file is missing, cut short, too long or not of the format.
    """
    try:
        size = path.stat().st_size
        with files.open_input(path) as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES + 2 or not 2 <= length <= _MAX_HEADER_BYTES:
                raise _damaged(path, f"its {size} bytes begin with no header")
            if _LENGTH_BYTES + length > size:
                raise _damaged(path, f"its header takes {length} bytes and the file has {size}")
            header = files.parse_json(stream.read(length))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a safetensors file") from None
    except ValueError as error:
        raise _damaged(path, f"its header is no JSON ({error})") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    if expected := misfit(metadata, dict[str, str]):
        raise _damaged(path, f"its metadata is {shown(metadata)}, expected {expected}")
    entries, end = _entries(path, header, _LENGTH_BYTES + length)
    if size != end:
        raise _damaged(path, f"it has {size} bytes where its header promises {end}")
    return entries, metadata


def read_array(entry: Entry) -> np.ndarray:
    """Reads one array into memory of its own; 16-bit floats of small range become float32.

    Raises:
      UserError: if the file has changed since its header was read, cannot be read, or holds no
        floats of 16 or 32 bits there.
    """
    if entry.code not in _STORED:
        raise UserError(
            f"{entry.path} holds an array of type {entry.code}; expected one of {[*_STORED]}"
        )
    stored, count = jnp.dtype(_STORED[entry.code]), math.prod(entry.shape)
    try:
        array = np.fromfile(entry.path, stored, count, offset=entry.start)
    except OSError as error:
        raise UserError(f"{entry.path} cannot be read ({error}); {_AGAIN}") from None
    if array.size != count:
        raise _damaged(entry.path, f"it ends within the array at byte {entry.start}")
    return array.astype(entry.dtype, copy=False).reshape(entry.shape)


def write(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
    *,
    dtype: str = "float32",
) -> None:
    """Writes a file of arrays, asking for one after another.

    Args:
      path: the file; the caller makes sure that an unfinished one is never found.
      shapes: of the arrays, by name, in the order in which they are read and written.
      read: gives the array of a name, of any strides, float32 or bfloat16.
      metadata: the file's own metadata.
      dtype: what is written, "float32" or "bfloat16", to which float32 is rounded.
    """
    kind = jnp.dtype(dtype)
    ends = list(itertools.accumulate(kind.itemsize * math.prod(shape) for shape in shapes.values()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for (name, shape), start, end in zip(shapes.items(), [0, *ends], ends, strict=False):
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the arrays begin at a multiple of 8
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name, shape in shapes.items():
            array = np.ascontiguousarray(read(name), kind)
            assert array.shape == tuple(shape), (name, array.shape, shape)
            stream.write(array.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def _entries(path: Path, header: Any, data_start: int) -> tuple[dict[str, Entry], int]:
    """Returns the arrays that a header names, and where the file should end."""
    entries, places = {}, []
    try:
        for name, fields in header.items():
            code, shape = str(fields["dtype"]), tuple(map(int, fields["shape"]))
            start, end = map(int, fields["data_offsets"])
            if min(shape, default=0) < 0 or (end - start) * 8 != math.prod(shape) * _bits(code):
                raise _damaged(path, f"{name} is {code} {shape} in bytes {start} to {end}")
            entries[name] = Entry(path, code, shape, data_start + start)
            places.append((start, end))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header is of another form ({error!r})") from None
    expected = 0
    for start, end in sorted(places):
        if start != expected:
            raise _damaged(path, f"an array begins at byte {start}, expected {expected}")
        expected = end
    return entries, data_start + expected


def _bits(code: str) -> int:
    """Returns the bits of one element: 16 of "BF16", 8 of "F8_E4M3" and "BOOL"."""
    found = re.search(r"\d+", code)
    return int(found[0]) if found else 8


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is damaged or no safetensors file: {problem}; {_AGAIN}")
