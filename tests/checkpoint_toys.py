"""Small checkpoints of every kind, and ways to damage them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from instructrec_jax.checkpoints import safetensors
from instructrec_jax.checkpoints.huggingface import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    open_huggingface,
    write_huggingface,
)
from instructrec_jax.checkpoints.native import write_native
from instructrec_jax.checkpoints.parameters import neutral_shapes, parameters, to_neutral
from instructrec_jax.checkpoints.source import Source
from instructrec_jax.checkpoints.t5x import T5xCheckpoint, write_t5x
from instructrec_jax.models.t5 import T5, T5Config

GOLDEN = Path(__file__).parent / "testdata" / "hf_golden"
# No two sizes are alike, and heads do not fill the stream: a mistaken axis cannot pass.
CONFIG = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    head_dim=6,
    mlp_dim=24,
    num_encoder_layers=3,
    num_decoder_layers=2,
    relative_buckets=8,
)


def random_arrays(config: T5Config = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Neutral arrays, no two alike."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 1, shape).astype(np.float32)
        for name, shape in neutral_shapes(config).items()
    }


def disassemble(model: T5) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and array of every neutral array of a model."""
    for parameter, leaf in zip(parameters(model), jax.tree.leaves(model), strict=True):
        layers = leaf if parameter.is_stacked else leaf[None]
        for layer, name in zip(np.asarray(layers), parameter.neutral, strict=True):
            yield name, to_neutral(parameter, layer)


def write(folder: Path, kind: str, arrays: dict[str, np.ndarray], *, step: int = 7, **kwargs):
    """Writes arrays as a checkpoint of a kind; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"config": CONFIG, "step": step} | kwargs
    if kind == "hf":
        write_huggingface(folder, read=arrays.__getitem__, **fields)
    elif kind == "native":
        write_native(folder, read=arrays.__getitem__, **fields)
    else:
        write_t5x(folder, arrays.items(), **fields)
    return folder


def golden_copy(folder: Path) -> Path:
    """A copy of the golden Hugging Face model that may be damaged."""
    folder.mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(GOLDEN / name, folder / name)
    return folder


def change_config(folder: Path, **fields) -> None:
    """Sets fields of config.json; None removes one."""
    found = json.loads((folder / CONFIG_FILE).read_text()) | fields
    kept = {name: value for name, value in found.items() if value is not None}
    (folder / CONFIG_FILE).write_text(json.dumps(kept))


def change_weights(folder: Path, **arrays: np.ndarray | None) -> None:
    """Sets arrays of model.safetensors, "__" for "."; None removes one."""
    entries, metadata = safetensors.read_header(folder / WEIGHTS_FILE)
    found = {name: safetensors.read_array(entry) for name, entry in entries.items()}
    found |= {name.replace("__", "."): array for name, array in arrays.items()}
    kept = {name: array for name, array in found.items() if array is not None}
    shapes = {name: array.shape for name, array in kept.items()}
    safetensors.write(folder / WEIGHTS_FILE, shapes, kept.__getitem__, metadata)


def change_header(folder: Path, change) -> None:
    """Rewrites the header of model.safetensors, the arrays' bytes untouched."""
    path = folder / WEIGHTS_FILE
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def neutral_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a Hugging Face folder in neutral form."""
    source = open_huggingface(folder)
    return {name: source.read(name) for name in neutral_shapes(source.config)}


def everything(checkpoint: Source | T5xCheckpoint) -> dict[str, np.ndarray]:
    """Every array of an opened checkpoint by neutral name, Adafactor's slots too."""
    names = neutral_shapes(checkpoint.config)
    found = {name: checkpoint.read(name) for name in names}
    if checkpoint.slots is not None:
        slots = {name: checkpoint.slots.read(name) for name in names}
        found |= {f"{n}.{slot}": a for n, kept in slots.items() for slot, a in kept.items()}
    return found


def assert_bit_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name
