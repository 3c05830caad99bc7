"""Ranks, metrics and normalisers against hand computation, ranx, oracles and invariances."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking

MASKED = -math.inf


@pytest.mark.parametrize(
    ("row", "positive", "expected"),
    [
        ([-1.0, -2.0, -3.0], 0, 1),
        ([-1.0, -2.0, -3.0], 2, 3),
        ([-1.0, -1.0, -3.0], 0, 2),
        ([-1.0, -1.0, -1.0], 1, 3),
        ([-2.0, MASKED, -1.0], 0, 2),
        ([-2.0, MASKED, MASKED], 0, 1),
    ],
)
def test_rank_counts_better_and_equal_candidates(row, positive, expected):
    assert ranking.ranks([row], [positive]).tolist() == [expected]


def test_metrics_agree_with_hand_computation():
    rank = [1, 2, 3, 4, 6]
    found = ranking.evaluate(rank)
    assert found["hr@1"] == pytest.approx(1 / 5)
    assert found["hr@3"] == pytest.approx(3 / 5)
    assert found["hr@5"] == pytest.approx(4 / 5)
    assert found["ndcg@3"] == pytest.approx((1 + 1 / math.log2(3) + 0.5) / 5)
    assert found["ndcg@5"] == pytest.approx((1 + 1 / math.log2(3) + 0.5 + 1 / math.log2(5)) / 5)


def test_ties_are_resolved_in_expectation_over_every_order():
    values = np.array([[2.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0], [3, 2, 1, 0, -1]])
    rank, num_tied = ranking.ranks_and_ties(values, [1, 0, 2])
    assert (rank.tolist(), num_tied.tolist()) == ([4, 5, 3], [2, 4, 0])
    found = ranking.expected_per_example(rank, num_tied)
    for name, expected in found.items():
        places = [[2, 3, 4], [1, 2, 3, 4, 5], [3]]
        by_hand = [ranking.per_example(of_one)[name].mean() for of_one in places]
        assert expected == pytest.approx(by_hand), name
    assert found["hr@1"].tolist() == pytest.approx([0, 1 / 5, 0])
    assert found["hr@3"].tolist() == pytest.approx([2 / 3, 3 / 5, 1])


@pytest.fixture(scope="module")
def ranx():
    """Scores and ranx's figures of them; its head tells how they were made: testdata/ranx."""
    path = Path(__file__).parent / "testdata" / "ranx" / "ranx.json"
    return json.loads(path.read_text())


def test_every_metric_is_that_of_ranx(ranx):
    """To 1e-12 in every example: half of them have ties, lists hold 2 to 12 candidates."""
    rows = [np.array(own) for own in ranx["scores"]]
    values = ranking.stack_rows(rows, -math.inf)
    rank, num_tied = ranking.ranks_and_ties(values, ranx["target_index"])
    assert (num_tied > 0).sum() >= 15 and len(rank) == 60
    both = (
        (ranking.per_example(rank), ranx["ties_against_the_target"]),
        (ranking.expected_per_example(rank, num_tied), ranx["every_order_alike"]),
    )
    for ours, theirs in both:
        assert list(ours) == list(theirs)
        for name, expected in theirs.items():
            np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-12, err_msg=name)
    means = {name: np.mean(own) for name, own in ranx["ties_against_the_target"].items()}
    assert ranking.evaluate(rank) == pytest.approx(means, rel=0, abs=1e-12)


def test_metrics_are_those_computed_by_hand_to_twelve_digits():
    first, third = 1.0, 0.5  # 1 / log2(1 + rank)
    second = 0.6309297535714574
    fourth, fifth = 0.43067655807339306, 0.38685280723454163
    found = ranking.evaluate([1, 2, 3, 4, 5, 6])
    by_hand = {
        "hr@1": 1 / 6,
        "hr@3": 3 / 6,
        "hr@5": 5 / 6,
        "ndcg@3": (first + second + third) / 6,
        "ndcg@5": (first + second + third + fourth + fifth) / 6,
    }
    assert found == pytest.approx(by_hand, rel=0, abs=1e-12)


