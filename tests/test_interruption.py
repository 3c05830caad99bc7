"""Ctrl-C and kills: one line, exit code 130, and nothing that stays behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from instructrec_jax import files
from instructrec_jax.progress import Stop, StopAskedError

COMMAND = ("-m", "instructrec_jax", "data", "synthesize", "--num_users=60000", "--num_items=3000")


def start(output_dir):
    """Starts work of some seconds, and waits until it has begun to write."""
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--num_interactions=900000", f"--output_dir={output_dir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(output_dir.parent.glob(f".{output_dir.name}.*.tmp")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_ctrl_c_is_one_line_and_code_130_and_leaves_nothing(tmp_path):
    process = start(tmp_path / "log")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate()
    assert process.returncode == 130
    (line,) = messages.splitlines()
    assert line.startswith("interrupted; the same command goes on from what was saved: instructrec")
    assert os.listdir(tmp_path) == []


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(tmp_path):
    killed = start(tmp_path / "log")
    killed.kill()
    killed.communicate()
    (left,) = os.listdir(tmp_path)
    with files.atomic_directory(tmp_path / "log"):
        assert left not in os.listdir(tmp_path)
        ours = set(os.listdir(tmp_path))
        with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "log"):
            assert ours < set(os.listdir(tmp_path))
            raise RuntimeError("another run of the same command fails")
        assert set(os.listdir(tmp_path)) == ours
    assert os.listdir(tmp_path) == ["log"]


def test_an_error_that_a_request_to_stop_became_is_the_request():
    stop = Stop()
    with pytest.raises(StopAskedError), stop.interrupts():
        stop.asked_by = signal.SIGTERM
        raise ValueError("a library has wrapped it")
    with pytest.raises(ValueError, match="plain"), Stop().interrupts():
        raise ValueError("plain")
