"""What lies where: memory that arrays take of each device, and the rows of batches."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import LogicalMesh, mesh_axis_names


def num_parameters(model: Any) -> int:
    """Returns the number of parameters of a model or of its shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def describe_placement(model: Any, optimizer_state: Any = None) -> str:
    """Returns the number of parameters, the mesh, and the memory they take on a device.

    Args:
      model: arrays, or shapes, with shardings.
      optimizer_state: likewise; None where there is no optimizer.
    """
    mesh = jax.tree.leaves(model)[0].sharding.mesh
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    memory = f"{_mebibytes(model)} MiB of parameters"
    if optimizer_state is None:
        memory += " per device"
    else:
        memory = (
            f"{_mebibytes((model, optimizer_state))} MiB of state per device ({memory}, "
            f"{_mebibytes(optimizer_state)} MiB of the optimizer's)"
        )
    return f"{num_parameters(model):,} parameters, mesh {axes}, {memory}"


def _mebibytes(tree: Any) -> str:
    return f"{bytes_per_device(tree) / 2**20:,.1f}"


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes each device holds of placed arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def batch_sharding(mesh: LogicalMesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over "data" and "fsdp", the rest whole."""
    return mesh.sharding("batch")


def num_batch_shares(mesh: LogicalMesh) -> int:
    """Returns how many parts a batch is split into."""
    return mesh.num_shares("batch")


def check_rows(num_rows: int, mesh: LogicalMesh, *, name: str) -> None:
    """Raises where a batch cannot be split evenly over the mesh.

    Args:
      num_rows: rows of the batch over all processes.
      mesh: the device mesh.
      name: what the user calls the number of rows.

    Raises:
      UserError: if the rows do not divide.
    """
    shares = num_batch_shares(mesh)
    if num_rows < 1 or num_rows % shares:
        axes = " x ".join(mesh_axis_names(dict(mesh.rules)["batch"]))
        raise UserError(
            f"{name} is {num_rows}; expected a multiple of {axes} = {shares}, the devices "
            "that share the rows of a batch"
        )


def process_rows(num_rows: int, mesh: LogicalMesh) -> tuple[int, ...]:
    """Returns the rows of a batch that lie on devices of this process, ascending.

    Processes may have rows in common: where the devices that share heads and MLP are of several.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values()
    return tuple(sorted({row for place in places if place for row in range(num_rows)[place[0]]}))


def place_batch(
    batch: Mapping[str, np.ndarray], mesh: LogicalMesh, *, num_rows: int | None = None
) -> dict[str, jax.Array]:
    """Moves the numeric arrays of a numpy batch onto the mesh; ids and numbers of examples stay.

    Args:
      batch: arrays [rows, ...]: the whole batch, in each process, or the `process_rows` alone.
      mesh: the device mesh.
      num_rows: rows of the whole batch where `batch` holds this process's; None: it is whole.

    Raises:
      UserError: if the rows cannot be split evenly over the mesh.
    """
    numeric = {k: v for k, v in batch.items() if np.issubdtype(v.dtype, np.number)}
    numeric.pop("example_number", None)
    for name, value in numeric.items():
        total = len(value) if num_rows is None else num_rows
        check_rows(total, mesh, name=f"BATCH_SIZE (of {name})")
    sharding = batch_sharding(mesh)
    if num_rows is None or jax.process_count() == 1:
        return place_whole(numeric, sharding)
    index_of = {row: index for index, row in enumerate(process_rows(num_rows, mesh))}

    def placed(value: np.ndarray) -> jax.Array:
        def part(place: Any) -> np.ndarray:
            rows = range(num_rows)[place[0]]
            return value[index_of[rows[0]] :][: len(rows)]

        return jax.make_array_from_callback((num_rows, *value.shape[1:]), sharding, part)

    return {name: placed(value) for name, value in numeric.items()}


def place_whole(tree: Any, sharding: NamedSharding) -> Any:
    """Moves arrays that every process holds whole onto devices, each of which takes its part."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def placed(value: np.ndarray) -> jax.Array:  # device_put would compare those of all processes
        return jax.make_array_from_callback(value.shape, sharding, lambda place: value[place])

    return jax.tree.map(placed, tree)


def on_host(tree: Any) -> Any:
    """Returns arrays in the memory of every process, whole, whatever devices they lie on."""
    return multihost_utils.process_allgather(tree, tiled=True)
