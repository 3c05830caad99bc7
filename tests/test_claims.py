"""Claims: one holder at a time, and the work of the dead is free."""

import json
import os
import subprocess
import sys
import time

import pytest

from instructrec_jax.scores.claims import Claims


def write_claim(folder, *, host, pid, age=0.0):
    folder.mkdir(exist_ok=True)
    path = folder / "a.claim"
    path.write_text(json.dumps({"host": host, "pid": pid, "time": 0}))
    then = time.time() - age
    os.utime(path, (then, then))


@pytest.fixture
def own(tmp_path):
    """Claims as this process writes them: host and process."""
    with Claims(tmp_path / "own") as claims:
        claims.take("a")
        return json.loads((tmp_path / "own" / "a.claim").read_text())


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_claim_is_one_file_that_goes_when_it_is_given_back(tmp_path):
    with Claims(tmp_path / "c") as claims:
        assert claims.take("a") and claims.take("b")
        assert not claims.take("a")
        claims.give_back("a")
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["b.claim"]
        assert claims.take("a")
    assert not list((tmp_path / "c").iterdir()), "leaving gives all back"


@pytest.mark.parametrize(
    ("claim", "is_free"),
    [
        ({"host": "other", "pid": 1}, False),
        ({"host": "other", "pid": 1, "age": 100.0}, True),
        ({"pid": os.getppid()}, False),
        ({"pid": os.getppid(), "age": 100.0}, True),
        ({"pid": os.getpid()}, True),
        ({"pid": None}, True),
    ],
    ids=["alive", "silent", "alive here", "silent here", "our number, not ours", "dead"],
)
def test_only_the_claim_of_a_dead_process_can_be_taken_over(
    tmp_path, own, dead_pid, claim, is_free
):
    claim = {"host": own["host"], **claim}
    write_claim(tmp_path / "c", **{**claim, "pid": claim["pid"] or dead_pid})
    with Claims(tmp_path / "c", stale_seconds=50) as claims:
        assert claims.take("a") == is_free


def test_a_claim_that_was_never_written_is_free_when_it_is_old(tmp_path):
    (tmp_path / "a.claim").touch()
    with Claims(tmp_path, stale_seconds=50) as claims:
        assert not claims.take("a")
        os.utime(tmp_path / "a.claim", (1, 1))
        assert claims.take("a")


def test_a_claim_is_renewed_while_its_process_lives(tmp_path):
    with Claims(tmp_path, stale_seconds=0.3) as claims:
        claims.take("a")
        path = tmp_path / "a.claim"
        os.utime(path, (1, 1))
        for _ in range(3000):  # a hundred times what it takes
            if is_renewed := path.stat().st_mtime > 2:
                break
            time.sleep(0.01)
        assert is_renewed


def test_a_claim_that_another_took_over_stays_theirs(tmp_path):
    with Claims(tmp_path) as claims:
        claims.take("a")
        write_claim(tmp_path, host="other", pid=1)
        claims.give_back("a")
        assert (tmp_path / "a.claim").exists()


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    with Claims(tmp_path / "c") as claims:
        claims.take("a")
        claims.give_back("a")
        (tmp_path / "c").rmdir()
        assert claims.take("a")
