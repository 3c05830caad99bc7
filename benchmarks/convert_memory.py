"""Measures `instructrec convert`: seconds and peak memory, both ways.

    python benchmarks/convert_memory.py --size=large --folder=/tmp/a_convert

Protocol: random float32 weights of the size (normal, deviation 0.05) are written as safetensors;
then hf -> native, native -> hf, hf -> t5x and t5x -> hf each run once in a fresh process (one CPU
device, files in the page cache as they fall). Memory is ru_maxrss of that process, the interpreter
and its imports included; the ratio is that to the size of the safetensors file. Also measured in
fresh processes: loading the checkpoint as a run does (load_model onto one CPU device). The last
files are compared with the first, array by array. The folder is removed afterwards.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from instructrec_jax.checkpoints import safetensors
from instructrec_jax.checkpoints.huggingface import WEIGHTS_FILE, write_huggingface
from instructrec_jax.checkpoints.parameters import neutral_shapes
from instructrec_jax.models.t5 import T5Config

# emb_dim, num_heads, mlp_dim, layers of each stack; T5 1.1's published sizes.
SIZES = {
    "tiny": (16, 2, 32, 2),
    "small": (512, 6, 1024, 8),
    "base": (768, 12, 2048, 12),
    "large": (1024, 16, 2816, 24),
}
LOAD = (
    "import sys, jax; from instructrec_jax.checkpoints import source; "
    "from instructrec_jax.parallel.mesh import MeshSettings, make_mesh; "
    "from instructrec_jax.parallel.mesh import abstract_model; "
    "found = source.open_source(sys.argv[1]); "
    "mesh = make_mesh(MeshSettings(), jax.devices()[:1]); "
    "source.load_model(found, abstract_model(found.config.init, mesh))"
)


def make_source(folder: Path, size: str) -> int:
    """Writes a random checkpoint; returns the bytes of its weights."""
    emb_dim, num_heads, mlp_dim, num_layers = SIZES[size]
    config = T5Config(
        emb_dim=emb_dim,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
    )
    shapes, rng = neutral_shapes(config), np.random.default_rng(0)
    folder.mkdir(parents=True)
    write_huggingface(
        folder,
        config=config,
        step=0,
        read=lambda name: rng.standard_normal(shapes[name], np.float32) * np.float32(0.05),
    )
    return (folder / WEIGHTS_FILE).stat().st_size


def run(arguments: list[str]) -> tuple[float, int]:
    """Runs Python once; returns (seconds, peak resident bytes)."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"failed with {child.returncode}: {arguments}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def is_same(one: Path, other: Path) -> bool:
    """Whether two files hold the same arrays, bit for bit."""
    first, second = (safetensors.read_header(path / WEIGHTS_FILE)[0] for path in (one, other))
    return first.keys() == second.keys() and all(
        safetensors.read_array(first[name]).tobytes()
        == safetensors.read_array(second[name]).tobytes()
        for name in first
    )


def main() -> None:
    """Measures one size and prints a line for each conversion."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--folder", type=Path, required=True, help="made, and removed afterwards")
    options = parser.parse_args()
    folder: Path = options.folder
    try:
        size = make_source(folder / "hf", options.size)
        print(f"{options.size}: {size / 2**20:,.0f} MiB of weights")
        steps = [("hf", "native", "native"), ("native", "hf", "hf_again")]
        steps += [("hf", "t5x", "t5x"), ("t5x", "hf", "hf_from_t5x")]
        for source, kind, dest in steps:
            paths = [str(folder / source), str(folder / dest)]
            seconds, peak = run(["-m", "instructrec_jax", "convert", *paths, f"--to={kind}"])
            print(f"convert {source:6} -> {kind:6} {_figures(seconds, peak, size)}", flush=True)
        for source in ("hf", "native", "t5x"):
            seconds, peak = run(["-c", LOAD, str(folder / source)])
            print(f"load    {source:16} {_figures(seconds, peak, size)}", flush=True)
        for dest in ("hf_again", "hf_from_t5x"):
            print(f"{dest} is the same, bit for bit: {is_same(folder / 'hf', folder / dest)}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _figures(seconds: float, peak: int, size: int) -> str:
    return f"{seconds:6.1f} s, peak {peak / 2**20:7,.0f} MiB = {peak / size:.2f} x the weights"


if __name__ == "__main__":
    main()