def test_equal_candidates_of_a_lower_tier_are_no_ties():
    assert ranking.ranks_and_ties([[1.0, 1.0]], [0], [[2, 1]])[1].tolist() == [0]


def test_a_constant_scorer_never_hits_and_comes_last():
    rank = ranking.ranks(np.zeros((20, 10)), np.arange(20) % 10)
    assert set(rank.tolist()) == {10}
    assert ranking.evaluate(rank) == dict.fromkeys(ranking.METRIC_NAMES, 0.0)


def test_an_oracle_scorer_gets_everything():
    positive = np.arange(20) % 10
    rank = ranking.ranks(np.eye(10)[positive], positive)
    assert ranking.evaluate(rank) == dict.fromkeys(ranking.METRIC_NAMES, 1.0)


def test_a_random_scorer_is_at_the_published_chance_level():
    # PAPER 1.4: HR@1 .1000, HR@3 .3000, HR@5 .5000, NDCG@3 .2131, NDCG@5 .2948 of 10 candidates.
    generator = np.random.default_rng(0)
    rank = ranking.ranks(generator.normal(size=(200_000, 10)), generator.integers(0, 10, 200_000))
    found = ranking.evaluate(rank)
    expected = {"hr@1": 0.1, "hr@3": 0.3, "hr@5": 0.5, "ndcg@3": 0.2131, "ndcg@5": 0.2948}
    assert found == pytest.approx(expected, abs=0.005)


def test_not_a_number_is_refused_and_its_row_named():
    with pytest.raises(UserError, match="row 1 of 2"):
        ranking.ranks([[0.0, 1.0], [math.nan, 1.0]], [0, 1])


def test_a_masked_positive_is_refused_and_its_row_named():
    with pytest.raises(UserError, match="row 1 of 2"):
        ranking.ranks([[0.0, 1.0], [MASKED, 1.0]], [0, 0])


@pytest.mark.parametrize(
    ("values", "index"), [([0.0, 1.0], [0]), ([[0.0, 1.0]], [0, 0]), ([[0.0, 1.0]], [2])]
)
def test_shapes_that_do_not_fit_are_refused(values, index):
    with pytest.raises(ValueError, match="positive_index"):
        ranking.ranks(values, index)


def test_an_unknown_target_is_not_taken_for_the_last_candidate():
    with pytest.raises(ValueError, match=r"positive_index\[0\] is -1"):
        ranking.ranks([[0.0, 1.0]], [-1])


@pytest.mark.parametrize("function", [ranking.hit_rate, ranking.ndcg])
def test_no_examples_is_an_error_and_not_a_nan(function):
    with pytest.raises(UserError, match="no examples"):
        function([], 5)


def test_ranks_below_one_and_cutoffs_below_one_are_refused():
    with pytest.raises(ValueError, match=">= 1"):
        ranking.hit_rate([0, 1], 1)
    with pytest.raises(ValueError, match="at least 1"):
        ranking.ndcg([1], 0)


score_rows = st.lists(
    st.lists(st.integers(-3, 3).map(float), min_size=4, max_size=4), min_size=1, max_size=8
)


@given(score_rows, st.integers(0, 3), st.permutations(range(4)))
def test_rank_does_not_depend_on_candidate_order(rows, positive, order):
    values = np.array(rows)
    index = np.full(len(rows), positive)
    moved = np.full(len(rows), order.index(positive))
    assert np.array_equal(ranking.ranks(values, index), ranking.ranks(values[:, order], moved))


@given(score_rows, st.integers(0, 3))
def test_rank_does_not_depend_on_an_increasing_transformation(rows, positive):
    values = np.array(rows)
    index = np.full(len(rows), positive)
    assert np.array_equal(ranking.ranks(values, index), ranking.ranks(np.exp(values) * 3, index))


@given(score_rows, st.integers(0, 3))
def test_masked_extra_candidates_change_no_rank(rows, positive):
    values = np.array(rows)
    index = np.full(len(rows), positive)
    padded = np.concatenate([values, np.full((len(rows), 3), MASKED)], axis=1)
    assert np.array_equal(ranking.ranks(values, index), ranking.ranks(padded, index))


