"""The device mesh, the table from logical to mesh axes, and the shardings that follow from it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructrec_jax.errors import UserError, unknown_name

MESH_AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None

# Parameters lie split over "fsdp" along embed and over "tensor" along heads, mlp and vocab;
# activations are split along the batch only, over both "data" and "fsdp".
DEFAULT_RULES: Mapping[str, MeshAxes] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv": None,
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,
    "relpos_buckets": None,
    "lora_rank": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How many devices each mesh axis has.

    Attributes:
      data: copies of the model; -1 takes the devices that the others leave.
      fsdp: devices that share each copy's parameters along embed and split its batch.
      tensor: devices that share heads, mlp and vocab (T5X's NUM_PARTITIONS).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh ("data", "fsdp", "tensor") over all devices, or those given.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [settings.data, settings.fsdp, settings.tensor]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = len(devices) // rest if rest > 0 else 0
    if math.prod(shape) != len(devices) or min(shape) < 1:
        raise UserError(
            f"mesh data={settings.data}, fsdp={settings.fsdp}, tensor={settings.tensor} does not "
            f"fit {len(devices)} devices: the three must multiply to that number (one may be -1)"
        )
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES)


def partition_spec(
    logical_axes: tuple[str, ...], rules: Mapping[str, MeshAxes] = DEFAULT_RULES
) -> PartitionSpec:
    """Returns where an array with these logical axes lies on the mesh.

    Raises:
      UserError: if an axis has no rule, or two axes would lie on one mesh axis.

    Example:
      `partition_spec(("embed", "mlp"))` is `PartitionSpec("fsdp", "tensor")`.
    """
    for axis in logical_axes:
        if axis not in rules:
            raise unknown_name("logical axis", axis, rules)
    placed = [rules[axis] for axis in logical_axes]
    taken = [name for axes in placed for name in ((axes,) if isinstance(axes, str) else axes or ())]
    for name in set(taken):
        if taken.count(name) > 1:
            raise UserError(
                f"logical axes {logical_axes} put two axes of one array on mesh axis {name!r}; "
                "give one of them another rule"
            )
    return PartitionSpec(*placed)


def state_shardings(state: Any, mesh: Mesh, rules: Mapping[str, MeshAxes] = DEFAULT_RULES) -> Any:
    """Returns a sharding for every array of a state that holds a model.

    An array of the optimizer that names logical axes lies as they say; one that does not lies like
    the parameter it belongs to, recognised by the end of its path and an equal shape; anything else
    (step, counts) is on every device.

    Args:
      state: a pytree of arrays or shapes with `nnx.Param` leaves that carry `logical_axes`.
      mesh: the device mesh.
      rules: logical axis to mesh axis.

    Returns:
      The same pytree with a NamedSharding for each array.

    Raises:
      UserError: if a dimension is not divisible by its mesh axis.
    """
    parameters = _parameter_specs(state.model, mesh, rules)
    replicated = NamedSharding(mesh, PartitionSpec())

    def choose(path: tuple[Any, ...], leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable) and "logical_axes" in leaf.get_metadata():
            spec = partition_spec(logical_axes(leaf), rules)
            return jax.tree.map(lambda _: NamedSharding(mesh, spec), leaf)
        # The longest parameter path that ends this path: "layers/kernel" must not match "kernel".
        keys = tuple(map(str, path))
        for start in range(len(keys)):
            if (found := parameters.get(keys[start:])) and found[0] == leaf.shape:
                return NamedSharding(mesh, found[1])
        return replicated

    is_own = lambda leaf: isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.Param)  # noqa: E731
    return jax.tree_util.tree_map_with_path(choose, state, is_leaf=is_own)


def logical_axes(variable: nnx.Variable) -> tuple[str, ...]:
    """Returns the logical axes of an array, with "layers" first where `jax.vmap` stacked it."""
    axes = tuple(variable.get_metadata()["logical_axes"])
    return ("layers", *axes) if len(variable.shape) == len(axes) + 1 else axes


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes each device holds of placed arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over "data" and "fsdp", the rest whole."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def num_batch_shares(mesh: Mesh) -> int:
    """Returns how many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_rows(num_rows: int, mesh: Mesh, *, name: str) -> None:
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
        raise UserError(
            f"{name} is {num_rows}; expected a multiple of data x fsdp = {shares}, the devices "
            "that share the rows of a batch"
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Moves the numeric arrays of a numpy batch onto the mesh; text stays behind.

    Args:
      batch: arrays with the rows of this process first, [rows, ...].
      mesh: the device mesh.

    Raises:
      UserError: if the rows cannot be split evenly over the mesh.
    """
    sharding = batch_sharding(mesh)
    numeric = {k: v for k, v in batch.items() if np.issubdtype(v.dtype, np.number)}
    for name, value in numeric.items():
        check_rows(value.shape[0] * jax.process_count(), mesh, name=f"BATCH_SIZE (of {name})")
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in numeric.items()
    }


def _parameter_specs(
    model: Any, mesh: Mesh, rules: Mapping[str, MeshAxes]
) -> dict[tuple[str, ...], tuple[tuple[int, ...], PartitionSpec]]:
    """Returns shape and placement of each parameter by the keys of its path inside the model."""
    specs = {}
    is_param = lambda leaf: isinstance(leaf, nnx.Param)  # noqa: E731
    for path, param in jax.tree_util.tree_leaves_with_path(model, is_leaf=is_param):
        spec = partition_spec(logical_axes(param), rules)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        _check_divisible(name, param.shape, spec, mesh)
        specs[(*map(str, path), str(jax.tree_util.GetAttrKey("value")))] = (param.shape, spec)
    return specs


def _check_divisible(name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> None:
    for size, axes in zip(shape, spec, strict=True):
        names = (axes,) if isinstance(axes, str) else axes or ()
        shares = math.prod(mesh.shape[axis] for axis in names)
        if size % shares:
            raise UserError(
                f"parameter {name} of shape {shape} cannot be split: {size} is not divisible by "
                f"the {shares} devices of mesh axis {axes!r}; choose another mesh"
            )
