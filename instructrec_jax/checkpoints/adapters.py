"""Checkpoints of low-rank adapters: a few arrays, and which other checkpoint they change.

A run of `models.adapters.Lora` keeps `model.<kernel's module>.adapter.lora_a` and `.lora_b` alone,
stacked over layers, and MODEL_DIR/adapters.json says what they belong to. PEFT's folders hold
adapter_config.json and adapter_model.safetensors, one pair of arrays a layer, transposed. Read as a
`Source`, either is the base with the adapters merged: W + (alpha / rank) A B.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files
from instructrec_jax.checkpoints import safetensors, store
from instructrec_jax.checkpoints.huggingface import stored_name
from instructrec_jax.checkpoints.parameters import (
    Parameter,
    Shape,
    check_finite,
    check_found,
    checked_step,
    config_parameters,
)
from instructrec_jax.checkpoints.ranking_config import find_ranking_config
from instructrec_jax.checkpoints.source import Adapters, Source, find_tokenizer, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import LORA_A, LORA_B, Lora, Rank
from instructrec_jax.settings import Positive, misfit, shown

NOTE_FILE = "adapters.json"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_COPY = ".base_layer.weight"  # PEFT's copy of a table whose adapters it saves: of lm_head
_STEP = "instructrec_step"  # in the metadata of a file of ours
_HINT = "it is not of the run or base that its folder names"
# Fields of PEFT's config that must have one of these values. Of the ways to begin, these change no
# weight of the base; "pissa", "olora", "corda", "loftq" and others do: PEFT takes something out of
# W before it adds B A.
_PEFT_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}
# Fields that do not change what trained adapters compute. Any field that is not known must be
# empty: it may change that.
_PEFT_IGNORED = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "eva_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size"),
}
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """What a run's adapters belong to; the JSON of adapters.json.

    Attributes:
      base: the checkpoint whose kernels they change, seen from the file's folder.
      base_sha256: its fingerprint; None if it is not known.
      rank: columns of A.
      alpha: the product of A and B is multiplied by alpha / rank.
    """

    base: str
    base_sha256: str | None
    rank: Rank
    alpha: Positive


def claim_base(model_dir: Path | str, base: Source, lora: Lora) -> None:
    """Writes beside a run's checkpoints what its adapters belong to, or checks it.

    Raises:
      UserError: if an earlier part of the run had another base.
    """
    path = Path(model_dir) / NOTE_FILE
    note = Note(
        base=os.path.relpath(base.path.resolve(), Path(model_dir).resolve()),
        base_sha256=base.fingerprint(),
        rank=lora.rank,
        alpha=lora.alpha,
    )
    if not path.is_file():
        files.write_text(path, json.dumps(dataclasses.asdict(note), indent=2) + "\n")
        return
    if (earlier := _read_note(path)).base_sha256 != note.base_sha256:
        raise UserError(
            f"{model_dir} holds adapters of {earlier.base}, sha256 {earlier.base_sha256}, and "
            f"INITIAL_CHECKPOINT_PATH is now {note.base}, sha256 {note.base_sha256}; give the one "
            "that the run began with, or another MODEL_DIR"
        )


def are_adapters(names: Iterable[str]) -> bool:
    """Returns whether the arrays of a checkpoint of ours are adapters."""
    return any(name.endswith((LORA_A, LORA_B)) for name in names)


def open_run(folder: Path, above: tuple[Path, ...] = ()) -> Source:
    """Opens a step folder that holds adapters; names and shapes are checked.

    Args:
      folder: as `store.resolve_checkpoint` returns it.
      above: as `open_source`.

    Raises:
      UserError: if adapters.json or the base is missing, or the arrays are of another model.
    """
    homes = (folder.parent.parent, folder.parent, folder)
    path = next((home / NOTE_FILE for home in homes if (home / NOTE_FILE).is_file()), None)
    if path is None:
        raise UserError(
            f"checkpoint {folder} holds adapters alone, and there is no {NOTE_FILE} in "
            f"{homes[0]} that says what they change; put it back beside the run's checkpoints"
        )
    note = _read_note(path)
    base = _open_base(path, note, above)
    stored = {
        name.removeprefix(store.MODEL): array
        for name, array in store.stored_arrays(folder, {"model"}).items()
    }
    wanted: dict[str, Shape] = {}
    changed: dict[str, tuple[Parameter, str, int]] = {}
    for parameter in config_parameters(base.config):
        module = parameter.native.removesuffix("kernel")
        if module == parameter.native or module + LORA_A not in stored:
            continue
        wanted[module + LORA_A], wanted[module + LORA_B] = _shapes(parameter, note.rank)
        changed |= {n: (parameter, module, i) for i, n in enumerate(parameter.neutral)}
    found = {name: (array.shape, array.dtype) for name, array in stored.items()}
    check_found(folder, wanted, found, hint=_HINT)

    @functools.cache  # small, and asked for layer by layer
    def read_stack(module: str) -> Pair:
        return stored[module + LORA_A].read(), stored[module + LORA_B].read()

    def read(name: str) -> Pair:
        parameter, module, layer = changed[name]
        a, b = read_stack(module)
        if parameter.is_stacked:
            a, b = a[layer], b[layer]
        return a.reshape(-1, note.rank), b.reshape(note.rank, -1)

    adapters = Adapters(base=base, rank=note.rank, alpha=note.alpha, names=(*changed,), read=read)
    return _merged(
        folder,
        adapters,
        note,
        step=store.checkpoint_step(folder),
        members=(folder,),
        homes=(folder, folder.parent, folder.parent.parent),
    )


def is_peft(path: Path) -> bool:
    """Returns whether a folder holds adapters in PEFT's form, whole or not."""
    return any((path / name).is_file() for name in (PEFT_CONFIG, PEFT_WEIGHTS))


