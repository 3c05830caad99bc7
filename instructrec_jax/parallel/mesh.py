"""The device mesh, the table from logical to mesh axes, and the shardings that follow from it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.settings import Range, check_fields, refuse

MESH_AXES = ("data", "fsdp", "tensor")
MeshAxes = str | tuple[str, ...] | None
Tree = TypeVar("Tree")

# Parameters are sharded over "fsdp" along embed and over "tensor" along heads, mlp and vocab;
# activations along the batch only, over both "data" and "fsdp".
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

    data: Annotated[int, Range(-1)] = -1
    fsdp: Annotated[int, Range(-1)] = 1
    tensor: Annotated[int, Range(-1)] = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == 0:
                raise refuse(self, field.name, "a number of devices, or -1: those that are left")


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
            f"mesh data={settings.data}, fsdp={settings.fsdp}, tensor={settings.tensor} "
            f"(NUM_PARTITIONS) does not fit {len(devices)} devices: the three must multiply to "
            "that number (one may be -1)"
        )
    # Auto: XLA chooses how intermediate arrays are sharded; JAX also orders devices by their links.
    return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(shape), devices=devices)


def partition_spec(
    logical_axes: tuple[str, ...], rules: Mapping[str, MeshAxes] = DEFAULT_RULES
) -> PartitionSpec:
    """Returns how an array with these logical axes is sharded over the mesh.

    Raises:
      UserError: if an axis has no rule, or two axes have one mesh axis.

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


def shardings(
    tree: Any,
    mesh: Mesh,
    rules: Mapping[str, MeshAxes] = DEFAULT_RULES,
    *,
    is_strict: bool = True,
) -> Any:
    """Returns the sharding of every array of a pytree, by the logical axes that it names.

    Logical axes are metadata of an `nnx.Variable`. Optax keeps them in its state, whose moments are
    made of parameters with `jax.tree.map`. An array without logical axes is on every device.

    Args:
      tree: a pytree of arrays or shapes, some inside `nnx.Variable`s.
      mesh: the device mesh.
      rules: logical axis to mesh axis.
      is_strict: whether an array that its axes do not divide is an error; otherwise it is on every
        device. Optimizers may keep arrays under a parameter's axes that have another shape.

    Returns:
      The same pytree with a NamedSharding for each array.

    Raises:
      UserError: if a dimension is not divisible by its mesh axis.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> Any:
        spec = PartitionSpec()
        axes = logical_axes(leaf) if isinstance(leaf, nnx.Variable) else None
        if axes is not None:
            wanted = partition_spec(axes, rules)
            problem = _indivisible(leaf.shape, wanted, mesh)
            if problem and is_strict:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"parameter {name} of shape {leaf.shape} cannot be split: {problem}; choose "
                    "another mesh"
                )
            spec = PartitionSpec() if problem else wanted
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), leaf)

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(choose, tree, is_leaf=is_variable)


def abstract(make: Callable[[], Tree], placed: Callable[[Tree], Tree]) -> Tree:
    """Returns the shapes of what a function makes, with shardings; nothing is computed."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placed(shapes),
    )


def abstract_model(init: Callable[[jax.Array], Tree], mesh: Mesh) -> Tree:
    """Returns a model's shapes with their shardings; nothing is computed or allocated.

    Args:
      init: builds the model from a key.
      mesh: the device mesh.
    """
    return abstract(lambda: init(jax.random.key(0)), lambda shapes: shardings(shapes, mesh))


def logical_axes(variable: nnx.Variable) -> tuple[str, ...] | None:
    """Returns the logical axes of an array, with "layers" first where `jax.vmap` stacked it."""
    if (named := variable.get_metadata().get("logical_axes")) is None:
        return None
    axes = tuple(named)
    return ("layers", *axes) if len(variable.shape) == len(axes) + 1 else axes


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
    """Moves the numeric arrays of a numpy batch onto the mesh and leaves text out.

    Args:
      batch: arrays of this process's rows alone, [BATCH_SIZE / processes, ...]. The batch on the
        mesh is that of all processes, each one's rows on its own devices.
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


def _indivisible(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str:
    """Returns why an array cannot be sharded so, "" where it can."""
    if len(shape) != len(spec):
        return f"it has {len(shape)} dimensions and {len(spec)} logical axes"
    for size, axes in zip(shape, spec, strict=True):
        names = (axes,) if isinstance(axes, str) else axes or ()
        shares = math.prod(mesh.shape[axis] for axis in names)
        if size % shares:
            return f"{size} is not divisible by the {shares} devices of mesh axis {axes!r}"
    return ""
