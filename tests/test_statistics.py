"""Bootstrap intervals against plain resampling and against what must hold of any interval."""

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking, statistics

GENERATOR = np.random.default_rng(7)
RANKS = GENERATOR.integers(1, 11, size=300)
OTHER = np.clip(RANKS + GENERATOR.integers(0, 3, size=300), 1, 10)


def test_interval_agrees_with_plain_resampling_of_examples():
    draws = np.random.default_rng(1).integers(0, len(RANKS), size=(10_000, len(RANKS)))
    for name, values in ranking.per_example(RANKS).items():
        low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
        found = statistics.bootstrap_intervals(RANKS, seed=2)[name]
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.006), name
        assert found.estimate == pytest.approx(values.mean()), name


def test_a_constant_scorer_is_at_chance_where_ties_are_resolved_in_expectation():
    rank, num_tied = np.full(200, 10), np.full(200, 9)
    found = statistics.bootstrap_intervals(rank, num_tied=num_tied, seed=0)
    assert found["hr@1"].estimate == found["hr@1"].low == pytest.approx(0.1)
    assert found["ndcg@5"].estimate == pytest.approx(0.2948, abs=1e-4)
    without = statistics.bootstrap_intervals(RANKS, num_tied=np.zeros(300), seed=2)
    plain = statistics.bootstrap_intervals(RANKS, seed=2)
    for name, value in plain.items():
        assert without[name].estimate == pytest.approx(value.estimate), name


def test_paired_interval_agrees_with_plain_resampling_of_pairs():
    draws = np.random.default_rng(1).integers(0, len(RANKS), size=(10_000, len(RANKS)))
    ours, theirs = ranking.per_example(RANKS), ranking.per_example(OTHER)
    for name in ranking.METRIC_NAMES:
        difference = ours[name] - theirs[name]
        low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
        found = statistics.paired_differences(RANKS, OTHER, seed=2)[name]
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.006), name
        assert found.estimate == pytest.approx(difference.mean()), name


def test_pairing_narrows_the_interval_of_related_systems():
    paired = statistics.paired_differences(RANKS, OTHER, seed=0)["hr@3"]
    single = statistics.bootstrap_intervals(RANKS, seed=0)["hr@3"]
    assert paired.high - paired.low < single.high - single.low


def test_a_system_does_not_differ_from_itself():
    for found in statistics.paired_differences(RANKS, RANKS, seed=0).values():
        assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)
        assert (found.p_value, found.effect_size, found.detectable) == (1.0, 0.0, 0.0)


def test_the_difference_turns_its_sign_with_the_systems():
    forward = statistics.paired_differences(RANKS, OTHER, seed=0)["ndcg@5"]
    backward = statistics.paired_differences(OTHER, RANKS, seed=0)["ndcg@5"]
    assert forward.estimate == pytest.approx(-backward.estimate)
    assert forward.estimate > 0 and forward.low > 0 > backward.high


def test_chance_lies_inside_the_interval_of_a_random_scorer():
    generator = np.random.default_rng(0)
    rank = ranking.ranks(generator.normal(size=(943, 10)), generator.integers(0, 10, 943))
    interval = statistics.bootstrap_intervals(rank, seed=0)["hr@1"]
    assert interval.low <= 0.1 <= interval.high