def open_peft(path: Path, above: tuple[Path, ...] = ()) -> Source:
    """Opens adapters in PEFT's form.

    Args:
      path: a folder with adapter_config.json and adapter_model.safetensors.
      above: as `open_source`.

    Raises:
      UserError: if the base is not there, or they are more or other than plain LoRA.
    """
    note = _read_peft_config(path / PEFT_CONFIG)
    base = _open_base(path / PEFT_CONFIG, note, above)
    entries, metadata = safetensors.read_header(path / PEFT_WEIGHTS)
    wanted: dict[str, Shape] = {}
    names = []
    for parameter in config_parameters(base.config):
        for name in parameter.neutral if parameter.native.endswith("kernel") else ():
            if (keys := _peft_names(name))[0] in entries:
                into, out_of = parameter.neutral_shape
                wanted[keys[0]], wanted[keys[1]] = (note.rank, into), (out_of, note.rank)
                if (copied := _peft_module(name) + _PEFT_COPY) in entries:
                    wanted[copied] = (out_of, into)
                names.append(name)
    found = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    check_found(path, wanted, found, hint=_HINT)

    def read(name: str) -> Pair:
        key = _peft_module(name) + _PEFT_COPY
        if (copied := entries.get(key)) and not np.array_equal(
            safetensors.read_array(copied).T, base.read(name)
        ):
            raise UserError(
                f"{path} holds another {key} than the base {note.base}; put the checkpoint there "
                "that the adapters were trained on"
            )
        a, b = (
            safetensors.read_array(entries[key]).astype(np.float32) for key in _peft_names(name)
        )
        return a.T, b.T

    adapters = Adapters(base=base, rank=note.rank, alpha=note.alpha, names=(*names,), read=read)
    return _merged(
        path,
        adapters,
        note,
        step=checked_step(metadata.get(_STEP, "0"), path),
        members=(path / PEFT_CONFIG, path / PEFT_WEIGHTS),
        homes=(path,),
    )


def write_peft(folder: Path, opened: Source) -> None:
    """Writes the adapters of a checkpoint, without its base, in PEFT's form.

    Args:
      folder: an empty folder; the caller makes sure that a half-filled one is never found.
      opened: from `open_run` or `open_peft`.

    Raises:
      UserError: if the checkpoint holds none.
    """
    adapters = opened.adapters
    if adapters is None:
        raise UserError(
            f"{opened.path} holds whole parameters and no adapters; expected a MODEL_DIR that was "
            "trained with gin/overlays/lora.gin, or choose another kind"
        )
    shapes = {n: p.neutral_shape for p in config_parameters(opened.config) for n in p.neutral}
    stored: dict[str, tuple[str, int, Shape]] = {}
    for name in adapters.names:
        into, out_of = shapes[name]
        key_a, key_b = _peft_names(name)
        stored[key_a] = (name, 0, (adapters.rank, into))
        stored[key_b] = (name, 1, (out_of, adapters.rank))

    def read(key: str) -> np.ndarray:
        name, part, _ = stored[key]
        array = adapters.read(name)[part]
        check_finite(f"{key} of {opened.path}", array)
        return array.T

    metadata = {"format": "pt", _STEP: str(opened.step)}
    sizes = {key: shape for key, (_, _, shape) in stored.items()}
    safetensors.write(folder / PEFT_WEIGHTS, sizes, read, metadata)
    text = json.dumps(_peft_fields(adapters), indent=2) + "\n"
    files.write_text(folder / PEFT_CONFIG, text)


