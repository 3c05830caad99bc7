"""T5X's checkpoints, read and written: parameters and Adafactor's state by their neutral names.

Both containers (`checkpoints.t5x_arrays`) and both layouts (`checkpoints.t5x_layout`) give the same
arrays, bit for bit. What is written has Orbax's layout, as today's T5X restores it. Nothing of T5X
is needed.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from instructrec_jax.checkpoints import t5x_arrays, t5x_layout
from instructrec_jax.checkpoints.arrays import ArrayWriter, write_checkpoint
from instructrec_jax.checkpoints.parameters import (
    Shape,
    check_found,
    checked_step,
    infer_config,
    neutral_shapes,
)
from instructrec_jax.checkpoints.ranking_config import find_ranking_config
from instructrec_jax.checkpoints.source import Source, find_tokenizer
from instructrec_jax.checkpoints.t5x_layout import (
    PARAM_STATES,
    SLOTS,
    TARGET,
    UNUSED,
    Place,
    SavedSlots,
    Slots,
)
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5Config

_STEP = "state.step"
_NAME = re.compile(r"checkpoint_(\d+)")
_OTHER_VOCABULARIES = {250112: "mT5", 256384: "umT5", 384: "ByT5"}


class T5xCheckpoint:
    """One T5X checkpoint: its names, shapes, dtypes and files are checked; values come one by one.

    Attributes:
      folder: the folder named checkpoint_<step>.
      container: "orbax" or "legacy".
      is_scanned: whether layers are stacked there.
      step: number of training steps taken.
      config: the model's sizes, read off the arrays' shapes.
      found: (neutral shape, dtype name) of each parameter by neutral name.
      slots: Adafactor's state; None if there is none, or one with momentum.
    """

    def __init__(self, path: Path | str) -> None:
        """Opens a checkpoint.

        Args:
          path: a checkpoint_<step> folder, its index, or a folder of several (the latest counts).

        Raises:
          UserError: if there is none, if it is of another architecture, or if files are missing,
            cut or of other shapes than its index says.
        """
        folder = resolve_t5x(path)
        if folder is None:
            raise UserError(
                f"no T5X checkpoint in {path}; expected a folder checkpoint_<step> with "
                "state/_METADATA (Orbax) or an index named checkpoint"
            )
        self.folder = folder
        self._arrays = t5x_arrays.ArrayFolder(folder)
        self.container = self._arrays.container
        names = [name for name in self._arrays.names if name.startswith(TARGET)]
        self._stored = {
            name.removeprefix(TARGET): array for name, array in self._arrays.open(names).items()
        }
        self._places = t5x_layout.find_places({n: a.shape for n, a in self._stored.items()})
        t5x_layout.refuse_other_models(folder, self._places)
        self.found = {name: self._found(name) for name in self._places}
        self.is_scanned = any(
            place.layer is not None for places in self._places.values() for place in places
        )
        self.config: T5Config = infer_config(folder, {n: s for n, (s, _) in self.found.items()})
        if model := _OTHER_VOCABULARIES.get(self.config.vocab_size):
            raise UserError(
                f"T5X checkpoint {folder} has the {self.config.vocab_size:,} tokens of {model}; "
                "expected T5's 32,128: take a T5 1.1 or Flan-T5 checkpoint"
            )
        check_found(folder, neutral_shapes(self.config), self.found)
        self.step = self._read_step()
        self._last: tuple[str, np.ndarray] | None = None
        self._last_slots: tuple[str, Slots] | None = None
        self.slots = (
            SavedSlots(step=self.step, read=self._read_slots) if self._has_slots() else None
        )

    def read(self, name: str) -> np.ndarray:
        """Returns a parameter.

        Args:
          name: its neutral name, such as `encoder.layers_0.mlp.wo.kernel`.

        Returns:
          The array in its neutral shape, in the dtype of the checkpoint.

        Raises:
          UserError: if its files are damaged, or if layers have relative-position tables of their
            own, which T5 1.1 has not.
        """
        first, *others = self._places[name]
        array = t5x_layout.to_neutral(name, self._whole(first), first)
        for place in others:
            other = t5x_layout.to_neutral(name, self._whole(place), place)
            if not np.array_equal(array, other):
                raise UserError(
                    f"{self.folder}: layers have different relative-position tables "
                    f"({name}, {first} and {place}); T5 1.1 and Flan-T5 share one per stack: take "
                    "a checkpoint of theirs"
                )
        return array

    def _has_slots(self) -> bool:
        """Whether every parameter comes with Adafactor's slots, momentum unused."""
        names = {
            f"{PARAM_STATES}{places[0].stored}.{slot}"
            for places in self._places.values()
            for slot in SLOTS
        }
        if not names <= set(self._arrays.names):
            return False
        momentum = min(name for name in names if name.endswith(".m"))
        return self._arrays.open([momentum])[momentum].shape == UNUSED

    def _read_slots(self, name: str) -> Slots:
        """Returns the slots of a neutral parameter."""
        shape = self.found[name][0]
        # Equal tables of several layers have moments of their own: the first layer's stand for all.
        place = self._places[name][0]
        slots = t5x_layout.slots_to_neutral(name, self._slots_at(place), place, shape)
        self._check_slots(name, slots, shape)
        return slots

    def _found(self, name: str) -> tuple[Shape, str]:
        place = self._places[name][0]
        stored = self._stored[place.stored]
        return t5x_layout.neutral_shape(name, stored.shape, place), stored.dtype

    def _whole(self, place: Place) -> np.ndarray:
        """Returns a stored parameter; the last stack read is kept for its other layers."""
        if self._last is None or self._last[0] != place.stored:
            self._last = None
            array = self._stored[place.stored].read()
            if place.layer is None:
                return array
            self._last = (place.stored, array)
        return self._last[1]

    def _slots_at(self, place: Place) -> Slots:
        """Returns the stored slots of a parameter; those of the last stack are kept."""
        if self._last_slots is None or self._last_slots[0] != place.stored:
            self._last_slots = None
            names = {slot: f"{PARAM_STATES}{place.stored}.{slot}" for slot in SLOTS}
            opened = self._arrays.open(list(names.values()))
            slots = {slot: opened[name].read() for slot, name in names.items()}
            if place.layer is None:
                return slots
            self._last_slots = (place.stored, slots)
        return self._last_slots[1]

    def _check_slots(self, name: str, slots: Slots, shape: Shape) -> None:
        rows = t5x_layout.factored_axes(shape) if len(shape) == 2 else None
        wanted = {
            "m": {UNUSED},
            "v": {shape, UNUSED},
            "v_row": {UNUSED} if rows is None else {(shape[rows[0]],), UNUSED},
            "v_col": {UNUSED} if rows is None else {(shape[rows[1]],), UNUSED},
        }
        for slot, array in slots.items():
            if array.shape not in wanted[slot]:
                raise UserError(
                    f"{self.folder}: Adafactor's {slot} of {name} is {array.shape}; expected one "
                    f"of {sorted(wanted[slot])}: start from the parameters alone"
                )

    def _read_step(self) -> int:
        if _STEP in self._arrays.names:
            return checked_step(self._arrays.open([_STEP])[_STEP].read(), self.folder)
        if found := _NAME.fullmatch(self.folder.name):
            return checked_step(found[1], self.folder)
        raise UserError(
            f"T5X checkpoint {self.folder} does not state its step; name the folder "
            "checkpoint_<step>"
        )


