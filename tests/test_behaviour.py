"""What rankers do beside hitting, by hand; and the slices of a report."""

import json

import numpy as np
import pytest
from report_toy import NUM_USERS, make_folders, run

from instructrec_jax.metrics import behaviour
from instructrec_jax.report import slices

IDS = np.array([[0, 1, 2], [0, 3, -1], [1, 2, 3]])
VALUES = np.array([[2.0, 2.0, 1.0], [0.0, 5.0, -np.inf], [9.0, 1.0, 2.0]])
TIERS = np.array([[1, 1, 1], [1, 1, 0], [1, 2, 2]])
COUNTS = np.array([9, 5, 2, 1])


def test_equal_best_candidates_share_the_first_rank_and_later_rounds_come_first():
    shares = behaviour.first_shares(VALUES, IDS >= 0, TIERS)
    assert shares.tolist() == [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]]
    found = behaviour.exposure(IDS, shares, COUNTS)
    assert found.coverage == 3 / 4, "item 2 is never first"
    assert found.head_share == pytest.approx(0.5 / 3) and found.tail_share == pytest.approx(2 / 3)
    assert found.gini == pytest.approx(behaviour.gini([0.5, 0.5, 0, 2]))


def test_items_are_head_middle_or_tail_and_their_exposure_stands_beside_their_relevance():
    popularity = behaviour.popularity_classes(np.array([3, 9, 1, 1, 5, 0, 0, 1, 0, 0]))
    assert popularity.tolist() == [1, 0, 1, 1, 0, 2, 2, 2, 2, 2], "ties by id"
    shares = behaviour.first_shares(VALUES, IDS >= 0, TIERS)
    found = behaviour.group_shares(IDS, shares, np.array([0, 0, 1, 1]))
    assert found == pytest.approx([1 / 3, 2 / 3])


def test_names_of_most_weight_have_a_group_each_and_groups_without_events_are_left_out():
    names = [f"b{n}" for n in range(10)] + ["b9", "", "(others)"]
    groups = slices.by_name(names, np.array([*range(10), 0, 50, 0]))
    assert groups.names == [*(f"b{n}" for n in range(9, 1, -1)), "(others)", "(none)"]
    assert groups.of.tolist() == [8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 9, 8]
    own = slices.of_targets(groups, np.array([11, 0, 9]))
    assert (own.of.tolist(), list(own.names)) == ([2, 1, 0], ["b9", "(others)", "(none)"])


def test_gini_is_zero_for_equal_parts_and_highest_where_one_has_all():
    assert behaviour.gini(np.ones(7)) == pytest.approx(0.0)
    assert behaviour.gini([0, 0, 0, 3]) == pytest.approx(1 - 1 / 4)
    amounts = np.array([1.0, 2.0, 7.0])
    apart = np.abs(amounts[:, None] - amounts).sum() / (2 * 9 * amounts.mean())
    assert behaviour.gini(amounts) == pytest.approx(apart)


def test_popularity_correlation_is_spearmans_of_each_list_and_leaves_constant_lists_out():
    by_counts = COUNTS[np.maximum(IDS, 0)].astype(float)
    assert behaviour.popularity_correlation(IDS, by_counts, COUNTS) == pytest.approx(1.0)
    assert behaviour.popularity_correlation(IDS, -by_counts, COUNTS) == pytest.approx(-1.0)
    assert behaviour.popularity_correlation(IDS, np.ones((3, 3)), COUNTS) is None
    mixed = np.array([[3.0, 1.0, 2.0], [0.0, 0.0, -np.inf], [1.0, 1.0, 1.0]])
    assert behaviour.popularity_correlation(IDS, mixed, COUNTS) == pytest.approx(0.5)


def test_a_model_that_means_its_probabilities_is_calibrated():
    generator = np.random.default_rng(0)
    log_likelihood = generator.normal(scale=2.0, size=(20_000, 5)) - 30
    probability = np.exp(log_likelihood) / np.exp(log_likelihood).sum(axis=1, keepdims=True)
    target = (probability.cumsum(axis=1) > generator.random((20_000, 1))).argmax(axis=1)
    bins = behaviour.reliability(log_likelihood, target)
    assert sum(own.num_examples for own in bins) == 20_000
    assert behaviour.calibration_error(bins) < 0.02
    sure = behaviour.reliability(3 * log_likelihood, target)
    assert behaviour.calibration_error(sure) > 0.1
    certain = behaviour.reliability(np.array([[0.0, -np.inf]]), np.array([1]))
    assert behaviour.calibration_error(certain) == 1.0 and certain[-1].num_examples == 1


