"""The device mesh, the table from logical to mesh axes, and the shardings that follow from it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.parallel.gathering import gather
from instructrec_jax.settings import Count, Range, check_fields, refuse

MESH_AXES = ("data", "fsdp", "tensor")
AXIS_TYPES = (AxisType.Auto,) * 3  # the compiler fills in what `LogicalMesh.constrain` leaves open
MeshAxes = str | tuple[str, ...] | None
Axes = tuple[str | None, ...]  # logical
Tree = TypeVar("Tree")

# Parameters are sharded over "fsdp" along embed and over "tensor" along heads, mlp and vocab;
# activations over "data" and "fsdp" along the batch, and over "tensor" as the parameters are. In
# an activation an axis leaves a mesh axis to those that stand before it here.
DEFAULT_RULES: Mapping[str, MeshAxes] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "length": None,
    "whole_length": None,  # where each token is looked at by those of all devices
    "embed": "fsdp",
    "kv": None,
    "layers": None,
    "relpos_buckets": None,
    "lora_rank": None,
}
_OF_ACTIVATIONS = {"batch", "length"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How many devices each mesh axis has, and which logical axes are split over it.

    Attributes:
      data: copies of the model; -1 takes the devices that the others leave.
      fsdp: devices that share each copy's parameters along embed and split its batch.
      tensor: devices that share heads, mlp and vocab (T5X's NUM_PARTITIONS).
      data_slices: slices over which "data" is split before it is split inside one: what crosses
        the slower network between slices is then the sum of gradients alone. A slice is a TPU
        slice; where the devices are of one slice or none, it is the devices of a process.
      fsdp_slices: likewise for "fsdp", whose parameters are gathered in every layer.
      logical_axis_rules: changes of `DEFAULT_RULES`: the mesh axis, a list of them, or None for a
        logical axis. {"length": "tensor"} splits long inputs between layers as well; with None for
        heads, mlp and vocab also inside them.
    """

    data: Annotated[int, Range(-1)] = -1
    fsdp: Annotated[int, Range(-1)] = 1
    tensor: Annotated[int, Range(-1)] = 1
    data_slices: Count = 1
    fsdp_slices: Count = 1
    logical_axis_rules: Mapping[str, str | Sequence[str] | None] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for field in ("data", "fsdp", "tensor"):
            if getattr(self, field) == 0:
                raise refuse(self, field, "a number of devices, or -1: those that are left")
        for axis, mesh_axes in self.logical_axis_rules.items():
            if axis not in DEFAULT_RULES:
                raise unknown_name("logical axis of logical_axis_rules", axis, DEFAULT_RULES)
            if axis == "layers" and mesh_axes:
                raise refuse(self, "logical_axis_rules", "no rule for layers: they run in turn")
            names = mesh_axis_names(mesh_axes)
            for name in names:
                if name not in MESH_AXES:
                    raise unknown_name(
                        f"mesh axis of {axis} in logical_axis_rules", name, MESH_AXES
                    )
            if len(set(names)) < len(names):
                raise refuse(self, "logical_axis_rules", f"no mesh axis twice for {axis}")

    @property
    def rules(self) -> dict[str, MeshAxes]:
        """The whole table."""
        own = {
            k: v if isinstance(v, str) else mesh_axis_names(v)
            for k, v in self.logical_axis_rules.items()
        }
        return {axis: own.get(axis, rule) or None for axis, rule in DEFAULT_RULES.items()}


