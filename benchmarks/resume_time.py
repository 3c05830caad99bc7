"""What it costs to go on with a run: seconds to its first step, and the pause of a save.

Protocol: a small model is trained on invented toys, as in kill_storm.py. One run takes its first
step; others go on from step 10 and from step 20,000. The state of step 20,000 is that of step 10
under another number, with the data position that 20,000 steps lead to. Each run takes one step
without validation beyond 16 examples, in a fresh process whose programs are in the compile cache;
they take turns. Shown are the least of wall and processor seconds of the whole process, imports
included. The pause is how long `CheckpointStore.save` keeps its caller, with float32 arrays of
--megabytes, and how long the writing goes on beside it.

    python benchmarks/resume_time.py
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_storm import ROOT, make_toys

BATCH_SIZE, LATE = 8, 20_000


def train(folder: Path, model_dir: Path, last_step: int) -> tuple[float, float]:
    """Trains up to a step in a process of its own; returns wall and processor seconds."""
    counts = json.loads((folder / "records" / "toys" / "manifest.json").read_text())["counts"]
    macros = {
        "VOCAB_SIZE": counts["vocabulary"],
        "DATA_DIR": str(folder / "records"),
        "MODEL_DIR": str(model_dir),
        "MIXTURE_OR_TASK_NAME": "toys.A7.grouped",
        "EVAL_TASKS": ["toys.A7"],
        **{"TRAIN_STEPS": last_step, "BATCH_SIZE": BATCH_SIZE, "LOG_PERIOD": 1},
        "WARM_START": False,  # which a run that goes on does without
        **{"EVAL_PERIOD": 10**6, "EVAL_STEPS": 1, "EVALUATOR_NUM_EXAMPLES": 16},
        # The schedule is part of what a run is.
        "optimizers.linear_decay.total_steps": 10**6,
    }
    names = ("models/t5_tiny", "mixtures/ml_100k", "runs/from_scratch")
    command = [
        *(sys.executable, "-m", "instructrec_jax", "train"),
        *(f"--gin_file=gin/{name}.gin" for name in names),
        *(f"--gin.{name}={value!r}" for name, value in macros.items()),
    ]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    messages = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a run failed: {messages}")
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


def move_on(model_dir: Path, step: int) -> None:
    """Gives the latest checkpoint of a run the number of a later step."""
    from instructrec_jax.checkpoints.store import LATEST, CheckpointStore, stored_arrays
    from instructrec_jax.training.guards import Seen

    store = CheckpointStore(model_dir / LATEST, keep=1)
    folder = store.folder / str(store.latest_step())
    arrays = {name: array.read() for name, array in stored_arrays(folder).items()}
    arrays["step"] = arrays["step"] * 0 + step
    store.save(
        step,
        arrays,
        data_position=[[step, 0]],  # BATCH_SIZE rows are one group, a window of which is a step
        seen=dataclasses.asdict(Seen()),
    )
    store.close()


def measure_pause(folder: Path, megabytes: int) -> tuple[float, float]:
    """Returns how long a save keeps its caller, and how long the writing goes on after."""
    import jax.numpy as jnp

    from instructrec_jax.checkpoints.store import CheckpointStore

    store = CheckpointStore(folder / "pause", keep=1, in_background=True)
    state = {f"array_{n}": jnp.full((1024, 1024), n, jnp.float32) for n in range(megabytes // 4)}
    began = time.monotonic()
    store.save(1, state)
    paused = time.monotonic() - began
    store.close()
    return paused, time.monotonic() - began - paused


def main() -> None:
    """Prints a line for each start, and one for the save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        make_toys(folder)
        train(folder, folder / "early", 10)
        shutil.copytree(folder / "early", folder / "late")
        move_on(folder / "late", LATE)
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.rounds + 1):  # the first compiles
            for start, step in (("fresh", 0), ("early", 10), ("late", LATE)):
                model_dir = folder / f"{start} {number}"
                if step:
                    shutil.copytree(folder / start, model_dir)
                seconds = train(folder, model_dir, step + 1)
                if number:
                    found.setdefault(f"one step after step {step}", []).append(seconds)
        for start, seconds in found.items():
            wall, processor = map(min, zip(*seconds, strict=True))
            print(f"{start}: {wall:.1f} s, {processor:.1f} processor seconds", flush=True)
        paused, written = measure_pause(folder, options.megabytes)
        print(f"a save of {options.megabytes} MB: a pause of {paused:.2f} s, {written:.2f} s more")


if __name__ == "__main__":
    main()
