"""`instructrec doctor`: can this machine do the work, and if not, what to mend."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from instructrec_jax import files
from instructrec_jax.settings import Range, check_arguments
from instructrec_jax.stages.doctor.checks import DEVICE_CHECKS, Check
from instructrec_jax.stages.doctor.machine import Machine, folder_checks, nearest_folder

_PROGRAM = "instructrec_jax.stages.doctor.devices"  # in a process of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the checks found, in the order in which they ran."""

    checks: list[Check]

    @property
    def problems(self) -> list[Check]:
        """The checks that found something to mend."""
        return [check for check in self.checks if not check.is_fine]

    def as_text(self) -> str:
        """Returns a line for each check, another for what to mend, and the verdict."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            mark = "ok     " if check.is_fine else "PROBLEM"
            lines.append(f"{mark}  {check.name:<{width}}  {check.found}")
            if check.mend:
                lines.append(f"{'':7}  {'':<{width}}  to mend: {check.mend}")
        number = len(self.problems)
        return "\n".join([*lines, f"{number} problem{'s' * (number != 1)} found"])

    def as_json(self) -> str:
        """Returns the same for programs."""
        return json.dumps(
            {"checks": [dataclasses.asdict(check) for check in self.checks],
             "num_problems": len(self.problems)}, indent=2
        )  # fmt: skip


def doctor(
    *,
    model_dir: str | None = None,
    data_dir: str | None = None,
    seconds: Annotated[float, Range(1)] = 120.0,
    json_path: str | None = None,
) -> Report:
    """Looks at this machine; run by several processes, they look at their devices together.

    Args:
      model_dir: the MODEL_DIR of a run, which has to be writable; a checkpoint is tried beside it,
        without it in the working folder.
      data_dir: the DATA_DIR of a run.
      seconds: how long the devices may take.
      json_path: file for the same as JSON; process N of several writes FILE.N.

    Returns:
      What was found; no problem of the machine raises.
    """
    check_arguments(doctor, locals())
    machine = Machine.read()
    model, data = (None if path is None else Path(path) for path in (model_dir, data_dir))
    beside = nearest_folder(Path.cwd() if model is None else model.absolute().parent)
    checks = [*machine.checks(), *folder_checks(model, data)]
    of_devices, process = _look_at_devices(machine, beside, seconds)
    report = Report(checks=[*checks, *of_devices])
    if json_path is not None:
        files.write_text(f"{json_path}.{process}" if process else json_path, report.as_json())
    return report


def _look_at_devices(machine: Machine, beside: Path, seconds: float) -> tuple[list[Check], int]:
    """Returns what a process of its own finds out, within a time, and which of several it is."""
    accelerators = " ".join(["gpu"] * machine.has_gpu + ["tpu"] * machine.has_tpu)
    command = [sys.executable, "-m", _PROGRAM, str(beside), accelerators]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        written, said = done.stdout, done.stderr.strip().splitlines()
        failure = f"ended with exit code {done.returncode}: {said[-1][:400] if said else ''}"
        mend = "mend what it names"
    except subprocess.TimeoutExpired as stopped:
        written = (stopped.stdout or b"").decode(errors="replace")
        failure, mend = f"did not end within {seconds:g} s", _why_it_hangs()
    found, process = [], 0
    for line in map(json.loads, written.splitlines()):
        if "folder" not in line:
            found.append(Check(**line))
        elif (process := line["process"]) == 0:
            shutil.rmtree(line["folder"], ignore_errors=True)
    for name in DEVICE_CHECKS[len(found) :]:
        found.append(Check(name=name, found=failure, mend=mend))
        failure, mend = "not looked at", "mend what is said before it"
    return found, process


def _why_it_hangs() -> str:
    """Returns what keeps devices from answering."""
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return (
            f"all {os.environ.get('JAX_NUM_PROCESSES', '')} processes have to run at the same time "
            f"and reach {address}; a MODEL_DIR has to be one folder that all of them see"
        )
    return "end other processes that hold the devices, or give it more --seconds"
