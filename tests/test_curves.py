"""The training curve: reading metrics.jsonl and drawing it."""

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.report import curves


def test_a_resumed_run_keeps_the_last_value_of_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 1, "loss": 2}\n\n{"step": 2, "lo')
    assert curves.read_metrics(path) == {"loss": {1: 2.0}}


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\nnot json\n{"step": 2, "loss": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2"):
        curves.read_metrics(path)


def test_a_run_without_losses_has_no_curve_to_draw(tmp_path):
    with pytest.raises(UserError, match="no training loss"):
        curves.plot_training_curve({}, tmp_path / "curve.png")