@given(st.lists(st.integers(1, 10), min_size=1, max_size=50))
def test_metrics_are_ordered_as_their_definitions_say(rank):
    found = ranking.evaluate(rank)
    assert 0 <= found["hr@1"] <= found["ndcg@3"] <= found["hr@3"] <= found["hr@5"] <= 1
    assert found["ndcg@3"] <= found["ndcg@5"] <= found["hr@5"]
    assert ranking.ndcg(rank, 1) == ranking.hit_rate(rank, 1)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=12),
)
def test_the_ranks_of_all_are_those_of_each_as_the_positive(rows):
    values, tier = np.array(rows, np.float64).T
    every = np.arange(len(rows))
    found = ranking.ranks(np.tile(values, (len(rows), 1)), every, np.tile(tier, (len(rows), 1)))
    np.testing.assert_array_equal(ranking.ranks_of_all(values, tier), found)
    better = [
        1 + sum(other >= own for place, other in enumerate(keys) if place != index)
        for keys in [[(level, value) for value, level in rows]]
        for index, own in enumerate(keys)
    ]
    assert found.tolist() == better, "a tier stands above every log-likelihood"


def test_normalisers_turn_sums_into_means_and_leave_masks_alone():
    values = np.array([[-6.0, -4.0, -np.inf]], dtype=np.float32)
    tokens = np.array([[3, 1, 0]], dtype=np.int32)
    beside = {
        "num_chars": np.array([[12, 4, 0]], dtype=np.int32),
        "prior_log_likelihood": np.array([[-7.0, -2.0, 0]], dtype=np.float32),
    }
    expected = {"sum": [-6, -4], "mean": [-2, -4], "char": [-0.5, -1], "pmi": [1, -2]}
    assert expected.keys() == set(ranking.NORMALISERS)
    for name, wanted in expected.items():
        found = ranking.normalise(values, tokens, name, **beside)
        assert found.tolist() == [[*wanted, -np.inf]] and found.dtype == np.float32
    with pytest.raises(UserError, match="'pmi' cannot be had here"):
        ranking.normalise(values, tokens, "pmi")


def test_seqio_score_metrics_by_hand():
    targets = [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, False)]
    found = ranking.hit_rate_and_ndcg(targets, [-2.0, -1.0, -3.0, -1.0])
    assert found["hr@1"] == 0.5
    assert found["hr@3"] == 1.0
    assert found["ndcg@3"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_seqio_score_metrics_equal_the_report_for_any_order_of_rows_and_numbers_of_candidates():
    rng = np.random.default_rng(0)
    sizes, positives = [10, 4, 10, 7], [3, 0, 9, 6]
    scores = np.full((4, 10), -np.inf)
    rows = []
    for example, (size, positive) in enumerate(zip(sizes, positives, strict=True)):
        scores[example, :size] = rng.normal(size=size)
        rows += [(example * 3, place, place == positive) for place in range(size)]
    flat = [scores[example // 3, place] for example, place, _ in rows]
    order = rng.permutation(len(rows))
    found = ranking.hit_rate_and_ndcg([rows[i] for i in order], [flat[i] for i in order])
    assert found == ranking.evaluate(ranking.ranks(scores, positives))


def test_a_row_scored_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        ranking.hit_rate_and_ndcg([(0, 0, True), (0, 0, True)], [-1.0, -1.0])


@pytest.mark.parametrize("labels", [(False, False), (True, True)])
def test_an_example_needs_one_correct_candidate(labels):
    with pytest.raises(UserError, match="exactly one"):
        ranking.hit_rate_and_ndcg([(0, 0, labels[0]), (0, 1, labels[1])], [-1.0, -2.0])


def test_labels_come_from_targets_only():
    row = {"idx": np.array([4, 2]), "is_correct": np.bool_(True)}
    assert ranking.candidate_label("text", row, is_target=True) == (4, 2, True)
    assert ranking.candidate_label(-1.5, row) == -1.5
