"""Writes checkpoints that today's T5X restores: Orbax's layout, under T5X's names."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from instructrec_jax.checkpoints import t5x_arrays, t5x_layout
from instructrec_jax.checkpoints.array_writer import ArrayWriter, write_checkpoint
from instructrec_jax.checkpoints.parameters import neutral_shapes
from instructrec_jax.checkpoints.t5x_layout import SLOTS, Slots
from instructrec_jax.models.t5 import T5Config


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
      slots: (neutral name, Adafactor's slots) of every parameter, shaped as `t5x_layout.SavedSlots`
        gives them; None writes the parameters alone.
      scanned: stack layers as T5X's scalable T5 does with scan_layers.

    Returns:
      The folder that was written.

    Raises:
      UserError: if a checkpoint of this step is there already, or if a scanned one cannot hold the
        slots.
    """
    final = Path(folder) / f"checkpoint_{step}"
    with write_checkpoint(final, t5x_arrays.STATE, lambda name: tuple(name.split("."))) as writer:
        writer.write("state.step", np.asarray(step, np.int32))
        put = _Layers(writer, config) if scanned else _Plain(writer)
        for name, array in arrays:
            put.parameter(name, array)
        for name, found in slots or ():
            put.slots(name, found)
    return final


class _Plain:
    """Puts arrays where plain T5 has them: under their neutral names."""

    def __init__(self, writer: ArrayWriter) -> None:
        self._writer = writer

    def parameter(self, name: str, array: np.ndarray) -> None:
        self._writer.write(f"{t5x_layout.TARGET}{name}", array)

    def slots(self, name: str, slots: Slots) -> None:
        for slot in SLOTS:
            self._writer.write(f"{t5x_layout.PARAM_STATES}{name}.{slot}", slots[slot])


class _Layers(_Plain):
    """Puts arrays where scanned T5 has them: stacks of layers, written layer by layer."""

    def __init__(self, writer: ArrayWriter, config: T5Config) -> None:
        super().__init__(writer)
        self._config, self._shapes = config, neutral_shapes(config)

    def parameter(self, name: str, array: np.ndarray) -> None:
        place = t5x_layout.scanned_place(name)
        if place.stored == name:
            return super().parameter(name, array)
        array = t5x_layout.from_neutral(name, array, self._config.num_heads)
        stored = f"{t5x_layout.TARGET}{place.stored}"
        return self._write(stored, array, place, t5x_layout.LAYERS_AXIS)

    def slots(self, name: str, slots: Slots) -> None:
        place = t5x_layout.scanned_place(name)
        if place.stored == name:
            return super().slots(name, slots)
        stored = t5x_layout.slots_from_neutral(
            name, slots, self._shapes[name], self._config.num_heads
        )
        for slot, (array, axis) in stored.items():
            full_name = f"{t5x_layout.PARAM_STATES}{place.stored}.{slot}"
            if axis is not None:
                self._write(full_name, array, place, axis)
            elif not place.layer:  # of the first layer, or of a table: one zero stands for all
                self._writer.write(full_name, array)
        return None

    def _write(self, stored: str, array: np.ndarray, place: t5x_layout.Place, axis: int) -> None:
        """Writes one layer; a relative-position table for every layer."""
        stack = place.stored.partition(".")[0]
        num_layers = getattr(self._config, f"num_{stack}_layers")
        for layer in range(num_layers) if place.layer is None else [place.layer]:
            self._writer.write_layer(stored, array, layer, num_layers=num_layers, axis=axis)
