"""The same commands give the same bytes, stage by stage, but for times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from instructrec_jax.checkpoints.store import stored_arrays

pytestmark = pytest.mark.slow  # every stage, twice
STAGES = ("logs", "prepared", "texts", "records", "converted", "validation", "test", "report")


def start(folder, seed):
    folder.mkdir()
    program = Path(__file__).with_name("rerun_toy.py")
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    return subprocess.Popen(
        [sys.executable, program],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two folders, each filled by a process of its own."""
    root = tmp_path_factory.mktemp("reruns")
    processes = {root / str(seed): start(root / str(seed), seed) for seed in (1, 2)}
    for process in processes.values():
        output, _ = process.communicate()
        assert process.returncode == 0, output
    return list(processes)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stage", STAGES)
def test_two_equal_runs_of_a_stage_write_the_same_bytes(runs, stage):
    one, other = (contents(run / stage) for run in runs)
    assert one and one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_two_equal_trainings_save_the_same_arrays_and_log_the_same_figures(runs):
    found = []
    for run in runs:
        steps = sorted(run.glob("model/*/*/default"))
        arrays = {
            f"{step.relative_to(run)} {name}": array.read().tobytes()
            for step in steps
            for name, array in stored_arrays(step.parent).items()
        }
        lines = (run / "model" / "metrics.jsonl").read_text().splitlines()
        figures = [json.loads(line) | {"time": 0} for line in lines]
        files = {
            name: content
            for name, content in contents(run / "model").items()
            if "/" not in name and name != "metrics.jsonl"
        }
        found.append((arrays, figures, files))
    assert found[0] and found[0] == found[1]
