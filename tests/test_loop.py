"""The training loop alone: when it logs, evaluates and saves, and how it stops."""

import json
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.training import metrics_log
from instructrec_jax.training.guards import Guards
from instructrec_jax.training.loop import Actions, Periods, run_loop
from instructrec_jax.training.metrics_log import FILE_NAME, MetricsLog, as_table, read_metrics
from instructrec_jax.training.state import TrainState


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


class Lossy:
    """A number that calls a function when it is read, as a device does work meanwhile."""

    def __init__(self, value, when_read=lambda: None):
        self.value, self.when_read = value, when_read

    def __float__(self):
        self.when_read()
        return self.value


class Toy:
    """A loop over nothing that notes what happens: "save", "evaluate" and "best", with the step."""

    def __init__(self, folder, *, first_step=0, metrics=None, max_skipped=0, seen=None):
        self.folder, self.first_step = folder, first_step
        self.max_skipped, self.seen = max_skipped, seen
        self.metrics = metrics or {}
        self.events = []
        self.hooks = {}

    def train_step(self, state, batch):
        assert batch["number"] == state.step, "the batch that belongs to the step"
        step = state.step + 1
        self.hooks.get(("step", step), lambda: None)()
        found = {"loss": Lossy(1.0, self.hooks.get(("loss", step), lambda: None))}
        found |= {"gradient_norm": 0.5, **self.metrics.get(step, {})}
        return TrainState(step, f"model {step}", None), found

    def evaluate(self, model):
        step = int(model.split()[1])
        self.events.append(("evaluate", step))
        self.hooks.get(("evaluate", step), lambda: None)()
        return {"validation/ndcg@5": step / 100}

    def save(self, step, state):
        assert state.step == step
        if step not in self.saved:  # as the real one does
            self.events.append(("save", step))

    def keep_best(self, step, state, measured):
        assert state.step == step and measured == {"validation/ndcg@5": step / 100}
        self.events.append(("best", step))

    def run(self, *, is_evaluation_missing=False, **periods):
        batches = (
            {
                "number": number,
                "example_id": np.array([f"u{number}:1", ""]),
                "example_number": np.array([2 * number, -1]),
            }
            for number in range(self.first_step, 1000)
        )
        log = MetricsLog(self.folder, first_step=self.first_step)
        self.guards = Guards(log, max_skipped=self.max_skipped, seen=self.seen)
        actions = Actions(
            place=lambda batch: batch,
            save=self.save,
            evaluate=self.evaluate,
            keep_best=self.keep_best,
        )
        try:
            return run_loop(
                TrainState(self.first_step, f"model {self.first_step}", None),
                batches,
                train_step=self.train_step,
                periods=Periods(**periods),
                actions=actions,
                log=log,
                guards=self.guards,
                is_evaluation_missing=is_evaluation_missing,
            )
        finally:
            log.close()

    @property
    def saved(self):
        return [event[1] for event in self.events if event[0] == "save"]

    @property
    def lines(self):
        return read_metrics(self.folder / FILE_NAME)

    @property
    def logged(self):
        return [(line["step"], "loss" in line) for line in self.lines]


def test_it_logs_evaluates_and_saves_by_its_periods_and_at_the_end(tmp_path):
    toy = Toy(tmp_path)
    state = toy.run(train_steps=11, log=5, evaluate=6, checkpoint=4)
    assert state.step == 11
    assert toy.events == [
        ("save", 4),
        *(("save", 6), ("evaluate", 6), ("best", 6)),
        ("save", 8),
        *(("save", 11), ("evaluate", 11), ("best", 11)),
    ]
    assert toy.logged == [
        (1, True), (5, True), (6, False), (10, True), (11, True), (11, False)
    ]  # fmt: skip


def test_what_an_evaluation_measured_is_shown_in_a_table():
    values = {"validation/hr@1": 0.25, "validation/ndcg@5": 1.0}
    values |= {"validation/toys.A7/hr@1": 0.5, "validation/toys.B7/ndcg@5": 12.5}
    assert as_table("step 20", values).splitlines() == [
        "step 20              hr@1   ndcg@5",
        "validation          .2500   1.0000",
        "validation/toys.A7  .5000         ",
        "validation/toys.B7         12.5000",
    ]


def test_it_goes_on_from_the_step_of_its_state(tmp_path):
    toy = Toy(tmp_path, first_step=7)
    assert toy.run(train_steps=9, log=1).step == 9
    assert toy.saved == [9]


