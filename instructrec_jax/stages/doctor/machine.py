"""What a machine is made of, as far as it is known without starting any device."""

import ctypes
import dataclasses
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from instructrec_jax.stages.doctor.checks import Check, Problem, run_check

_GIB = 2**30
_MIN_DISK_BYTES, _MIN_MEMORY_BYTES = 2 * _GIB, 2 * _GIB  # less does not train the demo
_INSTALL = "pip install -c constraints.txt -e"
_PLUGIN = re.compile(r"jax-cuda(\d+)-plugin")
_LIBRARIES = re.compile(r"libtpu|jax-cuda\d+-(plugin|pjrt)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found.

    Attributes:
      packages: versions of what is installed, by name.
      needed: requirements of this package, as its metadata state them.
      needed_by_jax: likewise those of JAX.
      has_gpu: whether the system shows an NVIDIA GPU.
      has_tpu: whether it shows TPU chips.
      driver_cuda: the newest CUDA version that the GPU's driver runs, (13, 0); None: no driver.
      memory_bytes: memory that this process may still take.
    """

    packages: Mapping[str, str]
    needed: Sequence[str]
    needed_by_jax: Sequence[str]
    has_gpu: bool
    has_tpu: bool
    driver_cuda: tuple[int, int] | None
    memory_bytes: int

    @classmethod
    def read(cls) -> "Machine":
        """Returns this machine."""
        found = metadata.distributions()
        packages = {str(canonicalize_name(one.name)): one.version for one in found if one.name}
        return cls(
            packages=packages,
            needed=_requirements("instructrec-jax"),
            needed_by_jax=_requirements("jax"),
            has_gpu=bool(glob.glob("/dev/nvidia[0-9]*")),
            has_tpu=bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")),
            driver_cuda=_driver_cuda(),
            memory_bytes=_memory_bytes(Path("/")),
        )

    def checks(self) -> list[Check]:
        """Returns what is to be said of it."""
        looks = {
            "packages": self._look_at_packages,
            "libraries": self._look_at_libraries,
            "driver": self._look_at_driver,
            "memory": self._look_at_memory,
        }
        return [run_check(name, look) for name, look in looks.items()]

    def _look_at_packages(self) -> str | Problem:
        """Compares what is installed with what this package needs."""
        needed = [Requirement(text) for text in self.needed]
        needed = [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
        wrong = [text for one in needed if (text := self._misfit(one))]
        if wrong:
            return Problem("; ".join(wrong), f"{_INSTALL} .")
        jax = self.packages.get("jax", "not installed")
        return f"Python {platform.python_version()}, JAX {jax}, {len(needed)} packages as needed"

    def _look_at_libraries(self) -> str | Problem:
        """Looks for what JAX needs for the accelerators of this machine, in the right version."""
        there = [name for name in self.packages if _LIBRARIES.fullmatch(name)]
        if self.has_tpu and "libtpu" not in there:
            return Problem("TPU chips are there, libtpu is not", f"{_INSTALL} '.[tpu]'")
        if self.has_gpu and not any(map(_PLUGIN.fullmatch, there)):
            return Problem("a GPU is there, JAX's CUDA plugin is not", f"{_INSTALL} '.[gpu]'")
        needed = {
            str(canonicalize_name(one.name)): one for one in map(Requirement, self.needed_by_jax)
        }
        wrong = [text for name in there if name in needed and (text := self._misfit(needed[name]))]
        if wrong:
            extra = "tpu" if wrong[0].startswith("libtpu") else "gpu"
            return Problem("; ".join(wrong), f"{_INSTALL} '.[{extra}]'")
        shown = ", ".join(f"{name} {self.packages[name]}" for name in sorted(there))
        return shown or "none, and no accelerator that would need one"

    def _look_at_driver(self) -> str | Problem:
        """Compares the GPU's driver with the CUDA that JAX's plugin is made for."""
        plugins = [int(found[1]) for name in self.packages if (found := _PLUGIN.fullmatch(name))]
        if self.driver_cuda is None:
            if self.has_gpu:
                return Problem("a GPU is there, its driver is not", "install NVIDIA's driver")
            return "no GPU"
        shown = f"the GPU's driver runs CUDA up to {self.driver_cuda[0]}.{self.driver_cuda[1]}"
        if plugins and max(plugins) > self.driver_cuda[0]:
            return Problem(
                f"{shown}, JAX's plugin is made for CUDA {max(plugins)}",
                f"update the driver, or pip install 'jax[cuda{self.driver_cuda[0]}]'",
            )
        return shown

    def _look_at_memory(self) -> str | Problem:
        found = f"{self.memory_bytes / _GIB:.1f} GiB free"
        if self.memory_bytes < _MIN_MEMORY_BYTES:
            return Problem(found, "end other programs, or take a machine with more memory")
        return found

    def _misfit(self, needed: Requirement) -> str:
        """Returns what is wrong with an installed package, "" if nothing is."""
        version = self.packages.get(canonicalize_name(needed.name))
        if version is None:
            return f"{needed.name} is not installed"
        if needed.specifier.contains(version, prereleases=True):
            return ""
        return f"{needed.name} is {version}, expected {needed.specifier}"


def folder_checks(model_dir: Path | None, data_dir: Path | None) -> list[Check]:
    """Returns what is to be said of the folders of a run, and of the disks they are on.

    Args:
      model_dir: the MODEL_DIR; None: not given.
      data_dir: the DATA_DIR; None: not given. A run only reads what is there.
    """
    checks, places = [], {"the working folder": Path()}
    if model_dir is not None:
        checks.append(run_check("MODEL_DIR", lambda: _look_at_output(model_dir)))
        places = {"MODEL_DIR": model_dir}
    if data_dir is not None:
        look = _look_at_input if data_dir.exists() else _look_at_output
        checks.append(run_check("DATA_DIR", lambda: look(data_dir)))
    return [*checks, run_check("disk", lambda: _look_at_disk(places))]


def nearest_folder(path: Path) -> Path:
    """Returns the path, or the first folder above it that is there."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _look_at_output(path: Path) -> str | Problem:
    """Tries to write a file there."""
    nearest = nearest_folder(path)
    try:
        with tempfile.TemporaryFile(dir=nearest) as probe:
            probe.write(b"0")
    except OSError as error:
        return Problem(
            f"{path} cannot be written: {error.strerror}" + f" ({nearest})" * (nearest != path),
            "mend its permissions or mount, or name another folder",
        )
    return f"{path} can be written" if path.is_dir() else f"{path} can be made in {nearest}"


def _look_at_input(path: Path) -> str | Problem:
    """Reads the names in a folder."""
    try:
        return f"{path} can be read, {len(os.listdir(path))} entries"
    except OSError as error:
        found = f"{path} cannot be read: {error.strerror}"
        return Problem(found, "mend its permissions or mount, or name another folder")


def _look_at_disk(folders: Mapping[str, Path]) -> str | Problem:
    free = {name: shutil.disk_usage(nearest_folder(path)).free for name, path in folders.items()}
    shown = ", ".join(f"{size / _GIB:.1f} GiB free for {name}" for name, size in free.items())
    if min(free.values()) < _MIN_DISK_BYTES:
        return Problem(shown, "remove files, or name a folder on another disk")
    return shown


def _requirements(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []


def _driver_cuda() -> tuple[int, int] | None:
    """Asks the driver, which starts no device for it."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return (version.value // 1000, version.value % 1000 // 10)


def _memory_bytes(root: Path) -> int:
    """Returns the memory that is left: of the machine, or of the container where that is less."""
    text = (root / "proc/meminfo").read_text()
    free = 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])  # type: ignore[index]
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return free
