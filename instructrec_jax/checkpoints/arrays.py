"""Arrays on disk in Orbax's layout, read and written one by one, without Orbax.

  <step folder>/_CHECKPOINT_METADATA, commit_success.txt
  <step folder>/<item>/_METADATA, commit_success.txt, manifest.ocdbt, d/...

Orbax itself takes a second to import, and writes all arrays at once from copies, which takes twice
the memory of the model. The commit markers show that a checkpoint is whole, also where it was
copied to an object store, which has no renaming.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from instructrec_jax import files
from instructrec_jax.errors import UserError

Shape = tuple[int, ...]
Index = tuple[slice, ...]
Spec = dict[str, Any]  # of TensorStore
SplitName = Callable[[str], tuple[str, ...]]
METADATA = "_METADATA"
STEP_METADATA = "_CHECKPOINT_METADATA"
CHECKSUMS, DATA_POSITION, SEEN = "crc32", "data_position", "seen"  # entries of our own in it
WHOLE: Index = (...,)  # type: ignore[assignment]
_KEY_OF_DICT = 2  # Orbax's number for the key of a mapping
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
# Each commit rewrites the list of what is stored: many small arrays share one.
_COMMIT_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array, opened but not read.

    Attributes:
      name: its stored name.
      shape: its shape.
      dtype: its type's name, such as "float32".
      source: a TensorStore, or the array itself.
      fault: turns a message into the error for what cannot be read.
      checksum: `checksum_of` the array when it was written; None if nobody kept it.
    """

    name: str
    shape: Shape
    dtype: str
    source: Any
    fault: Callable[[str], UserError]
    checksum: int | None = None

    def read(self, index: Index = WHOLE) -> np.ndarray:
        """Returns the array, or a part of it; the checksum is compared where all of it is read.

        Raises:
          UserError: if a file of it is missing, cut or damaged.
        """
        if isinstance(self.source, np.ndarray):
            return self.source[index]
        try:
            array = np.asarray(self.source[index].read().result())
        except (ValueError, OSError) as error:
            raise self.fault(_message(self.name, error)) from None
        is_checked = self.checksum is not None and array.shape == self.shape
        if is_checked and checksum_of(array) != self.checksum:
            raise self.fault(f"{self.name} holds other numbers than were written")
        return array


def checksum_of(array: np.ndarray, shape: Shape | None = None, *, before: int | None = None) -> int:
    """Returns the CRC-32 of an array's type, shape and bytes in C order.

    Args:
      array: the array, or a part of its first axis.
      shape: of the whole array; None: of this one.
      before: the checksum up to this part, None for the first.
    """
    if before is None:
        header = f"{array.dtype.name} {list(array.shape if shape is None else shape)}"
        before = zlib.crc32(header.encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, before)


def read_checksums(folder: Path) -> dict[str, int]:
    """Returns the checksums of the arrays of a step folder by name, {} where it holds none."""
    found = read_custom_metadata(folder).get(CHECKSUMS)
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, int)}


def read_custom_metadata(folder: Path) -> dict[str, Any]:
    """Returns what a step folder holds beside its arrays, {} where that is nothing or damaged."""
    try:
        kept = json.loads((folder / STEP_METADATA).read_text(encoding="utf-8"))
        found = kept["custom_metadata"]
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def read_specs(folder: Path, fault: Callable[[str], UserError]) -> dict[str, Spec]:
    """Returns where each array of an item lies, by its name; nested names are joined by dots.

    Args:
      folder: of the item, which holds `_METADATA`.
      fault: turns a message into the error that is raised.

    Raises:
      UserError: if the metadata is missing or damaged.
    """
    path = folder / METADATA
    try:
        metadata = files.read_json(path, dict[str, Any], remedy="it is no Orbax metadata")
        names = [
            ".".join(part["key"] for part in leaf["key_metadata"])
            for leaf in metadata["tree_metadata"].values()
            if leaf["value_metadata"]["value_type"] not in ("None", "Dict", "List")
        ]
    except (UserError, KeyError, TypeError, AttributeError) as error:
        raise fault(f"{path} is no Orbax metadata ({error!r})") from None
    base = {"driver": "file", "path": f"{folder.resolve()}/"}
    is_ocdbt = metadata.get("use_ocdbt", (folder / "manifest.ocdbt").exists())
    # Orbax records whether arrays of zeros were written: only then is a missing file a fault.
    zeros_are_written = bool(metadata.get("store_array_data_equal_to_fill_value"))
    specs = {}
    for name in names:
        store: Spec = {**base, "path": f"{base['path']}{name}/"}
        if is_ocdbt:
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        specs[name] = {
            "driver": "zarr3" if metadata.get("use_zarr3") else "zarr",
            "kvstore": store,
            "fill_missing_data_reads": not zeros_are_written,
        }
    return specs


