"""HR and NDCG in SeqIO's form, by hand and against the metrics of the report."""

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.pipeline.score_metrics import candidate_label, hit_rate_and_ndcg


def test_by_hand():
    targets = [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, False)]
    found = hit_rate_and_ndcg(targets, [-2.0, -1.0, -3.0, -1.0])
    assert found["hr@1"] == 0.5
    assert found["hr@3"] == 1.0
    assert found["ndcg@3"] == pytest.approx((1 + 1 / np.log2(3)) / 2)


def test_equal_to_the_report_for_any_order_of_rows_and_numbers_of_candidates():
    rng = np.random.default_rng(0)
    sizes, positives = [10, 4, 10, 7], [3, 0, 9, 6]
    scores = np.full((4, 10), -np.inf)
    rows = []
    for example, (size, positive) in enumerate(zip(sizes, positives, strict=True)):
        scores[example, :size] = rng.normal(size=size)
        rows += [(example * 3, place, place == positive) for place in range(size)]
    flat = [scores[example // 3, place] for example, place, _ in rows]
    order = rng.permutation(len(rows))
    found = hit_rate_and_ndcg([rows[i] for i in order], [flat[i] for i in order])
    assert found == ranking.evaluate(ranking.ranks(scores, positives))


def test_a_row_scored_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        hit_rate_and_ndcg([(0, 0, True), (0, 0, True)], [-1.0, -1.0])


@pytest.mark.parametrize("labels", [(False, False), (True, True)])
def test_an_example_needs_one_correct_candidate(labels):
    with pytest.raises(UserError, match="exactly one"):
        hit_rate_and_ndcg([(0, 0, labels[0]), (0, 1, labels[1])], [-1.0, -2.0])


def test_labels_come_from_targets_only():
    row = {"idx": np.array([4, 2]), "is_correct": np.bool_(True)}
    assert candidate_label("text", row, is_target=True) == (4, 2, True)
    assert candidate_label(-1.5, row) == -1.5
