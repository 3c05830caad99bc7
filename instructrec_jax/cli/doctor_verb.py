"""The verb that looks at the machine before a run does."""

from collections.abc import Mapping
from typing import Any

from instructrec_jax.cli.verb import Verb

FOUND_PROBLEMS = 1  # exit code


def _text(report: Any, _: Mapping[str, Any]) -> str:
    return report.as_text()


DOCTOR = Verb(
    name="doctor",
    summary="whether this machine can do the work, and what to mend",
    description=(
        "Looks at packages, the accelerators' libraries and driver, memory, folders and disks;\n"
        "then, in a process that has a time limit, at the devices: a sum over all of them, a\n"
        "checkpoint saved and read back, the cache of compiled programs. Started on all hosts of\n"
        "a run by the scripts of launch/, it tries them together. Exit code 1 where something is\n"
        "to be mended."
    ),
    example="instructrec doctor --model_dir=runs/model --data_dir=runs/records",
    function="instructrec_jax.stages.doctor:doctor",
    spelled={"json_path": "--json"},
    result=_text,
    exit_code=lambda report: FOUND_PROBLEMS if report.problems else 0,
)