def open_arrays(
    specs: Mapping[str, Spec],
    names: Iterable[str],
    fault: Callable[[str], UserError],
    checksums: Mapping[str, int] | None = None,
) -> dict[str, StoredArray]:
    """Opens arrays: their headers are read, but no values.

    Args:
      specs: by name, as `read_specs` returns them.
      names: which to open.
      fault: turns a message into the error that is raised.
      checksums: as `read_checksums` returns them; None: nothing is compared.

    Raises:
      UserError: naming the array whose header is missing or damaged.
    """
    futures = {name: ts.open(specs[name], read=True) for name in names}
    found = {}
    for name, future in futures.items():
        try:
            opened = future.result()
        except (ValueError, OSError) as error:
            raise fault(_message(name, error)) from None
        checksum = (checksums or {}).get(name)
        if checksum is None and checksums:
            raise fault(f"{STEP_METADATA} holds no checksum of {name}")
        found[name] = StoredArray(
            name, tuple(opened.shape), opened.dtype.name, opened, fault, checksum
        )
    return found


def _message(name: str, error: Exception) -> str:
    return f"{name} cannot be read: {str(error).split(' [source')[0]}"


@contextmanager
def write_checkpoint(
    folder: Path, item: str, split_name: SplitName = lambda name: (name,)
) -> Iterator["ArrayWriter"]:
    """Yields what takes the arrays of one training step; the folder appears when all are written.

    Args:
      folder: the step's folder.
      item: name of what it holds, a folder inside.
      split_name: turns the name of an array into its keys in the tree that Orbax restores.

    Raises:
      UserError: if the folder is there already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or choose another folder")
    with files.atomic_directory(folder) as temporary:
        writer = ArrayWriter(temporary / item, split_name)
        yield writer
        writer.close()
        kept = {CHECKSUMS: writer.checksums} if writer.checksums.keys() == writer.names() else {}
        metadata = {"item_handlers": {item: _HANDLER}, "metrics": {}, "custom_metadata": kept}
        _write_json(temporary / STEP_METADATA, metadata)
        for place in (temporary / item, temporary):
            text = f"Checkpoint commit was successful to {folder.name}"
            (place / "commit_success.txt").write_text(text, encoding="utf-8")


class ArrayWriter:
    """Writes arrays into an OCDBT store, and at last the tree of their names.

    Attributes:
      checksums: of each array that was written whole, or in layers of its first axis.
    """

    def __init__(self, folder: Path, split_name: SplitName) -> None:
        """Use `write_checkpoint`."""
        self._folder, self._split_name = folder, split_name
        self.checksums: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._context, self._transaction = ts.Context(), ts.Transaction()
        self._num_bytes = 0  # in the transaction
        folder.mkdir()

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a whole array, as one chunk like Orbax does for a shard."""
        self._write(name, array, array.shape, ())

    def write_layer(
        self, name: str, layer: np.ndarray, index: int, *, num_layers: int, axis: int = 0
    ) -> None:
        """Writes one layer of a stack, as one chunk; all layers have to come.

        Args:
          name: of the stack.
          layer: the layer's array.
          index: which layer it is; they come in order.
          num_layers: how many there are.
          axis: of the stack that runs over layers.
        """
        shape = (*layer.shape[:axis], num_layers, *layer.shape[axis:])
        place = (*(slice(None),) * axis, slice(index, index + 1))
        self._write(name, np.expand_dims(layer, axis), shape, place)

    def _write(
        self, name: str, array: np.ndarray, shape: tuple[int, ...], place: tuple[slice, ...]
    ) -> None:
        self._shapes[name] = shape
        if len(place) <= 1:  # whole, or the next part of the first axis
            before = self.checksums.get(name)
            self.checksums[name] = checksum_of(array, shape, before=before)
        base = {"driver": "file", "path": f"{self._folder.resolve()}/"}
        spec = {
            "driver": "zarr",
            "dtype": str(array.dtype),
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
            "metadata": {
                "shape": list(shape),
                "chunks": list(array.shape),
                "compressor": {"id": "zstd", "level": 1},
            },
            "store_data_equal_to_fill_value": True,
        }
        with self._named_errors():
            opened = ts.open(
                spec, open=True, create=True, context=self._context, transaction=self._transaction
            ).result()
            opened[place].write(array).result()
        self._num_bytes += array.nbytes
        if self._num_bytes >= _COMMIT_BYTES:
            self._commit()

    def names(self) -> set[str]:
        """Returns the names of all arrays."""
        return set(self._shapes)

    def _commit(self) -> None:
        with self._named_errors():
            self._transaction.commit_async().result()
        self._transaction, self._num_bytes = ts.Transaction(), 0

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Says in one line what TensorStore cannot write: a full disk is a ValueError there."""
        try:
            yield
        except ValueError as error:
            reason = _message(self._folder.name, error).replace("cannot be read", "is not written")
            raise UserError(
                f"cannot write a checkpoint: {reason}; free the disk, or name another"
            ) from None

    def close(self) -> None:
        """Writes the names and shapes of all arrays as Orbax does."""
        self._commit()
        tree = {}
        for name in sorted(self._shapes):
            keys = self._split_name(name)
            tree[str(keys)] = {
                "key_metadata": [{"key": key, "key_type": _KEY_OF_DICT} for key in keys],
                "value_metadata": {
                    "value_type": "jax.Array",
                    "skip_deserialize": False,
                    "write_shape": list(self._shapes[name]),
                },
            }
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        _write_json(self._folder / METADATA, metadata)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
