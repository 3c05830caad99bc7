"""Writes checkpoints that today's T5X restores: Orbax's layout, under T5X's names.

  checkpoint_<step>/_CHECKPOINT_METADATA, commit_success.txt
  checkpoint_<step>/state/_METADATA, commit_success.txt, manifest.ocdbt, d/...

Arrays are written one by one as they come, so that a model larger than half of the host's memory
can be exported; Orbax itself would want all of them at once. The markers tell T5X that a checkpoint
is whole, wherever it is copied to (object stores know no renaming).
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from instructrec_jax import files
from instructrec_jax.checkpoints import t5x_arrays, t5x_layout
from instructrec_jax.checkpoints.t5x_layout import SLOTS
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5Config

Slots = Mapping[str, np.ndarray]
_KEY_OF_DICT = 2
_MARKER = "commit_success.txt"
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


def write_t5x(
    folder: Path | str,
    arrays: Iterable[tuple[str, np.ndarray]],
    *,
    config: T5Config,
    step: int,
    slots: Iterable[tuple[str, Slots]] | None = None,
    scanned: bool = False,
) -> Path:
    """Writes a checkpoint whole or not at all.

    Args:
      folder: where checkpoint_<step> is put.
      arrays: (neutral name, array) of every parameter, as `checkpoints.parameters.disassemble`
        yields them; each is written before the next is taken.
      config: the model's sizes.
      step: number of training steps taken.
      slots: (neutral name, Adafactor's slots) of every parameter, shaped as `T5xCheckpoint.
        read_slots` returns them; None writes the parameters alone.
      scanned: stack layers as T5X's scalable T5 does with scan_layers; parameters only.

    Returns:
      The folder that was written.

    Raises:
      UserError: if a checkpoint of this step is there already, or if `slots` are given for a
        scanned one.
    """
    final = Path(folder) / f"checkpoint_{step}"
    if final.exists():
        raise UserError(f"{final} is there already; remove it, or choose another folder")
    if scanned and slots is not None:
        raise UserError(
            "a scanned T5X checkpoint is written without optimizer state: scalable T5 factors other"
            " parameters than plain T5; write the parameters alone, or unscanned"
        )
    with files.atomic_directory(final) as temporary:
        writer = _Writer(temporary / t5x_arrays.STATE)
        writer.write("state.step", np.asarray(step, np.int32))
        for name, array in arrays:
            if scanned:
                writer.write_layer(name, array, config)
            else:
                writer.write(f"target.{name}", array)
        for name, found in slots or ():
            for slot in SLOTS:
                writer.write(f"state.param_states.{name}.{slot}", found[slot])
        writer.close()
        metadata = {"item_handlers": {t5x_arrays.STATE: _HANDLER}, "custom_metadata": {}}
        _write_marker(temporary, final.name)
        (temporary / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata), encoding="utf-8")
    return final


class _Writer:
    """Writes arrays into an OCDBT store, and at last the tree of their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._context = ts.Context()
        folder.mkdir()

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes a whole array, as one chunk like Orbax does for a shard."""
        self.shapes[name] = array.shape
        transaction = ts.Transaction()
        opened = self._open(name, array, array.shape, transaction)
        opened.write(array).result()
        transaction.commit_async().result()

    def write_layer(self, name: str, array: np.ndarray, config: T5Config) -> None:
        """Writes one layer of a stack, as one chunk; a relative-position table for every layer."""
        place = t5x_layout.scanned_place(name)
        array = t5x_layout.from_neutral(name, array, config.num_heads)
        stack = place.stored.partition(".")[0]
        if place.stored == name:
            return self.write(f"target.{name}", array)
        num_layers = getattr(config, f"num_{stack}_layers")
        axis = t5x_layout.LAYERS_AXIS
        shape = (*array.shape[:axis], num_layers, *array.shape[axis:])
        stored = f"target.{place.stored}"
        self.shapes[stored] = shape
        transaction = ts.Transaction()
        opened = self._open(stored, array, shape, transaction)
        before = (slice(None),) * axis
        for layer in range(num_layers) if place.layer is None else [place.layer]:
            opened[(*before, layer)].write(array).result()
        return transaction.commit_async().result()

    def _open(
        self, name: str, array: np.ndarray, shape: tuple[int, ...], transaction: ts.Transaction
    ) -> Any:
        """Opens an array of this shape; where it is a stack of arrays, each is a chunk."""
        axis, chunks = t5x_layout.LAYERS_AXIS, list(shape)
        if shape != array.shape:
            chunks[axis] = 1
        base = {"driver": "file", "path": f"{self.folder.resolve()}/"}
        spec = {
            "driver": "zarr",
            "dtype": str(array.dtype),
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
            "metadata": {
                "shape": list(shape),
                "chunks": chunks,
                "compressor": {"id": "zstd", "level": 1},
            },
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(
            spec, open=True, create=True, context=self._context, transaction=transaction
        ).result()

    def close(self) -> None:
        """Writes the names and shapes of all arrays as Orbax does, and the marker."""
        tree = {}
        for name in sorted(self.shapes):
            keys = tuple(name.split("."))
            tree[str(keys)] = {
                "key_metadata": [{"key": key, "key_type": _KEY_OF_DICT} for key in keys],
                "value_metadata": {
                    "value_type": "jax.Array",
                    "skip_deserialize": False,
                    "write_shape": list(self.shapes[name]),
                },
            }
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (self.folder / t5x_arrays.METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        _write_marker(self.folder, t5x_arrays.STATE)


def _write_marker(folder: Path, name: str) -> None:
    text = f"Checkpoint commit was successful to {name}"
    (folder / _MARKER).write_text(text, encoding="utf-8")
