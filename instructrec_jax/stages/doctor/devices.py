"""The checks of `doctor` that start devices: a process of its own, which may hang or be killed.

It writes a line of JSON for each check as soon as it is done.
"""

import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.stages.doctor.checks import (
    ALL_REDUCE,
    CACHE,
    CHECKPOINT,
    DEVICES,
    Problem,
    run_check,
)

_COLUMNS = 128  # of the array that a checkpoint keeps


def look_at_devices(*, has_gpu: bool, has_tpu: bool) -> str | Problem:
    """Returns which devices JAX takes; a problem where it leaves accelerators alone."""
    first, platforms = jax.local_devices()[0], os.environ.get("JAX_PLATFORMS", "")
    shown = f"{jax.device_count()} x {first.device_kind} ({first.platform})"
    if memory := (first.memory_stats() or {}).get("bytes_limit"):
        shown += f", {memory / 2**30:.1f} GiB each"
    if jax.process_count() > 1:
        shown += f"; process {jax.process_index()} of {jax.process_count()}"
    if first.platform == "cpu" and (has_gpu or has_tpu) and platforms != "cpu":
        name = "GPU" if has_gpu else "TPU"
        return Problem(
            f"{shown}, though the machine has a {name}",
            f"set JAX_PLATFORMS={'cuda' if has_gpu else 'tpu'} to see why it cannot be used",
        )
    return shown


def look_at_all_reduce() -> str | Problem:
    """Adds one number of each device, over the devices of all processes."""
    mesh = make_mesh(MeshSettings())
    number, rows = jax.device_count(), NamedSharding(mesh.devices, PartitionSpec("data"))
    ranks = np.arange(1, number + 1, dtype=np.int32)
    placed = jax.make_array_from_callback(ranks.shape, rows, lambda index: ranks[index])
    whole = NamedSharding(mesh.devices, PartitionSpec())
    found = int(jax.jit(jnp.sum, out_shardings=whole)(placed))
    return _compared(found, int(ranks.sum()), f"over {number} devices")


def _compared(found: int, expected: int, where: str) -> str | Problem:
    if found != expected:
        return Problem(
            f"the sum {where} is {found}, expected {expected}",
            "the devices or their links are faulty: take other ones",
        )
    return f"the sum {where} is right"


def look_at_checkpoint(folder: Path) -> str | Problem:
    """Saves an array that is shared among all devices, and reads it back.

    Args:
      folder: where it is saved; the same of all processes, of which one removes it afterwards.
    """
    values = np.arange(jax.device_count() * _COLUMNS, dtype=np.float32).reshape(-1, _COLUMNS)
    rows = NamedSharding(make_mesh(MeshSettings()).devices, PartitionSpec("data"))
    saved = jax.make_array_from_callback(values.shape, rows, lambda index: values[index])
    found = _saved_and_restored(folder, saved)
    processes.gathered(None)  # all have read it, before it is removed
    shards = zip(found.addressable_shards, saved.addressable_shards, strict=True)
    if not all(np.array_equal(after.data, before.data) for after, before in shards):
        return Problem(
            f"what was read back from {folder.parent} is not what was saved",
            "the disk or the mount is faulty: name another MODEL_DIR",
        )
    return f"saved and read back in {folder.parent}"


def _saved_and_restored(folder: Path, array: jax.Array) -> jax.Array:
    from instructrec_jax.checkpoints import store

    kept = store.CheckpointStore(folder, keep=1)
    try:
        kept.save(1, {"model": array})
        abstract = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        return kept.restore(1, {"model": abstract})["model"]
    finally:
        kept.close()


def look_at_cache() -> str | Problem:
    """Compiles a program and looks whether it was kept for the next start."""
    from instructrec_jax.parallel.compilation_cache import COMPILATION_CACHE_DIR, keep_compiled

    keep_compiled(COMPILATION_CACHE_DIR)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    folder = Path(jax.config.values["jax_compilation_cache_dir"])

    def doctor(number: jax.Array) -> jax.Array:
        return number + 1

    jax.jit(doctor)(1).block_until_ready()
    if not any(folder.glob("jit_doctor-*")) and jax.process_index() == 0:
        return Problem(
            f"nothing is kept in {folder}",
            "mend that folder, or set JAX_COMPILATION_CACHE_DIR to another",
        )
    return f"compiled programs are kept in {folder}"


def main(beside: str, accelerators: str) -> None:
    """Runs the checks; writes to stdout which process this is, and then what each found.

    Args:
      beside: the folder in which a checkpoint is tried.
      accelerators: words "gpu", "tpu" for what the machine has.
    """
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    folder = Path(beside)

    def tell(found: Any) -> None:
        lines.write(json.dumps(found) + "\n")
        lines.flush()

    def devices() -> str | Problem:
        nonlocal folder
        index = processes.initialise()
        folder = folder / f".doctor.{processes.gathered(secrets.token_hex(8))[0]}.tmp"
        tell({"process": index, "folder": str(folder)})
        return look_at_devices(has_gpu="gpu" in accelerators, has_tpu="tpu" in accelerators)

    looks: dict[str, Callable[[], str | Problem]] = {
        DEVICES: devices,
        ALL_REDUCE: look_at_all_reduce,
        CHECKPOINT: lambda: look_at_checkpoint(folder),
        CACHE: look_at_cache,
    }
    for name, look in looks.items():
        tell(dataclasses.asdict(run_check(name, look)))


if __name__ == "__main__":
    main(*sys.argv[1:])
