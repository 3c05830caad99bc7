"""The ledger: one paid answer per question, whatever ends a run; money never forgotten."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from teacher_toy import answer, question

from instructrec_jax import workers
from instructrec_jax.errors import UserError
from instructrec_jax.teacher import ledger as ledger_module
from instructrec_jax.teacher.ledger import Ledger, Verdict

OTHER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from teacher_toy import question
from instructrec_jax.teacher.ledger import Ledger
ledger = Ledger({path!r}, fingerprint="toy")
print(ledger.write(lambda: ledger.claim(question(0), worst_usd=0.5)).value, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    with Ledger(path, fingerprint="toy") as opened:
        yield opened


def claim(ledger, number, usd=0.5, **limits):
    return ledger.write(lambda: ledger.claim(question(number), worst_usd=usd, **limits))


def record(ledger, number, **changes):
    ledger.write(lambda: ledger.record(answer(number, **changes)))


def other_run(path):
    """Starts a process that claims question 0, and dies with kill -9 when its input ends."""
    code = OTHER.format(tests=os.path.dirname(__file__), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_key_depends_on_every_field_and_on_nothing_else():
    assert question(0).key == question(0, temperature=0).key
    changes = [{"attempt": 1}, {"system": ""}, {"schema": None}, {"model": "other"}]
    assert len({question(0, **change).key for change in [{}, *changes]}) == 5


def test_a_question_is_claimed_once_and_answered_once(ledger):
    assert claim(ledger, 0) is Verdict.CLAIMED
    assert claim(ledger, 0) is Verdict.REPEATED
    record(ledger, 0)
    assert claim(ledger, 0) is Verdict.ANSWERED
    assert ledger.answer(question(0).key) == answer(0)
    assert ledger.answer(question(1).key) is None
    assert ledger.spent() == 0.25


def test_answers_outlive_their_run(path):
    with Ledger(path, fingerprint="toy") as first:
        for number in range(600):
            claim(first, number)
        first.write(lambda: [first.record(answer(number)) for number in range(600)])
    with Ledger(path, fingerprint="toy") as second:
        keys = [question(number).key for number in range(601)]
        assert second.answers(keys) == {answer(n).key: answer(n) for n in range(600)}
        assert second.answered(keys) == set(keys[:600])


def test_what_is_in_flight_counts_at_its_most_until_its_answer_is_there(ledger):
    assert claim(ledger, 0, max_usd=1.2) is Verdict.CLAIMED
    assert claim(ledger, 1, max_usd=1.2) is Verdict.CLAIMED
    assert claim(ledger, 2, max_usd=1.2) is Verdict.TOO_DEAR
    record(ledger, 0)
    assert ledger.spent() == 0.75
    assert claim(ledger, 2, usd=0.45, max_usd=1.2) is Verdict.CLAIMED


def test_an_answer_without_a_price_costs_the_most_that_it_can(ledger):
    claim(ledger, 0)
    record(ledger, 0, usd=None)
    assert ledger.spent() == 0.5
    assert ledger.answer(question(0).key).usd is None


def test_a_claim_that_is_given_back_costs_nothing_and_is_free(ledger):
    claim(ledger, 0)
    ledger.write(lambda: ledger.give_back(question(0).key))
    assert ledger.spent() == 0.0
    assert claim(ledger, 0) is Verdict.CLAIMED


def test_a_failed_request_keeps_what_came_and_its_cost(ledger, path):
    claim(ledger, 0)
    ledger.write(lambda: ledger.fail(question(0).key, state="broken", raw='{"choices": ['))
    assert claim(ledger, 0) is Verdict.CLAIMED
    assert ledger.spent() == 1.0
    stored = sqlite3.connect(path).execute("SELECT value FROM requests WHERE state = 'broken'")
    assert '{\\"choices\\": [' in stored.fetchone()[0]


def test_a_question_of_a_living_run_is_left_to_it_and_that_of_a_killed_one_is_not(path):
    process = other_run(path)
    with Ledger(path, fingerprint="toy") as ledger:
        assert claim(ledger, 0) is Verdict.ELSEWHERE
        process.communicate("")
        assert process.returncode == -signal.SIGKILL
        assert claim(ledger, 0) is Verdict.CLAIMED
        assert ledger.counts() == {"in_flight": 1, "lost": 1}
        assert ledger.spent() == 1.0  # the lost one may be billed


def test_a_run_on_another_host_is_dead_when_it_has_not_said_otherwise_for_long(ledger):
    claim(ledger, 0)
    database = ledger._database
    for age, verdict in ((0.0, Verdict.ELSEWHERE), (1000.0, Verdict.CLAIMED)):
        renewed = time.time() - age
        database.run("UPDATE requests SET run = 77")
        database.run("INSERT OR REPLACE INTO runs VALUES (77, 'other', 1, ?)", renewed)
        assert claim(ledger, 0) is verdict


def test_a_second_answer_is_kept_and_is_not_the_answer(ledger):
    claim(ledger, 0)
    ledger._database.run("UPDATE requests SET state = 'lost'")  # taken for dead
    claim(ledger, 0, usd=0.125)
    ledger._database.run("UPDATE requests SET run = 77 WHERE state = 'in_flight'")
    record(ledger, 0, text="late")
    assert ledger.counts() == {"extra": 1, "in_flight": 1}
    assert ledger.answer(question(0).key) is None
    assert ledger.spent() == 0.375


def test_a_late_answer_is_taken_where_nobody_asks_again(ledger):
    claim(ledger, 0)
    ledger._database.run("UPDATE requests SET state = 'lost'")
    record(ledger, 0)
    assert ledger.answer(question(0).key) == answer(0)


def test_a_run_says_that_it_lives(ledger, monkeypatch):
    monkeypatch.setattr(ledger_module, "STALE_SECONDS", 0.0)
    ledger._database.run("DELETE FROM runs")
    ledger.renew()
    rows = ledger._database.rows("SELECT host, pid FROM runs")
    assert rows == [(workers.host_id(), os.getpid())]


def test_the_ledger_of_another_data_set_is_refused(ledger, path):
    with pytest.raises(UserError, match=r"ledger of another data set .toy, expected game"):
        Ledger(path, fingerprint="games")


def test_a_file_of_something_else_is_refused(path):
    path.write_text("no database, but some text that is long enough" * 100)
    with pytest.raises(UserError, match=r"is damaged .file is not a database"):
        Ledger(path, fingerprint="toy")


def test_a_database_of_another_program_is_refused(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE birds (name TEXT)")
    with pytest.raises(UserError, match=r"database of another program"):
        Ledger(path, fingerprint="toy")


def test_a_damaged_ledger_is_refused_and_left_as_it_is(path):
    with Ledger(path, fingerprint="toy") as ledger:
        for number in range(300):
            claim(ledger, number)
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 12] = os.urandom(4096 * 9)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \([^*]+\); .*do not delete it"):
        Ledger(path, fingerprint="toy")
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write"):
        Ledger(tmp_path / "file" / "ledger.sqlite", fingerprint="toy")


class Reserve:
    """Room that a full disk has once it is given up: `max_page_count` plays the disk."""

    def __init__(self, ledger, *, helps=True):
        self._database, self._helps = ledger._database, helps
        pages = self._database.one("PRAGMA page_count")
        self._database.run(f"PRAGMA max_page_count = {pages}")

    def unlink(self, missing_ok):
        if self._helps:
            self._database.run("PRAGMA max_page_count = 100000")


def test_answers_in_flight_find_room_on_a_full_disk_and_nothing_more_begins(ledger):
    for number in range(8):
        claim(ledger, number)
    ledger._database._reserve = Reserve(ledger)
    for number in range(8):
        record(ledger, number, text="long " * 1000)
    assert ledger.counts() == {"answered": 8}
    assert claim(ledger, 9) is Verdict.DISK_FULL


def test_a_disk_without_any_room_is_one_message_and_loses_nothing(ledger):
    for number in range(8):
        claim(ledger, number)
    record(ledger, 0)
    ledger._database._reserve = Reserve(ledger, helps=False)
    with pytest.raises(UserError, match=r"the disk is full; make room and run the same"):
        record(ledger, 1, text="long " * 5000)
    assert ledger.answer(question(0).key) == answer(0)
