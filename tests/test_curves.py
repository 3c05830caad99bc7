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


def test_the_page_shows_losses_metrics_and_times_with_a_table():
    lines = [{"step": s, "loss": 1.0, "timing/seconds_per_step": s / 8} for s in (1, 2)]
    (table,) = curves.section([*lines, {"step": 2, "validation/hr@1": 0.5}]).details
    assert table.header == ["step", "loss", "HR@1", "Seconds a step"]
    assert table.rows == [["1", "1", "-", "-"], ["2", "1", "0.5", "0.25"]], "the first compiles"
    assert [chart.title for chart in table.charts] == [
        *("Training loss", "Validation", "Seconds a step")
    ]
