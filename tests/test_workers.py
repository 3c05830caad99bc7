"""Work in other processes: its order, its errors, and an end that leaves nobody behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from instructrec_jax import workers
from instructrec_jax.errors import UserError

PROGRAM = """
import os, sys, time
from instructrec_jax import workers

def rest(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    list(workers.map_parts(rest, [60, 60], num_workers=2))
"""


def halve(number):
    if number % 2:
        raise UserError(f"{number} is odd")
    return number // 2


def end(_):
    os._exit(3)


def test_results_come_in_order_and_more_workers_than_parts_do_no_harm():
    for num_workers in (1, 2, 9):
        found = workers.map_parts(halve, range(0, 10, 2), num_workers=num_workers)
        assert list(found) == [0, 1, 2, 3, 4]
    assert list(workers.map_parts(halve, [], num_workers=2)) == []


def test_a_mistake_in_a_worker_is_raised_here():
    with pytest.raises(UserError, match="3 is odd"):
        list(workers.map_parts(halve, [2, 3], num_workers=2))


def test_a_worker_that_is_killed_is_one_message():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(workers.map_parts(end, [1, 2], num_workers=2))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(tmp_path, sent):
    (tmp_path / "program.py").write_text(PROGRAM)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(sent)
    parent.wait()
    while any(map(is_alive, workers)):
        time.sleep(0.05)
