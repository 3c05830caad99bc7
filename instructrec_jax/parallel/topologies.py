"""Targets that a program is planned for: which devices, what they hold, compute and cost.

No device is touched. A TPU that is not there is described by libtpu, which compiles for it.
"""

import dataclasses
import importlib.util
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import (
    AXIS_TYPES,
    MESH_AXES,
    LogicalMesh,
    MeshSettings,
    mesh_shape,
)
from instructrec_jax.settings import NotNegative, Positive, check_fields

TABLE = Path(__file__).with_name("accelerators.json")
TPUS = {"v5e": 2, "v5p": 3, "v6e": 2}  # numbers of a slice's shape
EXPECTED = (
    "expected a TPU slice such as v5e:8x8, v6e:4x4 or v5p:2x2x2 (chips along each axis), or "
    "devices and the memory of each, such as gpu:8x80GB, cpu:8x4GB or cpu:8"
)
_MAX_DEVICES = 16384
_DEVICES = re.compile(r"(\d+)(?:x(\d+(?:\.\d+)?)GB)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One device of a kind.

    Attributes:
      memory_gib: GiB that programs may use; None where it is not known.
      teraflops: peak of bfloat16, in 10^12 operations a second.
      usd_per_hour: price of the device.
    """

    memory_gib: Positive | None
    teraflops: Positive
    usd_per_hour: NotNegative

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The devices of a run that is planned.

    Attributes:
      name: as the user typed it.
      kind: of the devices: a TPU's, "gpu" or "cpu".
      num_devices: how many.
      device: each of them.
      as_of: month of the table of prices, "" where the user's own gave all.
    """

    name: str
    kind: str
    num_devices: int
    device: Accelerator
    as_of: str

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU slice."""
        return self.kind in TPUS

    @property
    def memory_bytes(self) -> int | None:
        """What a program may use of each device."""
        return None if self.device.memory_gib is None else int(self.device.memory_gib * 2**30)


def parse_target(text: str, prices_file: str | None = None) -> Target:
    """Returns the target of a text such as "v5e:8x8" or "gpu:8x80GB".

    Args:
      text: kind and shape of a TPU slice, or kind, number and memory (10^9 bytes) of devices.
      prices_file: a JSON file of the user, {"v5e": {"usd_per_hour": 0.6}}, whose values come before
        those of the package's table.

    Raises:
      UserError: if the text or the file is not so.
    """
    kind, _, shape = text.partition(":")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if kind not in table["accelerators"]:
        raise UserError(f"--topology is {text!r}; {EXPECTED}")
    entry = table["accelerators"][kind] | _own_prices(prices_file, table).get(kind, {})
    if kind in TPUS:
        number = math.prod(_slice_shape(text, kind, shape))
    else:
        number, memory = _devices(text, shape)
        entry["memory_gib"] = entry["memory_gib"] if memory is None else memory * 1e9 / 2**30
    if not 1 <= number <= _MAX_DEVICES:
        raise UserError(f"--topology is {text!r}: {number:,} devices; {EXPECTED}")
    return Target(
        name=text, kind=kind, num_devices=number, device=Accelerator(**entry), as_of=table["as_of"]
    )


def _slice_shape(text: str, kind: str, shape: str) -> list[int]:
    """Returns the chips along each axis of a slice; libtpu knows hosts of 2 x 2 chips."""
    sizes = [int(size) for size in shape.split("x") if size.isdecimal()]
    if len(sizes) != TPUS[kind] or shape.count("x") != len(sizes) - 1:
        numbers = " x ".join(["chips"] * TPUS[kind])
        raise UserError(f"--topology is {text!r}: a slice of {kind} is {numbers}; {EXPECTED}")
    if any(size % 2 or not size for size in sizes[:2]):
        raise UserError(
            f"--topology is {text!r}: the first two numbers of a slice are even, for a host holds "
            "2 x 2 chips"
        )
    return sizes


def _devices(text: str, shape: str) -> tuple[int, float | None]:
    """Returns the number of devices and the GB of each."""
    if (matched := _DEVICES.fullmatch(shape)) is None:
        raise UserError(f"--topology is {text!r}; {EXPECTED}")
    return int(matched[1]), float(matched[2]) if matched[2] else None


def _own_prices(path: str | None, table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the values of the user's own table."""
    if path is None:
        return {}
    fields = [field.name for field in dataclasses.fields(Accelerator)]
    remedy = f'expected {{"v5e": {{"usd_per_hour": 0.6}}}}, with any of {", ".join(fields)}'
    own = files.read_json(path, dict[str, dict[str, float]], remedy=remedy)
    unknown = [kind for kind in own if kind not in table["accelerators"]]
    unknown += [name for entry in own.values() for name in entry if name not in fields]
    if unknown:
        raise UserError(
            f"{path} gives {', '.join(unknown)}; {remedy}; the kinds are v5e, v5p, v6e, gpu, cpu"
        )
    return own


def abstract_mesh(settings: MeshSettings, target: Target) -> LogicalMesh:
    """Returns the mesh of a run on a target, of sizes alone: shapes can be split over it.

    Raises:
      UserError: if the axes do not multiply to the number of devices.
    """
    shape = mesh_shape(settings, target.num_devices)
    return LogicalMesh(AbstractMesh(shape, MESH_AXES, AXIS_TYPES), tuple(settings.rules.items()))


def can_compile(target: Target) -> bool:
    """Whether this machine has a compiler for a target."""
    if target.is_tpu:
        return importlib.util.find_spec("libtpu") is not None
    return target.kind == "cpu"


def compiler_environment(target: Target) -> dict[str, str]:
    """Returns the variables under which a process compiles for a target and touches no device."""
    found = {"JAX_PLATFORMS": "cpu"}
    if target.is_tpu:
        # libtpu neither asks the cloud where it runs nor claims a TPU that a run may be using.
        return found | {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    flags = os.environ.get("XLA_FLAGS", "")
    number = f"--xla_force_host_platform_device_count={target.num_devices}"
    return found | {"XLA_FLAGS": f"{flags} {number}"}


def described_devices(target: Target) -> list[jax.Device]:
    """Returns devices to compile for; the process runs under `compiler_environment`.

    Raises:
      UserError: if there is no compiler for them, or it knows no such slice.
    """
    if target.is_tpu:
        from jax.experimental import topologies

        try:
            return list(topologies.get_topology_desc(target.name, platform="tpu").devices)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"libtpu knows no slice {target.name}: {error}") from None
    return jax.devices("cpu")[: target.num_devices]
