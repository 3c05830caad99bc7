"""The verb that tells, before anything is rented, whether a training run fits a target."""

import argparse
import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.cli.model_verbs import GIN_HELP
from instructrec_jax.cli.verb import Verb, add_gin_flags, bindings_of, print_result
from instructrec_jax.errors import UserError
from instructrec_jax.settings import address_problem

logger = logging.getLogger(__name__)
DOES_NOT_FIT = 1  # exit code
_PARTS = ("train", "score")
# A run names folders; planning it reads none of them.
_NOT_READ = [f"{name}='not read'" for name in ("DATA_DIR", "MODEL_DIR", "INITIAL_CHECKPOINT_PATH")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanVerb(Verb):
    """A verb whose run comes from gin files and whose target comes from flags."""

    takes_gin = True

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of gin, and those of the target."""
        add_gin_flags(parser)
        parser.add_argument(
            "--topology",
            required=True,
            metavar="KIND:SHAPE",
            help="the devices: v5e:8x8, v6e:4x4, v5p:2x2x2 (chips along each axis), gpu:8x80GB, "
            "cpu:8x4GB (devices and memory of each)",
        )
        parser.add_argument(
            "--estimate",
            action="store_true",
            help="do not compile, even where this machine has the compiler of the target",
        )
        parser.add_argument(
            "--utilisation",
            type=float,
            default=0.4,
            metavar="SHARE",
            help="of the peak that the run is assumed to reach (default 0.4)",
        )
        parser.add_argument(
            "--prices",
            metavar="FILE",
            help='JSON that comes before our table: {"v5e": {"usd_per_hour": 0.6}}, with any of '
            "memory_gib, teraflops and usd_per_hour",
        )
        parser.add_argument("--json", metavar="FILE", help="write all figures there too")
        parser.add_argument(
            "--part",
            choices=_PARTS,
            help="compile this part alone and print the compiler's figures as JSON",
        )

    def run(self, options: argparse.Namespace) -> int:
        """Prints the plan; the exit code is 1 where the run does not fit."""
        if not options.gin_file:
            raise UserError(
                "`instructrec plan` needs at least one --gin_file; see `instructrec plan --help`"
            )
        for name in ("json", "prices"):
            if problem := address_problem(getattr(options, name)):
                raise UserError(f"--{name} {problem}")
        os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX looks for devices: none is touched
        from instructrec_jax.parallel import topologies

        target = topologies.parse_target(options.topology, options.prices)
        run = _configured(options)
        if options.part:
            from instructrec_jax.stages.plan.compiling import compile_part

            print_result(
                json.dumps(compile_part(options.part, **_without_periods(run), target=target))
            )
            return 0
        from instructrec_jax.stages.plan import TOO_LARGE, plan

        # Mistakes in mesh and batch are found before the minutes of compiling.
        made = plan(**run, target=target, programs={}, utilisation=options.utilisation)
        if topologies.can_compile(target) and not options.estimate:
            programs: dict[str, Any] = {}
            for part in _PARTS:
                programs |= _compile(part, options, topologies.compiler_environment(target))
            made = dataclasses.replace(made, programs=programs)
        if options.json:
            files.write_text(Path(options.json), made.as_json())
        print_result(made.as_text())
        return DOES_NOT_FIT if made.verdict == TOO_LARGE else 0


def _configured(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of the training run that gin files configure."""
    from instructrec_jax.cli import gin_config

    found = gin_config.arguments_with_gin(
        PLAN.load(),
        gin_file_names=options.gin_file,
        bindings=[*_NOT_READ, *bindings_of(options)],
        search_paths=options.gin_search_paths,
    )
    return {name: found[name] for name in ("learning", "data", "run", "periods")}


def _without_periods(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "periods"}


def _compile(
    part: str, options: argparse.Namespace, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the compiler's figures, from a process of its own, whose memory ends with it."""
    logger.info("compiling for %s (%s); this takes minutes", options.topology, part)
    command = [sys.executable, "-m", "instructrec_jax", "plan", f"--part={part}"]
    command += [f"--topology={options.topology}"]
    command += [f"--gin_file={name}" for name in options.gin_file]
    command += [f"--gin_bindings={binding}" for binding in bindings_of(options)]
    if options.gin_search_paths:
        command.append(f"--gin_search_paths={','.join(options.gin_search_paths)}")
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(
            f"compiling for {options.topology} ({part}) ended with exit code {done.returncode}; "
            f"--estimate does without. Its last lines: {said}"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


PLAN = PlanVerb(
    name="plan",
    function="instructrec_jax.stages.train:train",
    summary="whether a training run fits devices that are not rented yet",
    description=(
        "Tells of a run that gin files configure and of a target what it takes of each device,\n"
        "how long it takes and what it costs, and whether it fits. Nothing is read but the gin\n"
        "files, and no device is touched. Where libtpu is installed (pip install\n"
        "'instructrec_jax[tpu]', no TPU needed) the training step and the scoring steps are\n"
        "compiled for the TPU slice and the compiler's own figures are shown; else the sizes are\n"
        f"estimates. Exit code 1 where the run does not fit.\n\n{GIN_HELP}"
    ),
    example=(
        "instructrec plan --gin_file=gin/models/flan_t5_xl.gin \\\n"
        "    --gin_file=gin/mixtures/amazon_games.gin --gin_file=gin/runs/finetune.gin \\\n"
        "    --gin.TRAIN_STEPS_RELATIVE=20000 --topology=v5e:8x8 \\\n"
        "    --gin.mesh.MeshSettings.data=1 --gin.mesh.MeshSettings.fsdp=64"
    ),
)
