"""Finds out what kind of checkpoint a path means, and opens it: ours, Hugging Face's or T5X's."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from instructrec_jax import manifest
from instructrec_jax.checkpoints import adapters, huggingface, store, t5x_reader
from instructrec_jax.checkpoints.parameters import (
    Parameter,
    Shape,
    Source,
    assemble,
    check_found,
    config_parameters,
    to_neutral,
)
from instructrec_jax.checkpoints.t5x_layout import SLOTS, UNUSED, SavedSlots, Slots
from instructrec_jax.checkpoints.t5x_slots import KINDS
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5, T5Config

_MOMENT = re.compile(re.escape(store.OPTIMIZER) + r"(?:\d+\.)*(step|v|v_row|v_col)(?:\.(.+))?")


def open_source(path: Path | str) -> Source:
    """Opens a checkpoint of any kind; names, shapes and dtypes are checked, no array is read.

    Args:
      path: a MODEL_DIR of ours, a folder of step folders or one of these; a local folder with
        config.json and safetensors; a checkpoint_<step> folder of T5X or a folder of several;
        adapters of a run of ours or in PEFT's form, whose base is found by the path they name.

    Raises:
      UserError: if nothing is there, or something that is damaged or no T5 1.1.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"no finished checkpoint in {path}, which does not exist; expected a local folder of "
            "this project, of Hugging Face's or of T5X's"
        )
    if path.is_dir() and huggingface.is_huggingface(path):
        return huggingface.open_huggingface(path.resolve())
    if path.is_dir() and adapters.is_peft(path):
        return adapters.open_peft(path.resolve(), open_source)
    if (folder := t5x_reader.resolve_t5x(path)) is not None:
        return _open_t5x(folder.resolve())
    try:
        folder = store.resolve_checkpoint(path)
    except UserError as error:
        raise UserError(
            f"{error}; or Hugging Face's config.json and safetensors, or a checkpoint_<step> "
            "folder of T5X"
        ) from None
    return _open_native(folder)


def load_model(source: Source, abstract_model: T5) -> T5:
    """Returns the model of a checkpoint, placed as `abstract_model` says.

    Raises:
      UserError: if it is of another size, damaged, or holds what is not a number.
    """
    source.check_fits(abstract_model.config)
    if source.kind == "native":
        return store.restore(source.path, {"model": abstract_model})["model"]
    return assemble(abstract_model, source.read)


def _open_t5x(folder: Path) -> Source:
    opened = t5x_reader.T5xCheckpoint(folder)
    return Source(
        path=opened.folder,
        kind="t5x",
        step=opened.step,
        config=opened.config,
        read=opened.read,
        members=(opened.folder,),
        tokenizer=_tokenizer_in(opened.folder, opened.folder.parent),
        slots=opened.slots,
    )


def _open_native(folder: Path) -> Source:
    arrays = {
        name: (tuple(array.shape), str(np.dtype(array.dtype)))
        for name, array in store.stored_arrays(folder).items()
    }
    stored = {
        name.removeprefix(store.MODEL): found
        for name, found in arrays.items()
        if name.startswith(store.MODEL)
    }
    if adapters.are_adapters(stored):
        return adapters.open_run(folder, open_source)
    config = _native_config(folder, {name: shape for name, (shape, _) in stored.items()})
    reader = _NativeReader(folder, config, {name: shape for name, (shape, _) in arrays.items()})
    check_found(folder, {p.native: p.shape for p in config_parameters(config)}, stored)
    return Source(
        path=folder,
        kind="native",
        step=store.checkpoint_step(folder),
        config=config,
        read=reader.read,
        members=(folder,),
        tokenizer=_tokenizer_in(folder, *_homes(folder)),
        slots=reader.slots(),
    )


class _NativeReader:
    """Reads one array after another, keeping the last: its layers are asked for in turn."""

    def __init__(self, folder: Path, config: T5Config, shapes: Mapping[str, Shape]) -> None:
        self._places: dict[str, tuple[Parameter, int]] = {
            name: (parameter, layer)
            for parameter in config_parameters(config)
            for layer, name in enumerate(parameter.neutral)
        }
        self._folder, self._shapes = folder, shapes
        self._moments = _moment_names(shapes)
        self._last: dict[str, tuple[str, np.ndarray]] = {}

    def read(self, name: str) -> np.ndarray:
        """Returns a neutral array."""
        parameter, layer = self._places[name]
        array = self._layer("parameter", store.MODEL + parameter.native, parameter, layer)
        return to_neutral(parameter, array)

    def slots(self) -> SavedSlots | None:
        """Returns Adafactor's state, None unless every parameter has one."""
        known = self._moments.keys()
        natives = {parameter.native for parameter, _ in self._places.values()}
        if ("step", "") not in known or not all(
            ("v", native) in known or {("v_row", native), ("v_col", native)} <= known
            for native in natives
        ):
            return None
        step = store.read_array(self._folder, self._moments["step", ""], (), np.int32)
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
        """Returns one layer of a stored array, and keeps the array until another is asked for."""
        if self._last.get(kind, ("",))[0] != stored:
            self._last.pop(kind, None)  # freed before the next is read
            array = store.read_array(self._folder, stored, self._shapes[stored])
            self._last[kind] = (stored, array)
        array = self._last[kind][1]
        return array[layer] if parameter.is_stacked else array


def _moment_names(names: Iterable[str]) -> dict[tuple[str, str], str]:
    """Returns the stored names of Adafactor's arrays, by kind and parameter in the model.

    Behind a gradient clip its state is a numbered part of the optimizer's.
    """
    return {
        (found[1], found[2] or ""): name for name in names if (found := _MOMENT.fullmatch(name))
    }


def _native_config(folder: Path, shapes: Mapping[str, Shape]) -> T5Config:
    """Returns the sizes of the model that a checkpoint of ours holds."""
    try:
        vocab_size, emb_dim = shapes["token_embedder.embedding"]
        encoder_layers, _, num_heads, head_dim = shapes["encoder.layers.attention.query.kernel"]
        decoder_layers, _, mlp_dim = shapes["decoder.layers.mlp.wi_0.kernel"]
        _, buckets = shapes["encoder.relpos_bias.rel_embedding"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint {folder} holds no whole model ({error}); give one that "
            "`instructrec train` or `instructrec convert` wrote"
        ) from None
    config = T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=encoder_layers,
        num_decoder_layers=decoder_layers,
        relative_buckets=buckets,
    )
    return dataclasses.replace(config, relative_max_distance=_max_distance(folder))


def _max_distance(folder: Path) -> int:
    """Returns the one size that no shape tells; the manifest of the run does, or it is T5's."""
    for home in _homes(folder):
        if (home / manifest.FILE_NAME).is_file():
            model = manifest.read_manifest(home).settings.get("model")
            if isinstance(model, dict) and "relative_max_distance" in model:
                return int(model["relative_max_distance"])
    return T5Config.relative_max_distance


def _homes(folder: Path) -> tuple[Path, Path]:
    """Returns where a step folder's run may keep what belongs to all steps."""
    return folder.parent, folder.parent.parent


def _tokenizer_in(*folders: Path) -> Path | None:
    """Returns the first SentencePiece model that lies in one of the folders."""
    places = [folder / huggingface.TOKENIZER_FILE for folder in folders]
    return next((place for place in places if place.is_file()), None)
