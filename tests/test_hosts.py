"""Real processes on this host, connected by Gloo, that train, are killed, resume and score."""

import json
import os
import re
import shutil
import signal
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest
from hosts_toy import PERIODS, SGD
from score_toy import score_toy
from test_training import steps_in
from train_toy import train_toy

from instructrec_jax.checkpoints import store
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.training.metrics_log import FILE_NAME, read_metrics

pytestmark = pytest.mark.slow  # several processes
NUM_DEVICES = 4  # of all processes together
PATIENCE = 600  # seconds, on a machine that does much else


def start(number: int, jobs: list[dict], log: Path) -> list[BaseProcess]:
    """Starts processes that do jobs together; process i writes to LOG.i."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"count=\d+", f"count={NUM_DEVICES // number}", os.environ["XLA_FLAGS"], count=1)
    started = []
    for index in range(number):
        own = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(number),
            "JAX_PROCESS_ID": str(index),
            "INSTRUCTREC_HEARTBEAT_SECONDS": "20",
            "XLA_FLAGS": flags,
        }
        words = ("hosts_toy.py", json.dumps(jobs))
        started.append(forked.start(*words, log=Path(f"{log}.{index}"), environment=own))
    return started


def texts(log: Path, number: int) -> list[str]:
    return [Path(f"{log}.{index}").read_text() for index in range(number)]


def ended(running: list[BaseProcess]) -> list[int | None]:
    """Returns the exit codes, when all have ended."""
    for process in running:
        process.join(PATIENCE)
    return [process.exitcode for process in running]


def wait_for_step(folder: Path, step: int, running: list[BaseProcess], log: Path) -> None:
    """Waits until processes that are about to begin have logged a step."""
    since = time.time()
    while not any(
        line["step"] >= step and line["time"] >= since for line in read_metrics(folder / FILE_NAME)
    ):
        assert all(p.exitcode is None for p in running), texts(log, len(running))
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(toy_records, tmp_path_factory):
    """Returns a folder of runs by two processes, of which one was killed, and then by four."""
    folder = tmp_path_factory.mktemp("hosts")
    listwise = {"do": "train", "records": str(toy_records), "objective": "listwise"}
    listwise["folder"] = str(folder / "listwise")
    packed = {**listwise, "objective": "packed text", "folder": str(folder / "packed")}
    packed |= {"mesh": {"tensor": 2}, "steps": 1000}
    two = start(2, [{"do": "be_refused"}, {**listwise, "steps": 3}, packed], folder / "two")
    wait_for_step(folder / "packed", 3, two, folder / "two")
    two[1].kill()
    assert 0 not in ended(two)
    saved = max(steps_in(folder / "packed" / store.LATEST))
    score = {"do": "score", "records": str(toy_records), "model": str(folder / "listwise")}
    score["output"] = str(folder / "scores")
    four = start(4, [score, packed], folder / "four")
    wait_for_step(folder / "packed", saved + 1, four, folder / "four")
    os.kill(four[2].pid, signal.SIGTERM)
    assert ended(four) == [0] * 4, texts(folder / "four", 4)
    return folder


def test_processes_that_differ_are_refused_by_name(runs):
    for text in texts(runs / "two", 2):
        first, second, third, fourth = re.findall("^refused: (.*)", text, re.MULTILINE)
        assert first.startswith("process 1 differs from process 0 in settings['seed']: 1 there, 0")
        assert second.startswith("process 1 differs from process 0 in config.gin line 1: 'BATCH_SI")
        assert third.endswith("nowhere, says process 0")
        assert fourth.startswith("process 1 does not see")


def test_the_end_of_a_process_ends_the_others_with_a_message(runs):
    first, _ = texts(runs / "two", 2)
    assert "another task died" in first or "another process of this run has ended" in first


def test_one_process_speaks_for_all(runs):
    first, *others = texts(runs / "four", 4)
    assert "resuming from step" in first and "score: 1/" in first
    assert not [text for text in others if "step" in text or "score: " in text]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / FILE_NAME) if "loss" in line]


@pytest.mark.parametrize("name", ["listwise", "packed"])
def test_runs_of_several_processes_equal_that_of_one(runs, toy_records, tmp_path, name):
    last = max(steps_in(runs / name / store.LATEST))
    settings = {"objective": {"packed": "packed text"}.get(name, name)}
    settings |= {"optimizer": SGD, "periods": PERIODS}
    train_toy(toy_records, tmp_path / "alone", last, **settings)
    folders = [tmp_path / "alone", runs / name]
    alone, together = (store.stored_arrays(folder / store.LATEST / str(last)) for folder in folders)
    assert alone.keys() == together.keys()
    for array in alone:
        np.testing.assert_allclose(together[array].read(), alone[array].read(), atol=1e-5)
    assert len(losses(tmp_path / "alone")) == last
    np.testing.assert_allclose(*map(losses, folders), rtol=1e-5)


def test_one_process_goes_on_with_what_several_began(runs, toy_records, tmp_path):
    shutil.copytree(runs / "packed", tmp_path / "run")
    last = max(steps_in(tmp_path / "run" / store.LATEST)) + 1
    settings = {"objective": "packed text", "optimizer": SGD, "periods": PERIODS}
    for folder in ("run", "alone"):
        train_toy(toy_records, tmp_path / folder, last, **settings)
    assert len(losses(tmp_path / "run")) == last
    np.testing.assert_allclose(*(losses(tmp_path / f) for f in ("run", "alone")), rtol=1e-5)


def test_scores_of_four_processes_equal_those_of_one(runs, toy_records, tmp_path):
    score_toy(toy_records, runs / "listwise", tmp_path / "alone")
    folders = [tmp_path / "alone", runs / "scores"]
    assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in folders}) == 1
    alone, together = map(read_scores, folders)
    assert alone.example_id == together.example_id
    values = [np.concatenate(found.log_likelihood) for found in (alone, together)]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def test_sigterm_to_one_process_stops_all_after_the_same_step(runs):
    last = max(steps_in(runs / "packed" / store.LATEST))
    assert f"stopped on SIGTERM after step {last}" in texts(runs / "four", 4)[0]
    assert len(losses(runs / "packed")) == last < 1000
