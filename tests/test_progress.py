"""Progress of long work: what a line says, when it is logged, and the live line of a terminal."""

import io
import logging
import sys

import pytest

from instructrec_jax import progress
from instructrec_jax.progress import Progress, clock


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch):
    """The time that the module sees; tests set seconds[0]."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_count_from_the_first_part_on_so_that_compilation_is_left_out(seconds, caplog):
    caplog.set_level(logging.INFO)
    with Progress("score", total=300, unit="requests", done=10) as work:
        seconds[0] += 60.0
        work.advance(10)
        seconds[0] += 20.0
        work.advance(40, note="loss 1.5")
    assert caplog.messages == [
        "score: 20/300 requests",
        "score: 60/300 requests  loss 1.5  2.00 requests/s  2:00 left",
    ]
    assert work.rate() == 2.0


def test_lines_that_follow_each_other_quickly_are_left_out(seconds, caplog):
    caplog.set_level(logging.INFO)
    with Progress("build", total=None, unit="files") as work:
        for _ in range(2560):
            seconds[0] += 0.0078125  # a power of two: sums are exact
            work.advance()
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("build: 1,280 files  128.00 files/s")


def test_every_call_is_logged_where_no_time_need_pass(seconds, caplog):
    caplog.set_level(logging.INFO)
    with Progress("train", total=3, unit="steps", seconds_between_lines=0.0) as work:
        for _ in range(3):
            work.advance()
    assert len(caplog.messages) == 3


def test_parts_are_counted_after_their_work_is_done():
    work = Progress("build", total=2, unit="files")
    assert [(part, work.done) for part in work.track("ab")] == [("a", 0), ("b", 1)]
    assert work.done == 2
    small = Progress("prepare", total=None, unit="events")
    assert [small.done for _ in small.track(range(5), every=2)] == [0, 0, 2, 2, 4]
    assert small.done == 5


def test_a_terminal_shows_one_live_line_and_logs_none(seconds, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Progress("score", total=4, unit="requests") as work:
        for _ in range(3):
            seconds[0] += 60.0
            work.advance()
        live = work._live
        live.refresh()
        sys.stderr.write("a message\n")
    shown = sys.stderr.getvalue()
    assert "score" in shown and "3/4 requests  0.02 requests/s  1:00 left" in shown
    assert "a message" in shown
    assert caplog.messages == []


def test_a_narrow_terminal_shows_how_far_the_work_is_first(seconds, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Progress("train", total=4, unit="steps") as work:
        for _ in range(3):
            seconds[0] += 60.0
            work.advance(note="loss 4.3499  gradient_norm 14.9502  hr@1 0.1250  listwise 3.7767")
        work._live.refresh()
    shown = sys.stderr.getvalue()
    assert "train" in shown and "3/4 steps  0.02 steps/s  1:00 left  loss" in shown


def test_a_terminal_shows_nothing_where_only_warnings_are_asked_for(caplog, monkeypatch):
    caplog.set_level(logging.WARNING, logger="instructrec_jax")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("score", total=4, unit="requests") as work:
        work.advance()
    assert sys.stderr.getvalue() == ""


def test_times_read_as_people_write_them():
    assert [clock(s) for s in (0, 59.6, 125, 3723)] == ["0:00", "1:00", "2:05", "1:02:03"]
