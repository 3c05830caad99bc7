"""Jobs that several processes do together, as the command would: `python tests/hosts_toy.py JOBS`.

JOBS is JSON, a list of objects: "do" names a function here, the rest are its arguments.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import optax
import train_toy
from score_toy import score_toy

from instructrec_jax.cli import main, messages
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.stages.together import check_run

# Rounding does not grow with it, as it does where AdamW divides by the square of small gradients.
SGD = optax.sgd(0.02)
PERIODS = {"log": 1, "evaluate": 1000, "checkpoint": 2}


def train(records, folder, steps, objective, mesh=None, **run) -> None:
    with mock.patch.object(train_toy, "shared_programs", lambda _: contextlib.nullcontext()):
        train_toy.train_toy(
            records,
            folder,
            steps,
            objective=objective,
            optimizer=SGD,
            mesh=MeshSettings(**(mesh or {})),
            periods=PERIODS,
            **run,
        )


def score(records, model, output) -> None:
    score_toy(records, model, output)


def be_refused() -> None:
    """Says why runs are refused that differ between processes, in every process alike."""
    own = processes.jax.process_index()
    processes._SECONDS_TO_SEE = 0.0
    planned = Manifest(stage="train", inputs={}, settings={"seed": own})
    for attempt in (
        lambda: check_run(planned, "", "runs/model"),
        lambda: check_run(planned, f"BATCH_SIZE = {8 + own}", "runs/model"),
        lambda: open_elsewhere(f"nowhere, says process {own}"),
        lambda: processes.check_seen(Path(__file__ if own == 0 else f"{__file__}.elsewhere")),
    ):
        try:
            attempt()
        except UserError as error:
            sys.stderr.write(f"refused: {error}\n")


def open_elsewhere(folder: str) -> None:
    with processes.sharing_errors():
        if processes.is_main():
            raise UserError(folder)


def _run(words) -> int:
    messages.speak_as(processes.initialise())
    with processes.together():
        for job in json.loads(words[0]):
            globals()[job.pop("do")](**job)
    return 0


if __name__ == "__main__":
    main._run = _run
    sys.exit(main.main())