def _merged(
    path: Path,
    adapters: Adapters,
    note: Note,
    *,
    step: int,
    members: tuple[Path, ...],
    homes: tuple[Path, ...],
) -> Source:
    """Returns the base with the adapters merged; `homes` may say how they rank."""
    base = adapters.base
    is_checked = False

    def read(name: str) -> np.ndarray:
        nonlocal is_checked
        if not is_checked:
            _check_base(path, note, base)
            is_checked = True
        array = base.read(name)
        if name not in changed:
            return array
        a, b = adapters.read(name)
        scale = np.float32(adapters.alpha / adapters.rank)
        return array.astype(np.float32) + scale * (a @ b)

    changed = set(adapters.names)
    return Source(
        path=path,
        kind="lora",
        step=step,
        config=base.config,
        read=read,
        members=(*members, *base.members),
        tokenizer=base.tokenizer or find_tokenizer(*homes),
        ranking=find_ranking_config(*homes) or base.ranking,
        adapters=adapters,
    )


def _check_base(path: Path, note: Note, base: Source) -> None:
    """Raises where the base is not the one the adapters were trained on."""
    if note.base_sha256 is not None and (found := base.fingerprint()) != note.base_sha256:
        raise UserError(
            f"the adapters of {path} were trained on {note.base} with sha256 {note.base_sha256}, "
            f"which now is {found}; put the checkpoint back that the run began with"
        )


def _open_base(where: Path, note: Note, above: tuple[Path, ...]) -> Source:
    """Opens the checkpoint that adapters change."""
    base = where.parent / note.base
    if not base.exists():
        base = Path(note.base)
    if not base.exists():
        raise UserError(
            f"{where} names the base {note.base}, which is no local folder; put the checkpoint "
            "that the adapters change there (a link will do), or correct the name"
        )
    if where in above:
        raise UserError(f"{where} names a base that leads back to itself; correct the name")
    return open_source(base, above=(*above, where))


def _shapes(parameter: Parameter, rank: int) -> tuple[Shape, Shape]:
    """Returns the shapes of A and B of a kernel, or of a stack."""
    layer, stack = parameter.layer_shape, parameter.shape[: int(parameter.is_stacked)]
    num = next(
        n for n in range(1, len(layer)) if math.prod(layer[:n]) == parameter.neutral_shape[0]
    )
    return (*stack, *layer[:num], rank), (*stack, rank, *layer[num:])


def _read_note(path: Path) -> Note:
    return files.read_json(path, Note, remedy="put back the one of the run")


def _peft_names(name: str) -> tuple[str, str]:
    """Returns PEFT's names of A and B for a neutral kernel."""
    module = _peft_module(name)
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _peft_module(name: str) -> str:
    return f"base_model.model.{stored_name(name).removesuffix('.weight')}"


def _peft_fields(adapters: Adapters) -> dict[str, Any]:
    modules = sorted(stored_name(name).removesuffix(".weight") for name in adapters.names)
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": str(adapters.base.path),
        "r": adapters.rank,
        "lora_alpha": adapters.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _read_peft_config(path: Path) -> Note:
    """Reads what is needed of PEFT's config and refuses what we do not compute."""
    fields = files.read_json(path, dict[str, Any], remedy="get it again")
    for name, value in {"peft_type": None, **fields}.items():
        allowed = _PEFT_PLAIN.get(name, (value,) if name in _PEFT_IGNORED else ())
        if value not in allowed and (value or name in _PEFT_PLAIN):
            expected = " or ".join(map(json.dumps, allowed)) or "nothing or false"
            raise UserError(
                f"{path} says {name} = {json.dumps(value)}; expected plain LoRA, {name} = "
                f"{expected}: merge the adapters with PEFT and give the model"
            )
    needed = {"base_model_name_or_path": str, "r": Rank, "lora_alpha": Positive}
    for name, hint in needed.items():
        if expected := misfit(fields.get(name), hint):
            raise UserError(f"{path} says {name} = {shown(fields.get(name))}; expected {expected}")
    return Note(
        base=fields["base_model_name_or_path"],
        base_sha256=None,
        rank=fields["r"],
        alpha=fields["lora_alpha"],
    )