def test_examples_of_an_event_are_averaged_and_drawn_together():
    event = np.arange(300) % 60
    values = ranking.per_example(RANKS)["ndcg@5"].reshape(5, 60).mean(axis=0)
    difference = values - ranking.per_example(OTHER)["ndcg@5"].reshape(5, 60).mean(axis=0)
    draws = np.random.default_rng(1).integers(0, 60, size=(10_000, 60))
    single = statistics.bootstrap_intervals(RANKS, event=event, seed=2)["ndcg@5"]
    paired = statistics.paired_differences(RANKS, OTHER, event=event, seed=2)["ndcg@5"]
    for found, expected in ((single, values), (paired, difference)):
        low, high = np.percentile(expected[draws].mean(axis=1), [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
        assert found.estimate == pytest.approx(expected.mean())


def test_copies_of_an_example_tell_nothing_new():
    once = statistics.bootstrap_intervals(RANKS, seed=2)["hr@1"]
    event = np.tile(np.arange(300), 4)
    copied = statistics.bootstrap_intervals(np.tile(RANKS, 4), event=event, seed=2)["hr@1"]
    assert copied.estimate == pytest.approx(once.estimate)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.05)


def test_many_events_take_bounded_memory(monkeypatch):
    whole = statistics.bootstrap_intervals(RANKS, event=np.arange(300) // 2, seed=2)
    monkeypatch.setattr(statistics, "_MAX_DRAWN", 1000)
    assert statistics.bootstrap_intervals(RANKS, event=np.arange(300) // 2, seed=2) == whole


def test_the_nominal_coverage_is_reached():
    generator = np.random.default_rng(3)
    intervals = [
        statistics.bootstrap_intervals(
            generator.integers(1, 11, size=200), seed=trial, num_resamples=400
        )["hr@3"]
        for trial in range(300)
    ]
    covered = [interval.low <= 0.3 <= interval.high for interval in intervals]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    first = statistics.bootstrap_intervals(RANKS, seed=5)
    assert first == statistics.bootstrap_intervals(RANKS, seed=5)
    assert first != statistics.bootstrap_intervals(RANKS, seed=6)


def test_more_examples_and_less_confidence_narrow_the_interval():
    few = statistics.bootstrap_intervals(RANKS, seed=0)["hr@1"]
    many = statistics.bootstrap_intervals(np.tile(RANKS, 9), seed=0)["hr@1"]
    loose = statistics.bootstrap_intervals(RANKS, seed=0, confidence=0.5)["hr@1"]
    assert many.high - many.low < few.high - few.low
    assert loose.high - loose.low < few.high - few.low


def test_the_difference_of_any_measure_is_paired_or_not():
    generator = np.random.default_rng(1)
    hard = generator.normal(size=400)
    ours, theirs = hard + 0.1, hard + 0.01 * generator.normal(size=400)
    paired = statistics.mean_difference(ours, theirs, is_paired=True, seed=0)
    apart = statistics.mean_difference(ours, theirs, is_paired=False, seed=0)
    assert paired.estimate == pytest.approx(apart.estimate) == pytest.approx(0.1, abs=0.01)
    assert 0 < paired.low < paired.high and apart.low < 0 < apart.high
    # Independent means: the variance of the difference is the sum of both.
    width = 2 * 1.96 * np.sqrt((ours.var() + theirs.var()) / 400)
    assert apart.high - apart.low == pytest.approx(width, rel=0.05)
    with pytest.raises(UserError, match="no examples"):
        statistics.mean_difference([], [], is_paired=True, seed=0)


def test_no_examples_or_unpaired_systems_are_refused():
    with pytest.raises(UserError, match="no examples"):
        statistics.bootstrap_intervals([], seed=0)
    with pytest.raises(ValueError, match="equal shapes"):
        statistics.paired_differences([1, 2], [1], seed=0)


def test_the_p_value_is_that_of_drawing_the_sign_of_each_event():
    ours, theirs = ranking.per_example(RANKS), ranking.per_example(OTHER)
    signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(10_000, len(RANKS)))
    for shift in (0, 1):  # far from each other, and nearly alike
        other = np.roll(RANKS, 1) if shift else OTHER
        theirs = ranking.per_example(other)
        for name in ranking.METRIC_NAMES:
            difference = ours[name] - theirs[name]
            expected = np.mean(np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9)
            found = statistics.paired_differences(RANKS, other, seed=2)[name]
            assert found.p_value == pytest.approx(expected, abs=0.02), name


def test_few_differences_have_the_p_value_of_all_their_signs():
    found = statistics.paired_differences([1, 1, 1, 2], [2, 2, 2, 1], seed=0)["hr@1"]
    # Sums of four signs: of 16, the 2 of size 4 and the 8 of size 2 are as far from 0 as 2.
    assert found.p_value == pytest.approx(10 / 16, abs=0.02)
    always = statistics.paired_differences([1] * 5, [2] * 5, seed=0)["hr@1"]
    assert always.p_value == pytest.approx(2 / 32, abs=0.01)
    assert always.effect_size == np.inf and always.detectable == 0.0


def test_two_equal_systems_seldom_seem_to_differ():
    """Where systems do not differ, p is below .05 in a twentieth of the experiments."""
    draw = np.random.default_rng(3)
    found = [
        statistics.paired_differences(
            draw.integers(1, 11, 80), draw.integers(1, 11, 80), seed=number, num_resamples=400
        )["ndcg@5"].p_value
        for number in range(300)
    ]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_effect_size_and_detectable_difference_are_those_of_the_events():
    event = np.arange(300) % 60
    values = ranking.per_example(RANKS)["ndcg@5"] - ranking.per_example(OTHER)["ndcg@5"]
    means = values.reshape(5, 60).mean(axis=0)
    found = statistics.paired_differences(RANKS, OTHER, event=event, seed=0)["ndcg@5"]
    deviation = means.std(ddof=1)
    assert found.effect_size == pytest.approx(means.mean() / deviation)
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * deviation / 60**0.5, rel=1e-5)


def test_what_is_detectable_is_found_in_four_of_five_experiments():
    draw, number = np.random.default_rng(0), 400
    size = statistics.detectable_difference(1.0, number)
    means = draw.normal(size, 1.0, (4000, number)).mean(axis=1)
    assert np.mean(np.abs(means) * number**0.5 > 1.96) == pytest.approx(0.8, abs=0.03)
    with pytest.raises(UserError, match="num_events is 0"):
        statistics.detectable_difference(1.0, 0)


def test_holm_corrects_for_the_number_of_comparisons():
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.2]) == [0.2] and statistics.holm([]) == []
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    plain = np.random.default_rng(0).uniform(size=9).tolist()
    assert all(
        one <= other <= 1.0 for one, other in zip(plain, statistics.holm(plain), strict=True)
    )
