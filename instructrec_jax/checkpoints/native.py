"""Checkpoints of ours, opened by their neutral names, and written without a training state."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from instructrec_jax import manifest
from instructrec_jax.checkpoints import adapters, store
from instructrec_jax.checkpoints.arrays import StoredArray, write_checkpoint
from instructrec_jax.checkpoints.parameters import (
    STACK,
    Parameter,
    Read,
    Shape,
    check_found,
    config_parameters,
    infer_config,
    to_neutral,
)
from instructrec_jax.checkpoints.ranking_config import find_ranking_config
from instructrec_jax.checkpoints.source import Source, find_tokenizer
from instructrec_jax.checkpoints.t5x_layout import (
    KINDS,
    SLOTS,
    UNUSED,
    Place,
    SavedSlots,
    Slots,
    neutral_shape,
)
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import parameters_by_name
from instructrec_jax.models.int8 import SCALE, dequantize, int8_shapes, quantize, shared_axis
from instructrec_jax.models.t5 import T5Config, Width
from instructrec_jax.settings import misfit, shown

_SCALES = (f"kernel{SCALE}", f"embedding{SCALE}")  # norms have scales too
_HINT = "convert it again, or take another checkpoint"
_MOMENT = re.compile(re.escape(store.OPTIMIZER) + r"(?:\d+\.)*(step|v|v_row|v_col)(?:\.(.+))?")


def open_native(path: Path, above: tuple[Path, ...] = ()) -> Source:
    """Opens a checkpoint of ours, or adapters that a run of ours trained.

    Args:
      path: a MODEL_DIR, a folder of step folders, or one of these.
      above: as `open_source`.

    Raises:
      UserError: if nothing is there, or something that is damaged or no whole model.
    """
    try:
        folder = store.resolve_checkpoint(path)
    except UserError as error:
        raise UserError(
            f"{error}; or Hugging Face's config.json and safetensors, or a checkpoint_<step> "
            "folder of T5X"
        ) from None
    arrays = store.stored_arrays(folder)
    model = {
        name.removeprefix(store.MODEL): (array.shape, array.dtype)
        for name, array in arrays.items()
        if name.startswith(store.MODEL)
    }
    if adapters.are_adapters(model):
        return adapters.open_run(folder, above)
    is_int8 = any(name.endswith(_SCALES) for name in model)
    sized = {name: shape for name, (shape, _) in model.items() if not name.endswith(_SCALES)}
    config = _config_of(folder, sized)
    reader = _NativeReader(config, arrays, is_int8=is_int8)
    if is_int8:
        _check_int8(folder, config, model)
    else:
        check_found(folder, {p.native: p.shape for p in config_parameters(config)}, model)
    return Source(
        path=folder,
        kind="native",
        step=store.checkpoint_step(folder),
        config=config,
        read=reader.read,
        members=(folder,),
        tokenizer=find_tokenizer(folder, *_homes(folder)),
        ranking=find_ranking_config(folder, *_homes(folder)),
        slots=reader.slots(),
        is_int8=is_int8,
    )


def _check_int8(folder: Path, config: T5Config, model: Mapping[str, tuple[Shape, str]]) -> None:
    """Checks names, shapes and dtypes of a model whose matrices are int8."""
    shapes = int8_shapes(jax.eval_shape(lambda: config.init(jax.random.key(0))))
    wanted = {name: jax.tree.leaves(own)[0] for name, own in parameters_by_name(shapes).items()}
    sizes = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    check_found(folder, sizes, model, dtypes=None, hint=_HINT)
    for name, leaf in wanted.items():
        if (dtype := model[name][1]) != leaf.dtype.name:
            raise UserError(
                f"checkpoint {folder} is int8, and {name} is {dtype} there; expected "
                f"{leaf.dtype.name}: {_HINT}"
            )


class _NativeReader:
    """Reads one array after another and keeps the last, whose layers are read in turn."""

    def __init__(
        self, config: T5Config, arrays: Mapping[str, StoredArray], *, is_int8: bool
    ) -> None:
        self._places: dict[str, tuple[Parameter, int]] = {
            name: (parameter, layer)
            for parameter in config_parameters(config)
            for layer, name in enumerate(parameter.neutral)
        }
        self._arrays = arrays
        self._moments, self._is_int8 = _moment_names(arrays), is_int8
        self._last: dict[str, tuple[str, np.ndarray]] = {}

    def read(self, name: str) -> np.ndarray:
        """Returns a neutral array."""
        parameter, layer = self._places[name]
        stored = store.MODEL + parameter.native
        array = to_neutral(parameter, self._layer("parameter", stored, parameter, layer))
        if not self._is_int8 or (axis := shared_axis(name)) is None:
            return array
        scale = self._layer("scale", stored + SCALE, parameter, layer)
        return dequantize(array, scale, axis=axis)

    def slots(self) -> SavedSlots | None:
        """Returns Adafactor's state, None unless every parameter has one."""
        known = self._moments.keys()
        natives = {parameter.native for parameter, _ in self._places.values()}
        if ("step", "") not in known or not all(
            ("v", native) in known or {("v_row", native), ("v_col", native)} <= known
            for native in natives
        ):
            return None
        step = self._arrays[self._moments["step", ""]].read()
        return SavedSlots(step=int(step), read=self._read_slots)

    def _read_slots(self, name: str) -> Slots:
        parameter, layer = self._places[name]
        slots = {slot: np.zeros(UNUSED, np.float32) for slot in SLOTS}
        for kind in KINDS:
            if stored := self._moments.get((kind, parameter.native)):
                array = self._layer(kind, stored, parameter, layer)
                slots[kind] = to_neutral(parameter, array) if kind == "v" else array
        return slots

    def _layer(self, kind: str, stored: str, parameter: Parameter, layer: int) -> np.ndarray:
        """Returns one layer of a stored array, and keeps the array until another is read."""
        if self._last.get(kind, ("",))[0] != stored:
            self._last.pop(kind, None)  # freed before the next is read
            self._last[kind] = (stored, self._arrays[stored].read())
        array = self._last[kind][1]
        return array[layer] if parameter.is_stacked else array


