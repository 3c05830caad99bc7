"""Checks one GPU: training steps, scoring beside Hugging Face's, and the numbers against the CPU's.

    python benchmarks/gpu_check.py --json=/tmp/gpu.json     # one 80 GB GPU, a minute a measure
    python benchmarks/gpu_check.py --tiny                   # the same paths on any machine

Each line of `MEASURES` runs in a process of its own, one after another, with random weights; one
that fails is reported and the others go on. `--measures` picks some.

Protocol. Training: the recipe of gin/runs/finetune.gin (Adafactor, dropout 0.1, bfloat16 compute,
float32 parameters) on packed rows of 512 and 64 tokens, the same batch again and again; the median
of 10 steps after 2. Useful tokens are those that are not padding. The share of the peak counts the
products with weights on useful tokens alone, forward once and backward twice; what attention
compares and what is recomputed is not counted. The peak is that of bfloat16 products of 8192 x 8192
matrices, measured in the same process. Scoring: requests as in `score.py`, T5-XL in bfloat16; both
ways have the same weights, one warm-up and the median of 3 runs. Numbers: the largest relative
difference of log-likelihoods, loss and gradient norm of T5-small in float32 on this device to those
on the CPU. `JAX_LOG_COMPILES=1` shows in the messages of a failed measure where the time went.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_measures import (
    Figures,
    measure_gradient,
    measure_int8,
    measure_likelihoods,
    measure_peak,
    measure_scoring,
    measure_training,
    report,
)

from instructrec_jax.training.step import HARDWARE_RNG

TRAIN_XL = functools.partial(measure_training, "xl", num_rows=32, remat_policy="full")
TRAIN_BASE = functools.partial(measure_training, "base", num_rows=32)
MEASURES: dict[str, Callable[[], Figures]] = {
    "peak": lambda: measure_peak(8192),
    "train xl": TRAIN_XL,
    "train xl, hardware rng": lambda: TRAIN_XL(rng=HARDWARE_RNG),
    "train xl, hardware rng, minimal": lambda: TRAIN_XL(rng=HARDWARE_RNG, remat_policy="minimal"),
    "train xl, hardware rng, keys in blocks": lambda: TRAIN_XL(rng=HARDWARE_RNG, key_block=256),
    "score xl, 10 candidates": lambda: measure_scoring(
        "xl", num_users=256, num_candidates=10, step_tokens=16384, hf_users=16
    ),
    "score xl, 100 candidates": lambda: measure_scoring(
        "xl", num_users=48, num_candidates=100, step_tokens=16384, hf_users=4
    ),
    "score xl, int8": lambda: measure_int8(
        "xl", num_users=256, num_candidates=10, step_tokens=16384
    ),
    "log-likelihoods small": lambda: measure_likelihoods("small"),
    "gradient small": lambda: measure_gradient("small"),
    "train base": TRAIN_BASE,
    "train base, hardware rng": lambda: TRAIN_BASE(rng=HARDWARE_RNG),
}
TINY: dict[str, Callable[[], Figures]] = {
    "peak": lambda: measure_peak(512),
    "log-likelihoods tiny": lambda: measure_likelihoods("tiny"),
    "gradient tiny": lambda: measure_gradient("tiny"),
    "train tiny": lambda: measure_training(
        "tiny", num_rows=2, num_steps=2, remat_policy="full", rng=HARDWARE_RNG, key_block=256
    ),
    "score tiny": lambda: measure_scoring(
        "tiny", num_users=8, num_candidates=10, step_tokens=2048, hf_users=4
    ),
    "score tiny, int8": lambda: measure_int8(
        "tiny", num_users=8, num_candidates=10, step_tokens=2048
    ),
}


def main() -> None:
    """Runs the measures one after another and prints a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--measures", nargs="+", help="which; all without it")
    parser.add_argument("--timeout", type=int, default=120, help="seconds of each measure")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # what a process of its own is given
    args = parser.parse_args()
    measures = TINY if args.tiny else MEASURES
    if args.alone:
        report(measures[args.alone]())
        return
    device = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.devices()[0].device_kind, jax.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    print(f"device {device}", flush=True)
    results: dict[str, Any] = {"device": device}
    for name in args.measures or measures:
        results[name] = run_alone(name, is_tiny=args.tiny, timeout=args.timeout)
        print(f"\n{name}", flush=True)
        for figure, value in results[name].items():
            print(f"  {figure:40} {value if isinstance(value, str) else f'{value:.6g}'}")
        if args.json:
            args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def run_alone(name: str, *, is_tiny: bool, timeout: int) -> Figures:
    """Returns what a measure gave in a process of its own, or the end of its complaint."""
    command = [sys.executable, __file__, "--alone", name, *(["--tiny"] if is_tiny else [])]
    # Torch needs a part of the memory that JAX would take for itself.
    limit = ("PREALLOCATE", "false") if "score" in name else ("MEM_FRACTION", "0.92")
    memory = {f"XLA_PYTHON_CLIENT_{limit[0]}": limit[1]}
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as messages:
        child = subprocess.Popen(command, stdout=out, stderr=messages, env={**os.environ, **memory})
        try:
            failed = "" if child.wait(timeout) == 0 else f"exit code {child.returncode}"
        except subprocess.TimeoutExpired:
            child.kill()
            failed = f"took more than {timeout} s"
        out.seek(0)
        messages.seek(0)
        figures: Figures = json.loads((out.read().splitlines() or ["{}"])[-1])
        if failed:
            figures |= {"failed": failed, "messages": messages.read()[-3000:]}
    return {**figures, "seconds": time.perf_counter() - began}


if __name__ == "__main__":
    main()