@dataclasses.dataclass(frozen=True)
class LogicalMesh:
    """Devices on named axes, and the rules that say which logical axes are split over which.

    It is a `models.sharding.Constraints`.

    Attributes:
      devices: the mesh, with the axes "data", "fsdp" and "tensor"; for shapes sizes are enough.
      rules: (logical axis, mesh axes), in the order in which activations follow them.
    """

    devices: Mesh | AbstractMesh
    rules: tuple[tuple[str, MeshAxes], ...] = tuple(DEFAULT_RULES.items())

    @property
    def shape(self) -> Mapping[str, int]:
        """Number of devices of each mesh axis."""
        return self.devices.shape

    @property
    def constraints(self) -> "LogicalMesh | None":
        """What models are constrained by: nothing on a single device."""
        return self if self.devices.size > 1 else None

    def num_shares(self, axis: str) -> int:
        """Returns how many parts a logical axis is split into."""
        return self._size(mesh_axis_names(dict(self.rules)[axis]))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """Returns how a parameter or a batch with these logical axes is stored."""
        return NamedSharding(self.devices, partition_spec(axes, dict(self.rules)))

    def constrain(self, array: jax.Array, axes: Axes) -> jax.Array:
        """Returns an activation whose last dimensions are split as the rules say.

        A dimension that the devices do not divide stays whole.
        """
        used, first = self._used(axes), array.ndim - len(axes)
        spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * array.ndim
        for dimension, axis in enumerate(axes, start=first):
            if axis is not None:
                names = used[axis]
                spec[dimension] = names if not array.shape[dimension] % self._size(names) else None
        sharding = NamedSharding(self.devices, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(array, sharding)

    def gather(self, weights: Sequence[jax.Array], axes: Sequence[Axes]) -> Sequence[jax.Array]:
        """Returns weights gathered over the mesh axes that split the batch.

        Their gradients are summed over the batch into the shards that the weights are stored in.
        """
        stored = tuple(self.sharding(*own) for own in axes)
        return gather(tuple(weights), stored, tuple(map(self._in_use, axes)))

    def _in_use(self, axes: Axes) -> NamedSharding:
        """Returns how a weight is split in a product."""
        used = self._used(axes)
        spec = list(self.sharding(*axes).spec)
        for dimension, axis in enumerate(axes):
            if axis is not None and self._size(used[axis]) < self.num_shares(axis):
                spec[dimension] = used[axis] or None
        return NamedSharding(self.devices, PartitionSpec(*spec))

    def _used(self, axes: Axes) -> dict[str, tuple[str, ...]]:
        """Returns the mesh axes of each logical axis of an activation, or of a weight in use.

        What batch and length are split over is theirs, whether or not the array has them.
        """
        found: dict[str, tuple[str, ...]] = {}
        taken: set[str] = set()
        for axis, mesh_axes in self.rules:
            if axis in axes or axis in _OF_ACTIVATIONS:
                found[axis] = tuple(
                    name for name in mesh_axis_names(mesh_axes) if name not in taken
                )
                taken.update(found[axis])
        return found

    def _size(self, names: tuple[str, ...]) -> int:
        return math.prod(self.shape[name] for name in names)


def mesh_shape(settings: MeshSettings, num_devices: int) -> tuple[int, ...]:
    """Returns the devices of each of `MESH_AXES`; UserError if they do not multiply to all."""
    shape = [settings.data, settings.fsdp, settings.tensor]
    if shape.count(-1) == 1:
        rest = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = num_devices // rest if rest > 0 else 0
    if math.prod(shape) != num_devices or min(shape) < 1:
        raise UserError(
            f"mesh data={settings.data}, fsdp={settings.fsdp}, tensor={settings.tensor} "
            f"(NUM_PARTITIONS) does not fit {num_devices} devices: the three must multiply to "
            "that number (one may be -1)"
        )
    return tuple(shape)


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> LogicalMesh:
    """Returns the mesh ("data", "fsdp", "tensor") over all devices, or those given.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(settings, len(devices))
    if settings.data_slices * settings.fsdp_slices > 1:
        made = Mesh(_across_slices(settings, shape, devices), MESH_AXES, axis_types=AXIS_TYPES)
    else:
        made = jax.make_mesh(shape, MESH_AXES, AXIS_TYPES, devices=devices)  # in order of links
    return LogicalMesh(made, tuple(settings.rules.items()))


def _across_slices(
    settings: MeshSettings, shape: tuple[int, ...], devices: list[jax.Device]
) -> np.ndarray:
    """Returns the devices in the mesh's shape, those of a slice beside each other on every axis."""
    slices = (settings.data_slices, settings.fsdp_slices, 1)
    numbers = {getattr(device, "slice_index", 0) for device in devices}
    is_one = len(numbers) == 1
    found = len({device.process_index for device in devices}) if is_one else len(numbers)
    if math.prod(slices) != found or any(n % part for n, part in zip(shape, slices, strict=True)):
        axes = ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, shape, strict=True))
        raise UserError(
            f"data_slices={slices[0]} and fsdp_slices={slices[1]} do not fit a mesh {axes} on "
            f"{found} slices (or processes): the two must multiply to that number, and each must "
            "divide its axis"
        )
    inside = tuple(n // part for n, part in zip(shape, slices, strict=True))
    return mesh_utils.create_hybrid_device_mesh(inside, slices, devices, process_is_granule=is_one)


def partition_spec(
    logical_axes: tuple[str | None, ...], rules: Mapping[str, MeshAxes] = DEFAULT_RULES
) -> PartitionSpec:
    """Returns how an array with these logical axes is stored on the mesh.

    Raises:
      UserError: if an axis has no rule, or two axes have one mesh axis.

    Example:
      `partition_spec(("embed", "mlp"))` is `PartitionSpec("fsdp", "tensor")`.
    """
    for axis in logical_axes:
        if axis is not None and axis not in rules:
            raise unknown_name("logical axis", axis, rules)
    placed = [None if axis is None else rules[axis] for axis in logical_axes]
    taken = [name for axes in placed for name in mesh_axis_names(axes)]
    for name in set(taken):
        if taken.count(name) > 1:
            raise UserError(
                f"logical axes {logical_axes} put two axes of one array on mesh axis {name!r}; "
                "give one of them another rule (mesh.MeshSettings.logical_axis_rules)"
            )
    return PartitionSpec(*placed)


def shardings(tree: Any, mesh: LogicalMesh, *, is_strict: bool = True) -> Any:
    """Returns the sharding of every array of a pytree, by the logical axes that it names.

    Logical axes are metadata of an `nnx.Variable`. Optax keeps them in its state, whose moments are
    made of parameters with `jax.tree.map`. An array without logical axes is on every device.

    Args:
      tree: a pytree of arrays or shapes, some inside `nnx.Variable`s.
      mesh: the device mesh.
      is_strict: whether an array that its axes do not divide is an error; otherwise it is on every
        device. Optimizers may keep arrays under a parameter's axes that have another shape.

    Returns:
      The same pytree with a NamedSharding for each array.

    Raises:
      UserError: if a dimension is not divisible by its mesh axis.
    """

    def choose(path: tuple[Any, ...], leaf: Any) -> Any:
        chosen = mesh.sharding()
        axes = logical_axes(leaf) if isinstance(leaf, nnx.Variable) else None
        if axes is not None:
            wanted = mesh.sharding(*axes)
            problem = _indivisible(leaf.shape, wanted)
            if problem and is_strict:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"parameter {name} of shape {leaf.shape} cannot be split: {problem}; choose "
                    "another mesh"
                )
            chosen = chosen if problem else wanted
        return jax.tree.map(lambda _: chosen, leaf)

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


def abstract_model(init: Callable[[jax.Array], Tree], mesh: LogicalMesh) -> Tree:
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


def _indivisible(shape: tuple[int, ...], sharding: NamedSharding) -> str:
    """Returns why an array cannot be sharded so, "" where it can."""
    if len(shape) != len(sharding.spec):
        return f"it has {len(shape)} dimensions and {len(sharding.spec)} logical axes"
    for size, axes in zip(shape, sharding.spec, strict=True):
        shares = math.prod(sharding.mesh.shape[axis] for axis in mesh_axis_names(axes))
        if size % shares:
            return f"{size} is not divisible by the {shares} devices of mesh axis {axes!r}"
    return ""


def mesh_axis_names(axes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns mesh axes as a tuple of names."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
