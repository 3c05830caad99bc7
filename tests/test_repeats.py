"""Several runs of a system: one row, with intervals over runs and events."""

import numpy as np
import pytest
from report_toy import make_data, make_folders, run, write_scores
from test_cli import report_scores

from instructrec_jax.metrics import ranking, repeats, statistics

GENERATOR = np.random.default_rng(3)
RANKS = GENERATOR.integers(1, 11, size=(3, 300))


def test_the_interval_is_that_of_drawing_runs_and_events():
    values = ranking.per_example(RANKS.ravel())["hr@3"].reshape(3, 300)
    values[0] = 1.0  # one run is far better
    rank = np.where(values == 1.0, 1, 10)
    draws = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        own = values[draws.integers(0, 3, 3)]
        means.append(own[:, draws.integers(0, 300, 300)].mean())
    low, high = np.percentile(means, [2.5, 97.5])
    found = repeats.intervals_over_runs(rank, seed=0)["hr@3"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert found.estimate == pytest.approx(values.mean())
    alone = statistics.bootstrap_intervals(rank[1], seed=0)["hr@3"]
    assert found.high - found.low > alone.high - alone.low


def test_equal_runs_tell_no_more_than_one():
    one = statistics.bootstrap_intervals(RANKS[0], seed=0)
    three = repeats.intervals_over_runs(np.tile(RANKS[0], (3, 1)), seed=0)
    for name, value in one.items():
        assert three[name].estimate == pytest.approx(value.estimate)
        assert (three[name].low, three[name].high) == pytest.approx(
            (value.low, value.high), abs=0.02
        )


def test_draws_of_an_event_are_averaged_before():
    event = np.arange(300) // 2
    found = repeats.intervals_over_runs(RANKS, seed=0, event=event)["ndcg@5"]
    own = repeats.intervals_over_runs(
        np.repeat(RANKS, 2, axis=1), seed=0, event=np.arange(600) // 2
    )
    assert found.estimate == pytest.approx(ranking.ndcg(RANKS.ravel(), 5))
    single = repeats.intervals_over_runs(RANKS, seed=0)["ndcg@5"]
    assert own["ndcg@5"].low == pytest.approx(single.low, abs=1e-9)


def test_differences_are_paired_by_event_and_not_by_run():
    better = np.maximum(RANKS - 2, 1)
    found = repeats.differences_over_runs(better, RANKS[0], seed=0)["ndcg@5"]
    expected = ranking.ndcg(better.ravel(), 5) - ranking.ndcg(RANKS[0], 5)
    assert found.estimate == pytest.approx(expected)
    assert found.low > 0 and found.p_value < 0.001 and found.effect_size > 0
    backward = repeats.differences_over_runs(RANKS[0], better, seed=0)["ndcg@5"]
    assert backward.estimate == pytest.approx(-expected) and backward.high < 0
    none = repeats.differences_over_runs(RANKS[:2], RANKS[:2], seed=0)["hr@1"]
    assert none.estimate == 0.0 and none.p_value > 0.5


def test_a_report_shows_runs_of_a_system_as_one_row(tmp_path):
    folders = make_folders(tmp_path)
    for split in ("validation", "test"):
        write_scores(folders / f"other_{split}", make_data(), split, {"A9": 1.0})
    given = ":".join(str(folders / split) for split in ("validation", "test"))
    other = ":".join(str(folders / f"other_{split}") for split in ("validation", "test"))
    options = report_scores(f"model={given},{other}")
    assert list(options) == ["model", "model#2"]
    found = run(folders, tmp_path / "out", scores=options, metrics_file=None)["scenarios"]
    own = found["sequential"]
    assert list(own["test"]) == ["random", "popularity", "cooccurrence", "model"]
    told = own["protocol"]["systems"]["model"]
    assert told["runs"] == 2 and len(told["hr@1 of runs"]) == 2
    mean = np.mean(told["hr@1 of runs"])
    assert own["test"]["model"]["hr@1"]["estimate"] == pytest.approx(mean, abs=1e-4)
    random = own["test"]["random"]["hr@1"]["estimate"]
    lead = own["minus"]["model"]["random"]["hr@1"]["estimate"]
    assert lead == pytest.approx(mean - random, abs=1e-4)
    same = {check["check"]: check["found"] for check in own["validity"]}["same candidates"]
    assert "in 6 rows" in same
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "model: mean of 2 runs, intervals over runs and events" in text and "#2" not in text
