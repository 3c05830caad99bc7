"""The arrays of a T5X checkpoint by their stored names, in either container.

Today's T5X writes through Orbax: `checkpoint_<step>/state/_METADATA` names the arrays, which are in
an OCDBT key-value store. Until 2023 (the public Flan-T5) it wrote `checkpoint_<step>/checkpoint`,
a msgpack index, beside one zarr folder an array; small arrays stand in the index itself.

Names begin with `target.` (parameters) or `state.` (step and optimizer).
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from flax import serialization

from instructrec_jax import files
from instructrec_jax.checkpoints.arrays import (
    METADATA,
    Shape,
    Spec,
    StoredArray,
    open_arrays,
    read_specs,
)
from instructrec_jax.errors import UserError
from instructrec_jax.settings import misfit, shown

INDEX, STATE = "checkpoint", "state"
_HINT = "copy the checkpoint again, whole"
_GZIP_MIN_BYTES = 18
_TF_INDEX = b"model_checkpoint_path"


class ArrayFolder:
    """The arrays of one checkpoint folder; an array is opened when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        """Reads the names of a checkpoint's arrays.

        Args:
          folder: the folder named checkpoint_<step>.

        Raises:
          UserError: if the folder is of an interrupted save, or its index cannot be read.
        """
        if re.search(r"[.-]tmp-\d", folder.name):
            raise UserError(
                f"{folder} is of a save that was interrupted; take another checkpoint_<step>"
            )
        self.folder = folder
        self.container = "orbax" if (folder / STATE / METADATA).is_file() else "legacy"
        self._specs: dict[str, Spec] = {}
        self._in_index: dict[str, np.ndarray] = {}
        self._stated: dict[str, tuple[Any, Any]] = {}  # shape and dtype, where an index has them
        if self.container == "orbax":
            self._specs = read_specs(folder / STATE, self._fault)
            return
        for name, entry in _index_entries(folder):
            if isinstance(entry, np.ndarray):
                self._in_index[name] = entry
            else:
                self._specs[name] = _legacy_spec(name, entry, folder)
                self._stated[name] = entry.get("metadata", {}).get("shape"), entry.get("dtype")

    @property
    def names(self) -> list[str]:
        """Stored names of all arrays."""
        return [*self._specs, *self._in_index]

    def open(self, names: list[str]) -> dict[str, StoredArray]:
        """Opens arrays: headers are read and files' sizes checked, but no values.

        Raises:
          UserError: naming the array whose files are missing, cut or of another shape.
        """
        on_disk = [name for name in names if name in self._specs]
        found = open_arrays(self._specs, on_disk, self._fault)
        for name, (shape, dtype) in self._stated.items():
            if name in found:
                place = Path(self._specs[name]["kvstore"]["path"])
                _check_legacy(found[name], place, (tuple(shape or found[name].shape), dtype))
        for name in names:
            if (array := self._in_index.get(name)) is not None:
                found[name] = StoredArray(name, array.shape, str(array.dtype), array, self._fault)
        return found

    def _fault(self, message: str) -> UserError:
        return UserError(f"T5X checkpoint {self.folder} cannot be read: {message}; {_HINT}")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds what T5X writes for one step, in either container."""
    return (folder / STATE / METADATA).is_file() or (folder / INDEX).is_file()


def _index_entries(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields name and array, or name and TensorStore spec as it was written."""
    path = folder / INDEX
    with files.open_input(path) as stream:
        raw = stream.read()
    if raw.startswith(_TF_INDEX):
        raise UserError(
            f"{folder} is a TensorFlow checkpoint (Mesh T5), not one of T5X; expected T5X's index "
            f"in {path}: take the T5X form of this model"
        )
    try:
        tree = serialization.msgpack_restore(raw)
    except Exception as error:  # msgpack's own errors have no common parent
        raise UserError(f"{path} is no T5X index ({error}); {_HINT}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("optimizer"), dict):
        raise UserError(
            f"{path} is no T5X index: it has no 'optimizer'; expected version 2 or 3 of T5X"
        )
    yield from _walk(tree["optimizer"])


def _walk(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of the index."""
    for key, value in tree.items():
        if isinstance(value, dict) and not {"driver", "kvstore"} <= value.keys():
            yield from _walk(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, dict) else np.asarray(value)


def _legacy_spec(name: str, written: Mapping[str, Any], folder: Path) -> Spec:
    """Returns the spec of a zarr folder beside the index, wherever the index was written."""
    kvstore, stated = written["kvstore"], written.get("metadata", {})
    maps = dict[str, Any]
    # What was saved to a bucket names it; and the path has moved into "kvstore" over the years.
    text = "" if misfit(kvstore, maps) else kvstore.get("path") or written.get("path") or ""
    shape = "" if misfit(stated, maps) else stated.get("shape") or []
    if misfit(text, str) or misfit(shape, list[int]):
        raise UserError(f"the index of {folder} describes {name} as {shown(written)}; {_HINT}")
    path = PurePosixPath(text)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"the index of {folder} puts {name} at {str(path)!r}; expected a folder beside the "
            f"index; {_HINT}"
        )
    return {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{folder.resolve() / path}/"},
        "fill_missing_data_reads": False,
    }


def _check_legacy(array: StoredArray, place: Path, stated: tuple[Shape, str | None]) -> None:
    """Checks an opened zarr folder against the index, and its files' sizes against its header."""
    shape, dtype = stated[0], stated[1] or array.dtype
    if (shape, dtype) != (array.shape, array.dtype):
        raise UserError(
            f"{place} holds {array.dtype} {array.shape} where the index states {dtype} {shape}; "
            f"{_HINT}"
        )
    header = files.read_json(place / ".zarray", dict[str, Any], remedy=_HINT)
    compressor = (header.get("compressor") or {}).get("id")
    separator = header.get("dimension_separator", ".")
    wanted = math.prod(header["chunks"]) * array.source.dtype.numpy_dtype.itemsize
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, header["chunks"], strict=True)]
    for index in itertools.product(*map(range, counts)):
        path = place / (separator.join(map(str, index)) or "0")
        if (found := _num_bytes(path, compressor, wanted)) not in (None, wanted):
            raise UserError(
                f"{path} holds {found:,} bytes of {array.name}, expected {wanted:,}: the file is "
                f"cut or damaged; {_HINT}"
            )


def _num_bytes(path: Path, compressor: str | None, wanted: int) -> int | None:
    """Returns how many bytes of values a file says it holds, or None where it does not say.

    A gzip file ends in that number; zlib itself does not miss the end of a file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {_HINT}")
    size = path.stat().st_size
    if compressor is None:
        return size
    if compressor != "gzip" or wanted >= 2**32:
        return None
    if size < _GZIP_MIN_BYTES:
        return 0
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        return int.from_bytes(stream.read(4), "little")
