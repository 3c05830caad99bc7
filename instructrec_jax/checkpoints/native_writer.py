"""Writes a checkpoint of ours array by array, in the layout in which `store` restores it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instructrec_jax.checkpoints.array_writer import write_checkpoint
from instructrec_jax.checkpoints.parameters import Parameter, Read, config_parameters
from instructrec_jax.checkpoints.store import ITEM, MODEL, OPTIMIZER
from instructrec_jax.checkpoints.t5x_layout import UNUSED, SavedSlots
from instructrec_jax.models.t5 import T5Config


def write_native(
    folder: Path, *, config: T5Config, step: int, read: Read, slots: SavedSlots | None = None
) -> None:
    """Writes step, model and Adafactor's state as `store.CheckpointStore` would.

    Args:
      folder: where the step's folder is put.
      config: sizes of the model.
      step: training steps taken.
      read: gives the neutral array of a name; asked layer by layer of one parameter after another.
      slots: the optimizer's state, without momentum; None: of the model alone.
    """
    with write_checkpoint(folder / str(step), ITEM) as writer:

        def write(name: str, array: np.ndarray, parameter: Parameter, layer: int) -> None:
            array = array.astype(np.float32, copy=False)
            if parameter.is_stacked:
                writer.write_layer(name, array, layer, num_layers=parameter.shape[0])
            else:
                writer.write(name, array)

        writer.write("step", np.asarray(step, np.int32))
        for parameter, layer, name in _layers(config):
            array = read(name).reshape(parameter.layer_shape)
            write(f"{MODEL}{parameter.native}", array, parameter, layer)
        if slots is None:
            return
        writer.write(f"{OPTIMIZER}step", np.asarray(slots.step, np.int32))
        for parameter, layer, name in _layers(config):
            for kind, array in slots.read(name).items():
                if array.shape != UNUSED:
                    array = array.reshape(parameter.layer_shape) if kind == "v" else array
                    write(f"{OPTIMIZER}{kind}.{parameter.native}", array, parameter, layer)


def _layers(config: T5Config) -> Iterator[tuple[Parameter, int, str]]:
    """Yields parameter, layer and neutral name of every neutral array."""
    for parameter in config_parameters(config):
        for layer, name in enumerate(parameter.neutral):
            yield parameter, layer, name