@pytest.mark.parametrize(("moment", "step"), [("step", 5), ("loss", 4), ("evaluate", 6)])
def test_sigterm_at_any_moment_saves_the_last_step(tmp_path, moment, step):
    toy = Toy(tmp_path)
    toy.hooks[moment, step] = terminate
    before = signal.getsignal(signal.SIGTERM)
    state = toy.run(train_steps=100, log=2, evaluate=3, checkpoint=50)
    assert state.step == step and toy.saved[-1] == step
    assert [event[1] for event in toy.events if event[0] == "evaluate"] == [3, 6][: step // 3]
    assert ("best", 3) in toy.events and ("best", 6) not in toy.events
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_does_not_wait_for_an_evaluation(tmp_path):
    """A preempted machine has seconds; and an extra evaluation could change which is best."""
    toy = Toy(tmp_path)
    toy.hooks["step", 4] = terminate
    toy.run(train_steps=100, log=10, evaluate=50, checkpoint=50)
    assert toy.events == [("save", 4)]


def test_sigterm_breaks_off_an_evaluation_whose_state_is_saved_before_it(tmp_path, caplog):
    toy = Toy(tmp_path)
    ended = []
    toy.hooks["evaluate", 3] = lambda: (terminate(), ended.append("evaluation"))
    with caplog.at_level("INFO"):
        assert toy.run(train_steps=100, log=2, evaluate=3, checkpoint=50).step == 3
    assert toy.events == [("save", 3), ("evaluate", 3)] and ended == []
    assert "the evaluation of step 3 was broken off; the next run begins with it" in caplog.text
    assert toy.logged[-1] == (2, True), "what is logged is complete"


def test_a_run_begins_with_the_evaluation_that_is_missing(tmp_path):
    toy = Toy(tmp_path, first_step=3)
    toy.run(train_steps=4, evaluate=3, is_evaluation_missing=True)
    assert toy.events[:2] == [("evaluate", 3), ("best", 3)]
    last = Toy(tmp_path / "last", first_step=4)
    (tmp_path / "last").mkdir()
    last.run(train_steps=4, is_evaluation_missing=True)
    assert last.events == [("evaluate", 4), ("best", 4)]


def test_sigterm_says_how_to_go_on(tmp_path, caplog):
    toy = Toy(tmp_path)
    toy.hooks["loss", 2] = terminate
    with caplog.at_level("INFO"):
        toy.run(train_steps=100, log=1)
    assert "stopped on SIGTERM after step 2; the same command goes on from there" in caplog.text


@pytest.mark.parametrize(("moment", "step"), [("step", 5), ("loss", 4), ("evaluate", 6)])
def test_ctrl_c_saves_as_sigterm_does_and_nothing_that_waits_for_the_run_goes_on(
    tmp_path, caplog, moment, step
):
    toy = Toy(tmp_path)
    pressed = iter([press_ctrl_c])  # once: a loss is read twice
    toy.hooks[moment, step] = lambda: next(pressed, lambda: None)()
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        toy.run(train_steps=100, log=2, evaluate=3, checkpoint=50)
    assert toy.saved[-1] == step
    assert f"stopped on Ctrl-C after step {step}; the same command goes on" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path):
    toy = Toy(tmp_path)
    toy.hooks["step", 4] = press_ctrl_c
    toy.hooks["loss", 4] = press_ctrl_c
    with pytest.raises(KeyboardInterrupt):
        toy.run(train_steps=100, log=4)
    assert toy.saved == []


def test_ctrl_c_stays_ignored_where_it_was(tmp_path):
    toy = Toy(tmp_path)
    toy.hooks["step", 1] = press_ctrl_c
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert toy.run(train_steps=2).step == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_where_signals_cannot_be_caught(tmp_path):
    toy = Toy(tmp_path)
    thread = threading.Thread(target=lambda: toy.run(train_steps=2))
    thread.start()
    thread.join()
    assert toy.saved == [2]


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("periods", [{"log": 1}, {"log": 50, "checkpoint": 5}, {"log": 50}])
def test_a_number_that_is_not_finite_stops_the_run_before_it_is_saved(
    tmp_path, name, value, periods
):
    toy = Toy(tmp_path, metrics={5: {name: value}})
    match = rf"{name.split('_')[0]}.* of step 5 is (nan|inf).*examples of that batch.*: 8 \(u4:1\)$"
    with pytest.raises(UserError, match=match):
        toy.run(train_steps=9, **periods)
    assert all(step < 5 for step in toy.saved)
    assert all(step != 5 for step, _ in toy.logged)  # strict JSON has no NaN


def test_the_last_step_is_checked_too(tmp_path):
    toy = Toy(tmp_path, metrics={3: {"loss": float("nan")}})
    with pytest.raises(UserError, match="step 3"):
        toy.run(train_steps=3, log=50)
    assert toy.saved == []


def test_a_step_s_time_is_that_without_saves_and_evaluations(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    times = metrics_log.StepTimes(4)

    def spend(name, seconds):
        with times.spent_on(name):
            now[0] += seconds

    spend("data", 2.0)
    spend("save", 5.0)
    spend("evaluation", 7.0)
    now[0] += 6.0
    assert times.up_to(8) == {
        "timing/seconds_per_step": 2.0,
        "timing/data_wait_fraction": 0.25,
        "timing/save_seconds": 5.0,
    }
    now[0] += 3.0
    assert times.up_to(9) == {"timing/seconds_per_step": 3.0, "timing/data_wait_fraction": 0.0}


@pytest.mark.parametrize("name", ["train_steps", "log", "evaluate", "checkpoint"])
def test_periods_below_one_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        Periods(**({"train_steps": 5} | {name: 0}))


def test_a_resumed_log_forgets_the_steps_that_are_taken_again(tmp_path):
    for first, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        log = MetricsLog(tmp_path, first_step=first)
        for step in steps:
            log.write(step, {"loss": first + step})
        log.close()
    lines = read_metrics(tmp_path / FILE_NAME)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == [1, 2, 5, 6, 7]


def test_a_line_cut_short_by_a_kill_is_forgotten(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / FILE_NAME) == [{"step": 1, "loss": 2.0}]
    log = MetricsLog(tmp_path, first_step=2)
    log.write(3, {"loss": 1.0})
    log.close()
    text = (tmp_path / FILE_NAME).read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 3]


def test_a_damaged_line_in_the_middle_of_a_log_is_named(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"step": 1}\n\nnot json\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 3 is not a JSON object with a step"):
        read_metrics(tmp_path / FILE_NAME)


def test_a_run_without_log_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path / FILE_NAME) == []


def test_a_log_of_metrics_does_without_torch(tmp_path):
    code = """
import sys
from instructrec_jax.training.metrics_log import MetricsLog
MetricsLog(sys.argv[1], first_step=0).close()
assert "tensorboardX" in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