def open_t5x(folder: Path) -> Source:
    """Opens a folder that `resolve_t5x` found; names, shapes, dtypes and files are checked.

    Raises:
      UserError: as `T5xCheckpoint`.
    """
    opened = T5xCheckpoint(folder)
    return Source(
        path=opened.folder,
        kind="t5x",
        step=opened.step,
        config=opened.config,
        read=opened.read,
        members=(opened.folder,),
        tokenizer=find_tokenizer(opened.folder, opened.folder.parent),
        ranking=find_ranking_config(opened.folder, opened.folder.parent),
        slots=opened.slots,
    )


def resolve_t5x(path: Path | str) -> Path | None:
    """Returns the checkpoint_<step> folder that a user means by `path`, None if there is none.

    Args:
      path: that folder, its index file, or a folder of such folders (the latest counts).
    """
    path = Path(path)
    if path.is_file() and path.name == t5x_arrays.INDEX:
        path = path.parent
    if not path.is_dir():
        return None
    if t5x_arrays.is_checkpoint(path):
        return path
    steps = {
        int(found[1]): child
        for child in path.iterdir()
        if (found := _NAME.fullmatch(child.name)) and t5x_arrays.is_checkpoint(child)
    }
    return steps[max(steps)] if steps else None


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
      arrays: (neutral name, array) of every parameter, in the order of
        `checkpoints.parameters.neutral_shapes`; each is written before the next is taken.
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
