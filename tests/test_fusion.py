"""Fused systems: weights chosen on validation, candidates aligned by their ids, refusals."""

import json
import re

import columns
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_toy import make_data

from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest
from instructrec_jax.metrics import ranking
from instructrec_jax.stages.report import fusion, report
from instructrec_jax.stages.report.choice import ChoiceSettings

DATA = make_data()


def scored(split, *, seed, bonus, order=1, doubtful=None):
    """Lines of a system that sees the target through noise of its own.

    Where it is told to be doubtful, it sees every other target five times as well, and knows
    nothing of the rest: its scores differ there by so little.
    """
    draw = np.random.default_rng([seed, split == "test"])
    lines = []
    for number, example in enumerate(DATA.evaluation("leave_one_out", split)):
        ids = sorted(example.candidate_ids)[::order]
        noise = dict(zip(sorted(ids), draw.normal(size=len(ids)), strict=True))
        scores = [noise[item] + bonus * (item == example.target_id) for item in ids]
        if doubtful is not None:
            own = 5 * bonus if number % 2 else 0.0
            size = 1.0 if number % 2 else doubtful
            scores = [size * noise[item] + own * (item == example.target_id) for item in ids]
        lines.append(
            {
                "example_id": example.example_id,
                "family": "sequential",
                "candidate_ids": ids,
                "scores": scores,
            }
        )
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Artefact A, and the scores of two systems that are good and one that is not."""
    root = tmp_path_factory.mktemp("fusion")
    (root / "prepared").mkdir()
    columns.write_prepared(root / "prepared", DATA)
    Manifest(stage="prepare", inputs={}, settings={"dataset": "toy"}).write(root / "prepared")
    systems = {
        "one": (1, 1.5, 1, None),
        "other": (2, 1.5, -1, None),
        "noise": (3, 0.0, 1, None),
        "doubtful": (4, 1.5, 1, 1e-3),
    }
    for name, (seed, bonus, order, doubtful) in systems.items():
        for split in ("validation", "test"):
            lines = scored(split, seed=seed, bonus=bonus, order=order, doubtful=doubtful)
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (root / f"{name}.{split}.jsonl").write_text(text)
    return root


def paths(folder, *names):
    splits = ("validation", "test")
    return {name: [folder / f"{name}.{split}.jsonl" for split in splits] for name in names}


def fused(folder, output, *names, fuse, scores=None, **choice):
    return report(
        dataset="toy",
        prepared_dir=folder / "prepared",
        scores=scores or paths(folder, *names),
        output_dir=output,
        choice=ChoiceSettings(fuse=[fuse], **choice),
    )["scenarios"]["sequential"]


def test_two_systems_that_err_apart_are_better_together(folder, tmp_path):
    found = fused(folder, tmp_path / "out", "one", "other", fuse="one+other")
    means = {name: own["ndcg@5"]["estimate"] for name, own in found["test"].items()}
    assert means["one+other"] > max(means["one"], means["other"])
    assert list(found["minus"]["one+other"])[-2:] == ["one", "other"]
    assert list(found["minus"]["one"])[-1] == "other"
    assert "one" not in found["minus"]["other"], "each pair stands once"
    assert found["protocol"]["systems"]["one+other"]["parts"].startswith("one (sequential")
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "one+other minus one: HR@1 +" in text
    assert re.search(r"one\+other: 0\.\d one \+ 0\.\d other, normaliser sum", text)


def test_the_figures_are_those_of_the_chosen_weights_worked_out_anew(folder, tmp_path):
    """Candidates stand in another order in each file."""
    found = fused(folder, tmp_path / "out", "one", "other", fuse="one+other")
    chosen = found["chosen"]["one+other"]["template_id"]
    weights = [float(part.split()[0]) for part in chosen.split(" + ")]
    spreads = [
        np.mean([np.std(line["scores"]) for line in scored("validation", seed=seed, bonus=1.5)])
        for seed in (1, 2)
    ]
    ranks = []
    for lines in zip(
        scored("test", seed=1, bonus=1.5), scored("test", seed=2, bonus=1.5, order=-1), strict=True
    ):
        total = dict.fromkeys(lines[0]["candidate_ids"], 0.0)
        for weight, spread, line in zip(weights, spreads, lines, strict=True):
            values = np.array(line["scores"]) / spread
            for item, value in zip(line["candidate_ids"], values, strict=True):
                total[item] += weight * value
        example = next(e for e in DATA.candidates if e.example_id == lines[0]["example_id"])
        ranks.append(sum(value >= total[example.target_id] for value in total.values()))
    for name, value in ranking.evaluate(ranks).items():
        assert found["test"]["one+other"][name]["estimate"] == pytest.approx(value)


def test_parts_of_the_events_are_the_same_for_a_fused_system(folder, tmp_path):
    found = fused(folder, tmp_path / "out", "one", "other", fuse="one+other")
    parts = {
        system: [
            (row["by"], row["group"], row["num_events"])
            for row in found["slices"]
            if row["system"] == system and row["by"] == "index of the target"
        ]
        for system in ("one", "other", "one+other")
    }
    assert parts["one"] and parts["one"] == parts["other"] == parts["one+other"]


def test_a_fused_system_may_have_a_name_of_its_own(folder, tmp_path):
    found = fused(folder, tmp_path / "out", "one", "other", fuse="both=one+other")
    assert "both" in found["test"] and "one+other" not in found["test"]


def test_a_part_that_tells_nothing_gets_little_weight(folder, tmp_path):
    found = fused(folder, tmp_path / "out", "one", "noise", fuse="noise+one")
    choices = {
        own["template_id"]: own["metrics"]["ndcg@5"] for own in found["validation"]["noise+one"]
    }
    means = {"mean log-probability", "mean rank", "reciprocal ranks"}
    assert len(choices) == 11 + len(means) and means <= choices.keys()
    chosen = found["chosen"]["noise+one"]["template_id"]
    assert choices[chosen] == max(choices.values())
    assert float(chosen.split()[0]) < 0.5
    alone = found["validation"]["one"][0]["metrics"]["ndcg@5"]
    assert choices["0 noise + 1 one"] == pytest.approx(alone)


def test_a_part_that_doubts_an_example_leaves_it_to_the_other(folder, tmp_path):
    found = fused(folder, tmp_path / "out", "one", "doubtful", fuse="one+doubtful")
    hits = {name: own["hr@1"]["estimate"] for name, own in found["test"].items()}
    assert hits["one+doubtful"] > 0.5 + 0.5 * hits["one"] - 0.05


@pytest.mark.parametrize(
    ("fuse", "message"),
    [
        ("one", "expected 2 to 4 different systems"),
        ("one+one", "expected 2 to 4 different systems"),
        ("one+othr", "unknown system of --fuse one.othr 'othr'.*other"),
        ("one=one+other", "'one' has scores; give it another name"),
    ],
)
def test_a_mistake_is_one_message(folder, tmp_path, fuse, message):
    with pytest.raises(UserError, match=message):
        fused(folder, tmp_path / "out", "one", "other", fuse=fuse)


def test_a_part_without_validation_scores_is_refused(folder, tmp_path):
    scores = paths(folder, "one", "other")
    scores["other"] = scores["other"][1:]
    with pytest.raises(UserError, match="chooses weights on validation, of which other has no"):
        fused(folder, tmp_path / "out", fuse="one+other", scores=scores)


def test_a_part_that_did_not_score_a_scenario_is_said(folder, tmp_path, caplog):
    path = folder / "search.jsonl"
    example = DATA.evaluation("product_search", "test")[0]
    line = {
        "example_id": example.example_id,
        "family": "product_search",
        "query": "specific",
        "candidate_ids": list(example.candidate_ids),
        "scores": [0.0] * len(example.candidate_ids),
    }
    path.write_text(json.dumps(line) + "\n")
    scores = {**paths(folder, "one", "other"), "search": [path]}
    fused(folder, tmp_path / "out", fuse="one+other", scores=scores)
    assert "product_search.specific: no one+other without one, other" in caplog.text


def by_hand(by, values):
    """The mean of parts that count alike, of one example's scores [parts, c], worked out anew."""
    values = np.array(values, np.float64)
    if by == "log_probability":
        shares = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
        return np.log(shares).mean(axis=0)
    ranks = (values[:, None] >= values[:, :, None]).sum(axis=2)
    return -ranks.mean(axis=0) if by == "rank" else (1 / (60 + ranks)).mean(axis=0)


