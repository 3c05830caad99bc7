"""What T5X wrote and computed (tests/testdata/t5x_golden), read without the code under test."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore

from instructrec_jax.checkpoints import parameters
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh

FOLDER = Path(__file__).parent / "testdata" / "t5x_golden"
LEGACY = FOLDER / "t5x_legacy" / "checkpoint_20"
CONFIG = T5Config(
    vocab_size=1152,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


def read_legacy(name: str) -> np.ndarray:
    """An array of the legacy checkpoint: `target.<parameter>`, `state.param_states.<...>.v`."""
    store = {"driver": "file", "path": str(LEGACY / name)}
    return tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()


def golden_model() -> T5:
    """The model of the checkpoint, on one device."""
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    read = lambda name: read_legacy(f"target.{name}")  # noqa: E731
    return parameters.assemble(abstract_model(CONFIG.init, mesh), read)


def packed_batch() -> dict[str, jax.Array]:
    return {
        name: jnp.asarray(array) for name, array in np.load(FOLDER / "packed_batch.npz").items()
    }


def named(key: str) -> tuple[str, tuple[slice, ...]]:
    """Neutral name and slice of a golden array: "a/b[:, :64]" is ("a.b", (:, :64))."""
    name, _, part = key.removeprefix("params/").partition("[")
    sides = [re.sub(r"[\[\] ]", "", side) for side in part.split(",")] if part else []
    stops = [int(side[1:]) if side[1:] else None for side in sides]
    return name.replace("/", "."), tuple(slice(stop) for stop in stops)
