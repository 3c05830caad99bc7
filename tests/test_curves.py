"""The training curve of a report."""

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.report import curves


def test_a_curve_takes_the_last_value_of_a_step_and_needs_losses(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "_draw_loss", lambda axes, losses: drawn.append(losses))
    lines = [{"step": 1, "loss": 3.0, "note": "text"}, {"step": 1, "loss": 2.0}]
    curves.plot_training_curve(lines, tmp_path / "curve.png")
    assert drawn == [{1: 2.0}] and (tmp_path / "curve.png").exists()
    with pytest.raises(UserError, match="no training loss"):
        curves.plot_training_curve([{"step": 1}], tmp_path / "curve.png")
