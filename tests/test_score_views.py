"""Scoring runs that show candidates in several orders, in groups, or not at all."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_toy import save_toy_model, score_toy
from seqio_groups import seqio_groups
from test_request_files import write
from train_toy import LENGTHS

from instructrec_jax import manifest
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import part_name, read_scores
from instructrec_jax.scoring.candidate_views import AllAtOnce, Groups, Rotations
from instructrec_jax.scoring.scorer import Scorer

TASKS = ("toy.A7.grouped",)
WORDS = ["Quiet", "Red", "Tiny", "Blue", "Wooden"], ["Fox", "Moon", "River", "Bee"], list("ABCDE")
TITLES = [" ".join(words) for words in itertools.product(*WORDS)]
STRATEGIES = [Rotations(number=3), Groups(size=4), Groups(size=4, kept=2)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def whole(toy_records, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    score_toy(toy_records, checkpoint, folder, tasks=TASKS, with_prior=True, num_requests=24)
    return folder


def request(number, **changes):
    row = {
        "id": f"r{number}",
        "history": TITLES[number : number + 3],
        "candidates": TITLES,
        "target_index": number,
    }
    return row | changes


def score_requests(toy_records, checkpoint, output, path, **run):
    run = {"requests": str(path), "request_templates": ["A7"]} | run
    score_toy(toy_records, checkpoint, output, tasks=["toy.all"], **run)
    return read_scores(output)


def parts(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_all_at_once_is_one_view(whole):
    found = read_scores(whole)
    assert set(found.num_views.tolist()) == {1}
    assert all((rounds == 1).all() for rounds in found.last_round)
    assert found.metadata["candidate_view"] == {"strategy": "AllAtOnce", "sure_ranks": None}


def test_the_prior_tells_nothing_of_the_user(whole, toy_records, checkpoint, tmp_path):
    found = read_scores(whole)
    score_toy(toy_records, checkpoint, tmp_path / "without", tasks=TASKS, num_requests=24)
    without = read_scores(tmp_path / "without")
    assert without.prior_log_likelihood == [None] * 24
    for one, other in zip(found.log_likelihood, without.log_likelihood, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    rows = [request(0), request(1, history=["Halo"]), request(2, candidates=TITLES[::-1])]
    rows = [row | {"candidates": row["candidates"][:6], "target_index": 0} for row in rows]
    prior = score_requests(
        *(toy_records, checkpoint, tmp_path / "out"),
        write(tmp_path / "r.jsonl", rows),
        with_prior=True,
    ).prior_log_likelihood
    np.testing.assert_allclose(prior[0], prior[1], rtol=1e-5)
    assert np.abs(prior[0] - prior[2]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_every_strategy_ranks_every_candidate_and_goes_on_with_the_same_bytes(
    toy_records, checkpoint, whole, tmp_path, strategy
):
    folder = tmp_path / "run"
    run = {"tasks": TASKS, "with_prior": True, "num_requests": 24, "candidate_view": strategy}
    score_toy(toy_records, checkpoint, folder, **run)
    found, one_view = read_scores(folder), read_scores(whole)
    assert found.example_id == one_view.example_id
    np.testing.assert_array_equal(found.target_index, one_view.target_index)
    for field in ("candidate_ids", "num_tokens", "num_chars"):
        for one, other in zip(getattr(found, field), getattr(one_view, field), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=field)
    for values in (*found.log_likelihood, *found.prior_log_likelihood):
        assert values.shape == (10,) and np.isfinite(values).all()
    ranks = pq.read_table(folder / part_name("A7", 0))["rank"].to_pylist()
    assert all(sorted(rank) == list(range(1, 11)) for rank in ranks)
    assert manifest.read_manifest(folder).settings["candidate_view"]["strategy"] in str(strategy)

    before = parts(folder)
    (folder / part_name("A7", 0)).unlink()
    score_toy(toy_records, checkpoint, folder, **run)
    assert parts(folder) == before
    with pytest.raises(UserError, match=r"holds another run: .*settings\['candidate_view'\]"):
        score_toy(toy_records, checkpoint, folder, **run | {"candidate_view": AllAtOnce()})


def test_fewer_candidates_are_those_that_training_measures(toy_records, checkpoint, tmp_path):
    lengths = LENGTHS | {"candidates": 4}
    run = {"tasks": TASKS, "num_requests": 8, "lengths": lengths}
    score_toy(toy_records, checkpoint, tmp_path / "whole", **run)
    score_toy(toy_records, checkpoint, tmp_path / "groups", candidate_view=Groups(size=2), **run)
    groups = seqio_groups(TASKS[0], split="test", lengths=lengths)[:8]
    for name in ("whole", "groups"):
        found = read_scores(tmp_path / name)
        np.testing.assert_array_equal(
            np.stack(found.candidate_ids), [group["candidate_ids"] for group in groups]
        )
        assert found.target_index.tolist() == [group["target_index"] for group in groups]


def test_one_rotation_and_one_group_are_the_whole_list(toy_records, checkpoint, whole, tmp_path):
    expected = read_scores(whole).log_likelihood
    for strategy in (Rotations(number=1), Groups(size=10)):
        folder = tmp_path / type(strategy).__name__
        score_toy(
            *(toy_records, checkpoint, folder),
            tasks=TASKS,
            num_requests=24,
            candidate_view=strategy,
        )
        for one, other in zip(read_scores(folder).log_likelihood, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_last_round_is_what_those_kept_get_among_themselves(
    toy_records, checkpoint, tmp_path, caplog
):
    path = write(tmp_path / "r.jsonl", [request(number) for number in range(3)])
    with caplog.at_level("INFO"):
        found = score_requests(
            toy_records, checkpoint, tmp_path / "groups", path, candidate_view=Groups(size=10)
        )
    assert "for 100 candidates 11 prompts in 2 rounds, 110 candidates scored" in caplog.text
    assert found.num_views.tolist() == [11] * 3 and found.target_index.tolist() == [0, 1, 2]
    finalists = [np.flatnonzero(rounds == 2) for rounds in found.last_round]
    assert [len(places) for places in finalists] == [10] * 3
    rows = [
        request(number, candidates=[TITLES[place] for place in places], target_index=-1)
        for number, places in enumerate(finalists)
    ]
    alone = score_requests(
        toy_records, checkpoint, tmp_path / "alone", write(tmp_path / "f.jsonl", rows)
    )
    for number, places in enumerate(finalists):
        np.testing.assert_allclose(
            found.log_likelihood[number][places], alone.log_likelihood[number], rtol=1e-5
        )


def test_candidates_outside_the_prompt_may_be_any_number(toy_records, checkpoint, tmp_path):
    rows = [request(number) for number in range(3)]
    found = score_requests(
        *(toy_records, checkpoint, tmp_path / "all"),
        write(tmp_path / "r.jsonl", rows),
        request_templates=["A1"],
    )
    assert found.num_views.tolist() == [1] * 3
    few = [row | {"candidates": TITLES[40:43], "target_index": -1} for row in rows]
    alone = score_requests(
        *(toy_records, checkpoint, tmp_path / "few"),
        write(tmp_path / "few.jsonl", few),
        request_templates=["A1"],
    )
    for one, other in zip(found.log_likelihood, alone.log_likelihood, strict=True):
        np.testing.assert_allclose(one[40:43], other, rtol=1e-5)


def test_more_candidates_than_a_prompt_holds_get_told_what_helps(toy_records, checkpoint, tmp_path):
    path = write(tmp_path / "r.jsonl", [request(0)])
    with pytest.raises(UserError, match=r"line 1: .*needs \d+ tokens .*@candidate_views\.Groups"):
        score_requests(toy_records, checkpoint, tmp_path / "out", path)


def test_a_request_whose_last_round_does_not_fit_is_left_out_and_counted(
    toy_records, checkpoint, tmp_path, monkeypatch
):
    """Two long titles are drawn apart; both win, and do not fit into one prompt."""
    groups, rounds = Groups(size=4), []

    def count_rounds(self, model, requests):
        rounds.append(len(requests))
        return [np.float32([len(t) for t in request.candidates]) for request in requests]

    monkeypatch.setattr(Scorer, "__call__", count_rounds)
    candidates = TITLES[:12]
    for group in next(groups.rounds(12, "r1"))[:2]:
        candidates[group[0]] = f"{'Wooden River ' * 6}{group[0]}"
    rows = [request(0, candidates=TITLES[:12]), request(1, candidates=candidates)]
    path, lengths = write(tmp_path / "r.jsonl", rows), {"inputs": 142, "targets": 100}
    run = {"candidate_view": groups, "lengths": lengths, "on_damage": "skip"}
    found = score_requests(toy_records, checkpoint, tmp_path / "out", path, **run)
    assert rounds == [6, 1], "the second request got through its first round"
    assert found.example_id == ["r0"]
    assert manifest.read_manifest(tmp_path / "out").drops == {"too_long": 1}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            {"request_templates": ["A1"], "candidate_view": Groups()},
            "CANDIDATE_VIEW is Groups and template A1 shows no candidates",
        ),
        (
            {"request_templates": [], "candidate_view": Rotations()},
            "CANDIDATE_VIEW is Rotations and template instruction shows no candidates",
        ),
        ({"request_templates": [], "with_prior": True}, "WITH_PRIOR is True and the requests hold"),
    ],
)
def test_what_makes_no_sense_with_a_template_is_refused(
    toy_records, checkpoint, tmp_path, run, message
):
    row = {"id": 1, "candidates": TITLES[:4]}
    row |= {"history": ["Halo"]} if run["request_templates"] else {"instruction": "Which?"}
    path = write(tmp_path / "r.jsonl", [row])
    with pytest.raises(UserError, match=message):
        score_requests(toy_records, checkpoint, tmp_path / "out", path, **run)
    assert not (tmp_path / "out").exists()
