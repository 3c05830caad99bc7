"""W&B and MLflow get what metrics.jsonl gets; a fake stands for each, and nothing is sent."""

import json
import sys
from unittest import mock

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.training.metrics_log import MetricsLog, read_metrics


@pytest.fixture
def fakes(monkeypatch):
    found = {name: mock.MagicMock() for name in ("wandb", "mlflow")}
    for name, fake in found.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return found


def test_each_tracker_gets_the_finite_values_of_each_step(fakes, tmp_path):
    log = MetricsLog(tmp_path, first_step=0, trackers=["wandb", "mlflow"])
    log.write(3, {"hr@1": 0.5, "loss": float("nan")})
    log.close()
    run = fakes["wandb"].init.return_value
    run.log.assert_called_once_with({"hr@1": 0.5}, step=3)
    run.finish.assert_called_once()
    fakes["mlflow"].log_metrics.assert_called_once_with({"hr_at_1": 0.5}, step=3)
    fakes["mlflow"].end_run.assert_called_once()


def test_a_run_that_goes_on_is_the_same_run_of_wandb(fakes, tmp_path):
    for first_step in (0, 5):
        MetricsLog(tmp_path, first_step=first_step, trackers=["wandb"]).close()
    first, second = (call.kwargs for call in fakes["wandb"].init.call_args_list)
    assert first["id"] == second["id"] and first["resume"] == "allow"


def test_a_tracker_that_fails_is_left_and_training_goes_on(fakes, tmp_path, caplog):
    fakes["mlflow"].log_metrics.side_effect = ConnectionError("no route")
    log = MetricsLog(tmp_path, first_step=0, trackers=["mlflow"])
    for step in (1, 2):
        log.write(step, {"loss": 1.0})
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert json.dumps(caplog.messages).count("no route") == 1


def test_trackers_that_are_unknown_or_not_there_are_named(fakes, monkeypatch, tmp_path):
    fakes["wandb"].init.side_effect = ValueError("no key")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name, expected in (
        ("comet", "unknown tracker 'comet'"),
        ("mlflow", "needs its package"),
        ("wandb", "does not begin: no key"),
    ):
        with pytest.raises(UserError, match=expected):
            MetricsLog(tmp_path, first_step=0, trackers=[name])