def _moment_names(names: Iterable[str]) -> dict[tuple[str, str], str]:
    """Returns the stored names of Adafactor's arrays, by kind and parameter in the model.

    After a gradient clip its state is a numbered part of the optimizer's.
    """
    return {
        (found[1], found[2] or ""): name for name in names if (found := _MOMENT.fullmatch(name))
    }


def _config_of(folder: Path, shapes: Mapping[str, Shape]) -> T5Config:
    """Returns the sizes of the model that arrays of these names and shapes are of."""
    neutral: dict[str, Shape] = {}
    for name, shape in shapes.items():
        before, is_stacked, after = name.partition(STACK)
        if not is_stacked:
            neutral[name] = shape
            continue
        layer = neutral_shape(name, shape[1:], Place(name))
        neutral |= {f"{before}.layers_{index}.{after}": layer for index in range(shape[0])}
    return infer_config(folder, neutral, relative_max_distance=_max_distance(folder))


def _max_distance(folder: Path) -> int:
    """Returns the one size that no shape shows: of the run's manifest, or else T5's."""
    for home in _homes(folder):
        if (home / manifest.FILE_NAME).is_file():
            model = manifest.read_manifest(home).settings.get("model")
            if isinstance(model, dict) and "relative_max_distance" in model:
                found = model["relative_max_distance"]
                if expected := misfit(found, Width):
                    raise UserError(
                        f"{home / manifest.FILE_NAME}: relative_max_distance is {shown(found)}; "
                        f"expected {expected}"
                    )
                return found
    return T5Config.relative_max_distance


def _homes(folder: Path) -> tuple[Path, Path]:
    """Returns where a step folder's run may keep what belongs to all steps."""
    return folder.parent, folder.parent.parent


def write_native(
    folder: Path,
    *,
    config: T5Config,
    step: int,
    read: Read,
    slots: SavedSlots | None = None,
    is_int8: bool = False,
) -> None:
    """Writes step, model and Adafactor's state as `store.CheckpointStore` would.

    Args:
      folder: where the step's folder is put.
      config: sizes of the model.
      step: training steps taken.
      read: gives the neutral array of a name; asked layer by layer of one parameter after another.
      slots: the optimizer's state, without momentum; None: of the model alone.
      is_int8: write matrices as int8 with scales, see `models.int8`.
    """
    with write_checkpoint(folder / str(step), store.ITEM) as writer:

        def write(name: str, array: np.ndarray, parameter: Parameter, layer: int) -> None:
            if parameter.is_stacked:
                writer.write_layer(name, array, layer, num_layers=parameter.shape[0])
            else:
                writer.write(name, array)

        writer.write("step", np.asarray(step, np.int32))
        for parameter, layer, name in _layers(config):
            array, stored = read(name), store.MODEL + parameter.native
            if is_int8 and (axis := shared_axis(name)) is not None:
                array, scale = quantize(array, axis=axis)
                write(stored + SCALE, scale, parameter, layer)
            else:
                array = array.astype(np.float32, copy=False)
            write(stored, array.reshape(parameter.layer_shape), parameter, layer)
        if slots is None:
            return
        writer.write(f"{store.OPTIMIZER}step", np.asarray(slots.step, np.int32))
        for parameter, layer, name in _layers(config):
            for kind, array in slots.read(name).items():
                if array.shape != UNUSED:
                    array = array.reshape(parameter.layer_shape) if kind == "v" else array
                    array = array.astype(np.float32, copy=False)
                    write(f"{store.OPTIMIZER}{kind}.{parameter.native}", array, parameter, layer)


def _layers(config: T5Config) -> Iterator[tuple[Parameter, int, str]]:
    """Yields parameter, layer and neutral name of every neutral array."""
    for parameter in config_parameters(config):
        for layer, name in enumerate(parameter.neutral):
            yield parameter, layer, name
