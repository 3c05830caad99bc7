"""The device mesh and the table from logical axes to mesh axes."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

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
