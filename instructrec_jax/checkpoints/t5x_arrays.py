"""The arrays of a T5X checkpoint by their stored names, in either container.

Today's T5X writes through Orbax: `checkpoint_<step>/state/_METADATA` names the arrays, which lie in
an OCDBT key-value store. Until 2023 (the public Flan-T5) it wrote `checkpoint_<step>/checkpoint`,
a msgpack index, beside one zarr folder an array; small arrays stand in the index itself.

Names begin with `target.` (parameters) or `state.` (step and optimizer).
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization

from instructrec_jax.errors import UserError

Shape = tuple[int, ...]
INDEX, STATE, METADATA = "checkpoint", "state", "_METADATA"
_HINT = "copy the checkpoint again, whole"
_GZIP_MIN_BYTES = 18
_TF_INDEX = b"model_checkpoint_path"


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array, opened but not read.

    Attributes:
      name: its stored name.
      shape: its shape.
      dtype: its type's name, such as "float32".
      source: a TensorStore, or the array itself where the index holds it.
    """

    name: str
    shape: Shape
    dtype: str
    source: Any

    def read(self) -> np.ndarray:
        """Returns the whole array.

        Raises:
          UserError: if a part of it is missing, cut or damaged.
        """
        if isinstance(self.source, np.ndarray):
            return self.source
        try:
            return np.asarray(self.source.read().result())
        except (ValueError, OSError) as error:
            raise _unreadable(self.name, error) from None


class ArrayFolder:
    """The arrays of one checkpoint folder; an array is opened when it is first asked for."""

    def __init__(self, folder: Path, container: str, entries: Mapping[str, Any]) -> None:
        """Use `open_folder`.

        Args:
          folder: the folder named checkpoint_<step>.
          container: "orbax" or "legacy".
          entries: by stored name an array, or the TensorStore spec of one; a legacy spec comes with
            the shape and dtype that the index states.
        """
        self.folder, self.container = folder, container
        self._entries = entries

    @property
    def names(self) -> list[str]:
        """Stored names of all arrays."""
        return list(self._entries)

    def open(self, names: list[str]) -> dict[str, StoredArray]:
        """Opens arrays: headers are read and files' sizes checked, but no values.

        Raises:
          UserError: naming the array whose files are missing, cut or of another shape.
        """
        specs = {n: e for n in names if isinstance(e := self._entries[n], dict)}
        futures = {name: ts.open(spec["spec"], read=True) for name, spec in specs.items()}
        found = {}
        for name in names:
            entry = self._entries[name]
            if name not in specs:
                found[name] = StoredArray(name, entry.shape, str(entry.dtype), entry)
                continue
            try:
                opened = futures[name].result()
            except (ValueError, OSError) as error:
                raise _unreadable(name, error) from None
            array = StoredArray(name, tuple(opened.shape), opened.dtype.name, opened)
            if self.container == "legacy":
                _check_legacy(array, entry)
            found[name] = array
        return found


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds what T5X writes for one step, in either container."""
    return (folder / STATE / METADATA).is_file() or (folder / INDEX).is_file()


def open_folder(folder: Path) -> ArrayFolder:
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
    if (folder / STATE / METADATA).is_file():
        return ArrayFolder(folder, "orbax", _orbax_entries(folder / STATE))
    return ArrayFolder(folder, "legacy", _legacy_entries(folder))


def _orbax_entries(folder: Path) -> dict[str, Any]:
    """Returns TensorStore specs by stored name."""
    path = folder / METADATA
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        leaves = list(metadata["tree_metadata"].values())
        names = [
            ".".join(part["key"] for part in leaf["key_metadata"])
            for leaf in leaves
            if leaf["value_metadata"]["value_type"] not in ("None", "Dict", "List")
        ]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path} is no Orbax metadata ({error!r}); {_HINT}") from None
    files = {"driver": "file", "path": f"{folder.resolve()}/"}
    is_ocdbt = metadata.get("use_ocdbt", (folder / "manifest.ocdbt").exists())
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    # Orbax tells whether arrays of zeros were written: only then is what is missing a fault.
    zeros_are_written = bool(metadata.get("store_array_data_equal_to_fill_value"))
    entries = {}
    for name in names:
        store: dict[str, Any] = {**files, "path": f"{files['path']}{name}/"}
        if is_ocdbt:
            store = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
        spec = {"driver": driver, "kvstore": store}
        entries[name] = {"spec": {**spec, "fill_missing_data_reads": not zeros_are_written}}
    return entries


def _legacy_entries(folder: Path) -> dict[str, Any]:
    """Returns arrays and TensorStore specs by stored name."""
    path = folder / INDEX
    raw = path.read_bytes()
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
    return dict(_walk(tree["optimizer"], folder))


def _walk(tree: Mapping[str, Any], folder: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of the index: arrays as they are, specs with paths made whole."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and {"driver", "kvstore"} <= value.keys():
            yield name, _legacy_entry(name, value, folder)
        elif isinstance(value, dict):
            yield from _walk(value, folder, f"{name}.")
        elif value is not None:
            yield name, np.asarray(value)


def _legacy_entry(name: str, written: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the spec of a zarr folder beside the index, wherever the index was written."""
    # What was saved to a bucket names it; and the path has moved into "kvstore" over the years.
    path = PurePosixPath(written["kvstore"].get("path") or written.get("path") or "")
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"the index of {folder} puts {name} at {str(path)!r}; expected a folder beside the "
            f"index; {_HINT}"
        )
    place = folder.resolve() / path
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{place}/"},
        "fill_missing_data_reads": False,
    }
    shape = written.get("metadata", {}).get("shape")
    return {"spec": spec, "folder": place, "shape": shape, "dtype": written.get("dtype")}


def _check_legacy(array: StoredArray, entry: Mapping[str, Any]) -> None:
    """Checks an opened zarr folder against the index, and its files' sizes against its header."""
    stated = (tuple(entry["shape"] or array.shape), entry["dtype"] or array.dtype)
    if stated != (array.shape, array.dtype):
        raise UserError(
            f"{entry['folder']} holds {array.dtype} {array.shape} where the index states "
            f"{stated[1]} {stated[0]}; {_HINT}"
        )
    header = json.loads((entry["folder"] / ".zarray").read_text(encoding="utf-8"))
    compressor = (header.get("compressor") or {}).get("id")
    separator = header.get("dimension_separator", ".")
    wanted = math.prod(header["chunks"]) * array.source.dtype.numpy_dtype.itemsize
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, header["chunks"], strict=True)]
    for index in itertools.product(*map(range, counts)):
        path = entry["folder"] / (separator.join(map(str, index)) or "0")
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


def _unreadable(name: str, error: Exception) -> UserError:
    """Returns the error for an array that TensorStore cannot open or read."""
    message = str(error).split(" [source")[0]
    return UserError(f"{name} of the T5X checkpoint cannot be read: {message}; {_HINT}")