@pytest.mark.parametrize("by", ["log_probability", "rank", "reciprocal_rank"])
def test_means_need_no_validation_and_are_those_worked_out_by_hand(folder, tmp_path, by):
    scores = {name: own[1:] for name, own in paths(folder, "one", "other", "noise").items()}
    found = fused(folder, tmp_path / "out", fuse="all=one+other+noise", fuse_by=by, scores=scores)
    ranks = []
    parts = [scored("test", seed=s, bonus=b, order=o) for s, b, o in PARTS]
    for lines in zip(*parts, strict=True):
        ids = sorted(lines[0]["candidate_ids"])
        own = [dict(zip(x["candidate_ids"], x["scores"], strict=True)) for x in lines]
        total = dict(zip(ids, by_hand(by, [[d[i] for i in ids] for d in own]), strict=True))
        example = next(e for e in DATA.candidates if e.example_id == lines[0]["example_id"])
        least = total[example.target_id] - 1e-6
        ranks.append(sum(value >= least for value in total.values()))
    for name, value in ranking.evaluate(ranks).items():
        assert found["test"]["all"][name]["estimate"] == pytest.approx(value)
    assert set(found["minus"]["all"]) >= {"one", "other", "noise"}


PARTS = [(1, 1.5, 1), (2, 1.5, -1), (3, 0.0, 1)]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=12))
def test_centring_keeps_the_order(values):
    values = np.array(values)
    found = fusion._centred(values)
    assert np.isfinite(found).all()
    assert not (
        np.sign(np.subtract.outer(values, values)) * np.subtract.outer(found, found) < 0
    ).any()
