"""What a report says of prompts: HR by the target's index, what groups spoil, the prior."""

import numpy as np
import pytest
from report_toy import TEST, VALIDATION, make_data, make_folders, model, run, write_scores

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import statistics
from instructrec_jax.report.results import position_bias

GROUPS = {"strategy": "Groups", "size": 5, "kept": 1, "seed": 0, "sure_ranks": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("report"))


def in_two_rounds(rows):
    """Five of ten went out in the first round: those at odd indices."""
    for row in rows:
        row["last_round"] = [2, 1] * 5
        row["num_views"] = 3


def both_splits(folder, change=None, **told):
    """Scores of both splits; returns the argument of `run` that names them."""
    for split, bonuses in (("validation", VALIDATION), ("test", TEST)):
        write_scores(folder / split, make_data(), split, bonuses, change=change, **told)
    return {"scores": {"model": (folder / "validation", folder / "test")}}


@pytest.mark.parametrize(
    ("hits", "examples", "low", "high"),
    [
        ([5, 5, 5, 5], [10, 10, 10, 10], 0.9, 1.0),
        ([9, 1, 1, 1], [10, 10, 10, 10], 0.0, 0.01),
        ([0, 0], [4, 5], 1.0, 1.0),
        ([4, 5, 0], [4, 5, 0], 1.0, 1.0),
        ([0, 3], [0, 6], 1.0, 1.0),
    ],
)
def test_the_p_value_tells_equal_rates_from_unequal_ones(hits, examples, low, high):
    assert low <= statistics.homogeneity_p_value(hits, examples, seed=0) <= high


def test_the_p_value_is_that_of_scipy_where_there_are_many_examples():
    from scipy.stats import chi2_contingency

    hits, examples = np.array([310, 352, 300]), np.array([1000, 1000, 980])
    expected = chi2_contingency([hits, examples - hits], correction=False).pvalue
    found = statistics.homogeneity_p_value(hits, examples, seed=0)
    assert found == pytest.approx(expected, rel=0.15)


def test_the_p_value_is_uniform_where_the_index_does_not_matter():
    draw = np.random.default_rng(0)
    hits = draw.binomial(12, 0.3, size=(300, 5))
    found = [
        statistics.homogeneity_p_value(row, [12] * 5, seed=n, num_draws=200)
        for n, row in enumerate(hits)
    ]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.09


def test_hits_are_counted_by_the_index_of_the_target():
    found = position_bias([0, 0, 2, 1], [1, 3, 1, 2], num_candidates=3, seed=0)
    told = [(row.name, row.num_examples, row.hit_rate) for row in found.rows]
    assert told == [("1", 2, 0.5), ("2", 1, 0.0), ("3", 1, 1.0)]
    many = position_bias([0, 99], [1, 2], num_candidates=100, seed=0)
    assert [row.name for row in many.rows][::9] == ["1-10", "91-100"]


def test_a_model_that_likes_the_first_index_is_found_out(folders, tmp_path):
    def like_the_first(rows):
        for row in rows:
            row["log_likelihood"][0] += 4.0

    plain = run(folders, tmp_path / "plain")["scenarios"]["sequential"]["position_bias"]["model"]
    chosen = both_splits(tmp_path, like_the_first)
    biased = run(folders, tmp_path / "biased", **chosen)["scenarios"]["sequential"]
    assert len(plain["rows"]) == 10 and plain["p_value"] > 0.01
    assert sum(row["num_examples"] for row in plain["rows"]) == 60
    assert biased["position_bias"]["model"]["p_value"] < 0.01
    assert biased["position_bias"]["model"]["rows"][0]["hit_rate"] == 1.0
    text = (tmp_path / "biased" / "report.txt").read_text()
    assert "HR@1 by the target's index 1-10: 1.00 " in text
    markdown = (tmp_path / "biased" / "report.md").read_text()
    assert "HR@1 by the index of the target in the prompt, p = " in markdown


def test_figures_beyond_what_groups_make_sure_of_are_marked(folders, tmp_path):
    chosen = both_splits(tmp_path, in_two_rounds, candidate_view=GROUPS)
    found = run(folders, tmp_path / "out", **chosen)["scenarios"]["sequential"]
    assert found["unsure"]["model"] == ["hr@3", "hr@5", "ndcg@3", "ndcg@5"]
    assert found["position_bias"]["model"] is None
    assert found["protocol"]["systems"]["model"]["candidate_view"] == (
        "Groups, kept 1, seed 0, size 5; 3 prompts an example"
    )
    for name in ("report.md", "report.txt"):
        text = (tmp_path / "out" / name).read_text()
        assert "HR@3*" in text and "HR@1*" not in text and "* not sure for model" in text
        if name.endswith(".txt"):
            assert max(len(line) for line in text.splitlines()) <= 100


def test_groups_that_all_fitted_into_one_prompt_mark_nothing(folders, tmp_path):
    found = run(folders, tmp_path / "out", **both_splits(tmp_path, candidate_view=GROUPS))
    assert found["scenarios"]["sequential"]["unsure"]["model"] == []
    assert "*" not in (tmp_path / "out" / "report.txt").read_text()


def test_candidates_that_went_out_early_rank_after_those_that_went_on(folders, tmp_path):
    def target_goes_out(rows):
        in_two_rounds(rows)
        for row in rows:
            row["last_round"] = [2] * 10
            row["last_round"][row["target_index"]] = 1

    chosen = both_splits(tmp_path, target_goes_out, candidate_view=GROUPS)
    found = run(folders, tmp_path / "out", **chosen)["scenarios"]["sequential"]["test"]
    assert found["model"]["hr@5"]["estimate"] == 0.0


def test_pmi_ranks_by_what_the_prior_leaves(folders, tmp_path):
    def likely_anyway(rows):
        for row in rows:
            row["prior_log_likelihood"] = [-3.0] * 10
            row["prior_log_likelihood"][row["target_index"]] = -1000.0

    chosen = both_splits(tmp_path, likely_anyway)
    found = run(folders, tmp_path / "out", **chosen, normalisers=("sum", "pmi"))
    sequential = found["scenarios"]["sequential"]
    assert sequential["chosen"]["model"]["normaliser"] == "pmi"
    assert sequential["test"]["model"]["hr@1"]["estimate"] == 1.0
    with pytest.raises(
        UserError,
        match="'pmi' needs scores WITH_PRIOR = True, which the validation scores of model",
    ):
        run(folders, tmp_path / "none", normalisers=("sum", "pmi"))


def test_splits_that_were_scored_in_different_ways_are_refused(folders, tmp_path):
    write_scores(tmp_path / "test", make_data(), "test", TEST, candidate_view=GROUPS)
    with pytest.raises(UserError, match=r"scored with CANDIDATE_VIEW .*'AllAtOnce'.*'Groups'"):
        run(folders, tmp_path / "out", scores=model(folders, test=tmp_path / "test"))
