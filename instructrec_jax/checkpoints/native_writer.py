"""Writes a checkpoint of ours array by array, in the layout in which Orbax restores it.

Orbax itself asks for all arrays at once and copies them before it writes, which takes twice the
memory of the model. Layout: <step>/default/{_METADATA, manifest.ocdbt, d/...}, see `store`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorstore as ts

from instructrec_jax.checkpoints.parameters import Read, config_parameters
from instructrec_jax.models.t5 import T5Config

_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
_KEY_OF_DICT = 2  # Orbax's number for the key of a mapping
_MARKER = "commit_success.txt"  # for stores without renaming


def write_native(folder: Path, *, config: T5Config, step: int, read: Read) -> None:
    """Writes step and model as `store.CheckpointStore` would.

    Args:
      folder: where the step's folder is put; whoever calls this sees to it that a half-written one
        is never found.
      config: sizes of the model.
      step: training steps taken.
      read: gives the neutral array of a name; asked layer by layer of one parameter after another.
    """
    item = folder / str(step) / "default"
    item.mkdir(parents=True)
    _write_array(item, "step", (), [np.asarray(step, np.int32)])
    names = ["step"]
    for parameter in config_parameters(config):
        layers = (read(n).reshape(parameter.layer_shape) for n in parameter.neutral)
        names.append(f"model.{parameter.native}")
        _write_array(item, names[-1], parameter.shape, layers)
    _write_tree(item, names)
    metadata = {"item_handlers": {"default": _HANDLER}, "metrics": {}, "custom_metadata": {}}
    _write_json(item.parent / "_CHECKPOINT_METADATA", metadata)
    (item.parent / _MARKER).write_text("Checkpoint commit was successful\n", encoding="utf-8")


def _write_array(
    item: Path, name: str, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """Writes one array; a stack comes as its layers, each of which becomes a chunk."""
    context, opened, transaction = ts.Context(), None, ts.Transaction()
    for index, part in enumerate(parts):
        is_layer = part.ndim < len(shape)
        if opened is None:
            spec = _spec(item, name, shape, (1, *part.shape) if is_layer else part.shape)
            spec["dtype"] = "int32" if part.dtype == np.int32 else "float32"
            opened = ts.open(
                spec, open=True, create=True, context=context, transaction=transaction
            ).result()
        place = opened[index] if is_layer else opened
        place.write(part.astype(opened.dtype.numpy_dtype, copy=False)).result()
    transaction.commit_async().result()


def _spec(item: Path, name: str, shape: Sequence[int], chunks: Sequence[int]) -> dict:
    base = {"driver": "file", "path": f"{item.resolve()}/"}
    return {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"},
        "metadata": {
            "shape": list(shape),
            "chunks": list(chunks),
            "compressor": {"id": "zstd", "level": 1},
        },
        "store_data_equal_to_fill_value": True,
    }


def _write_tree(item: Path, names: Sequence[str]) -> None:
    """Writes the names of all arrays as Orbax does."""
    tree = {
        str((name,)): {
            "key_metadata": [{"key": name, "key_type": _KEY_OF_DICT}],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for name in names
    }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    _write_json(item / "_METADATA", metadata)
    (item / _MARKER).write_text("Checkpoint commit was successful\n", encoding="utf-8")


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
