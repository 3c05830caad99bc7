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


MOVIELENS = Path(__file__).parents[2] / "shared" / "data" / "ml-100k"
DATA_STAGES = f"""
set -euo pipefail
instructrec() {{ {sys.executable} -m instructrec_jax "$@"; }}
instructrec prepare --dataset=ml_100k --input_dir={MOVIELENS} --output_dir=prepared
instructrec annotate --dataset=ml_100k --input_dir=prepared --output_dir=texts
instructrec build --dataset=ml_100k --input_dir=prepared --texts_dir=texts --output_dir=records \\
  --max_train_positions=4 --title_pieces=500
"""


def filled_twice(root, command):
    """Returns two folders, each filled by a process of its own.

    One after the other: the second finds what the first has compiled.
    """
    folders = [root / "1", root / "2"]
    for folder in folders:
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": folder.name}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    program = Path(__file__).with_name("rerun_toy.py")
    return filled_twice(tmp_path_factory.mktemp("reruns"), [sys.executable, program])


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


@pytest.mark.real_data
@pytest.mark.skipif(not MOVIELENS.exists(), reason=f"{MOVIELENS} is not there")
def test_two_equal_runs_over_movielens_write_the_same_bytes(tmp_path):
    one, other = (contents(run) for run in filled_twice(tmp_path, ["bash", "-c", DATA_STAGES]))
    assert len(one) > 10 and one.keys() == other.keys()
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
        figures = [
            {k: v for k, v in json.loads(line).items() if k.split("/")[0] not in ("time", "timing")}
            for line in lines
        ]
        files = {
            name: content
            for name, content in contents(run / "model").items()
            if "/" not in name and name != "metrics.jsonl"
        }
        found.append((arrays, figures, files))
    assert found[0] and found[0] == found[1]