def test_a_ranker_that_likes_the_first_index_is_found():
    even = np.eye(4)[np.arange(100) % 4]
    assert behaviour.index_p_value(even) == pytest.approx(1.0)
    assert behaviour.index_p_value(np.eye(4)[np.arange(100) % 4 % 3]) < 1e-3
    assert behaviour.index_p_value(even[:19]) is None, "too few"


def test_numbers_are_divided_into_groups_of_about_as_many_events():
    groups = slices.by_number(np.array([1, 2, 2, 9]), unit=" events")
    assert (groups.of.tolist(), groups.names) == (
        [0, 1, 1, 2],
        ["1 events", "2 events", "9 events"],
    )
    many = slices.by_number(np.arange(100))
    assert many.names == ["0-24", "25-49", "50-74", "75-99"]
    assert slices.by_number(np.full(5, 19)).names == ["19"]


def test_slices_hold_the_means_of_their_events_and_only_large_ones_warn():
    rank = np.where(np.arange(400) < 200, 1, 6)
    event = np.arange(400) // 2
    metrics = slices.event_metrics(rank, event)
    assert metrics.shape == (200, 2) and metrics[:, 0].tolist() == [1.0] * 100 + [0.0] * 100
    groups = slices.by_flag(np.arange(200) >= 100, no="old", yes="new")
    old, new = slices.slice_rows("model", "age", groups, metrics)
    assert (old.group, old.num_events, old.metrics["hr@1"].estimate) == ("old", 100, 1.0)
    assert (new.is_below, old.is_below) == (True, False)
    assert slices.warning([old, new], "model").endswith("age new (0.000, n=100)")
    assert slices.warning([old, new], "other") is None
    few = slices.slice_rows(
        "model", "age", slices.by_flag(np.arange(200) > 100, no="old", yes="new"), metrics
    )
    assert not few[1].is_below, "99 events"


def test_a_slice_has_the_interval_of_its_standard_error():
    rank = np.array([1, 1, 1, 9])
    (row,) = slices.slice_rows(
        "model", "all", slices.Groups(np.zeros(4, int), ["all"]), slices.event_metrics(rank, None)
    )
    value = row.metrics["hr@1"]
    assert value.estimate == 0.75 and value.high == 1.0
    assert value.low == pytest.approx(0.75 - 1.959963984540054 * 0.5 / 2)


def test_a_report_holds_rows_of_equal_keys_in_json_and_tables_in_markdown(tmp_path):
    found = run(make_folders(tmp_path), tmp_path / "out", metrics_file=None)["scenarios"]
    for scenario, result in found.items():
        for name in ("slices", "behaviour", "exposure", "reliability", "first_ranks"):
            assert len({tuple(row) for row in result[name]}) == 1, (scenario, name)
    own = found["sequential"]
    assert [row["system"] for row in own["behaviour"]] == ["target", *own["test"]]
    wholes = {
        (row["system"], row["by"], row["group"]): row["metrics"]["ndcg@5"]["estimate"]
        for row in own["slices"]
    }
    whole = own["test"]["model"]["ndcg@5"]["estimate"]
    assert wholes["model", "template", "A9"] == pytest.approx(whole)
    assert wholes["model", "cell", "<P1,(P2),I0,T3>"] != pytest.approx(whole), "A7 and A9"
    assert "popularity of the target" in {row["by"] for row in own["slices"]}
    assert {row["by"] for row in own["exposure"]} == {"popularity", "novelty"}, (
        "no item has a brand"
    )
    for name in own["test"]:
        exposed = [r for r in own["exposure"] if (r["system"], r["by"]) == (name, "popularity")]
        assert sum(row["exposure"] for row in exposed) == pytest.approx(1.0)
        assert sum(row["relevance"] for row in exposed) == pytest.approx(1.0)
    by_title = [row for row in own["slices"] if row["by"] == "history length"]
    assert {row["num_events"] for row in by_title} == {NUM_USERS}
    assert own["left_out"] == ["age of the target: the log has no times"]
    indices = [row for row in own["first_ranks"] if row["system"] == "model"]
    assert [row["index"] for row in indices] == list(range(1, 11))
    assert sum(row["share"] for row in indices) == pytest.approx(1.0) and len(indices) == 10
    assert sum(row["num_examples"] for row in own["reliability"]) == NUM_USERS
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| by | group | n | random" in text and "Reliability" in text
    assert "Reliability" not in (tmp_path / "out" / "report.txt").read_text()
    json.dumps(found, allow_nan=False)
