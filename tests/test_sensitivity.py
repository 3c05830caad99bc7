"""Requests with something changed, and how rankings of them differ."""

import json
from pathlib import Path

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.requests import perturbed as changes
from instructrec_jax.requests.perturbed import PLANTED_TEXT, perturbed, rank_changes
from instructrec_jax.stages import sensitivity as stage

REQUESTS = [
    {
        "id": f"u{number}",
        "history": ["Halo Wars", "Myst Island", "Ico"],
        "intention": "Puzzle games",
        "candidates": ["Braid", "Doom", "Zelda", "Quake"],
        "candidate_ids": [30, 10, 20, 40],
        "target_index": number % 4,
    }
    for number in range(20)
]


def test_a_change_leaves_all_else_and_depends_on_request_and_seed_alone():
    for kind, fields in (
        ("typos", {"history", "intention"}),
        ("history", {"history"}),
        ("candidates", {"candidates", "candidate_ids", "target_index"}),
        ("planted", {"candidates"}),
    ):
        found = perturbed(REQUESTS, kind)
        changed = {k for a, b in zip(REQUESTS, found, strict=True) for k in a if a[k] != b[k]}
        assert changed == fields, kind
        assert perturbed(REQUESTS[3:5], kind) == found[3:5]
        assert perturbed(REQUESTS, kind, seed=1) != found
    with pytest.raises(UserError, match="unknown kind of change 'noise'"):
        perturbed(REQUESTS, "noise")


def test_what_each_change_does():
    for before, after in zip(REQUESTS, perturbed(REQUESTS, "typos"), strict=True):
        for old, new in zip(before["history"], after["history"], strict=True):
            assert sorted(old) == sorted(new) and (old != new) == (len(old) > 3), "Ico stays"
            assert [word[0] for word in old.split()] == [word[0] for word in new.split()]
    for before, after in zip(REQUESTS, perturbed(REQUESTS, "candidates"), strict=True):
        title_of = dict(zip(before["candidate_ids"], before["candidates"], strict=True))
        assert [title_of[item] for item in after["candidate_ids"]] == after["candidates"]
        targets = [own["candidate_ids"][own["target_index"]] for own in (before, after)]
        assert targets[0] == targets[1]
    for before, after in zip(REQUESTS, perturbed(REQUESTS, "planted"), strict=True):
        (index,) = [i for i, title in enumerate(after["candidates"]) if PLANTED_TEXT in title]
        assert index != before["target_index"]
        assert before["candidate_ids"][index] == changes.planted_candidate(before)


def test_rankings_are_compared_candidate_by_candidate():
    before = {own["id"]: {30: 1, 10: 2, 20: 3, 40: 4} for own in REQUESTS}
    same = rank_changes(REQUESTS, before, before)
    assert (same["first_changed"], same["correlation"]) == (0.0, pytest.approx(1.0))
    assert same["before"]["hr@1"] == 0.25 and same["minus"]["hr@1"].estimate == 0.0
    turned = {name: {item: 5 - rank for item, rank in own.items()} for name, own in before.items()}
    found = rank_changes(REQUESTS[:15], before, {k: turned[k] for k in list(turned)[:10]})
    assert found["num_requests"] == 10, "those that were ranked twice"
    assert (found["first_changed"], found["correlation"]) == (1.0, pytest.approx(-1.0))
    assert found["minus"]["hr@1"].estimate == pytest.approx(2 / 10 - 3 / 10)
    planted = {
        own["id"]: {i: (1 if i == changes.planted_candidate(own) else 2) for i in (10, 20, 30, 40)}
        for own in REQUESTS
    }
    assert rank_changes(REQUESTS, before, planted)["planted_first"]["after"] == 1.0


def rank_by_length(asked):
    """Stands for `score --model`: the longest candidate is first."""
    lines = []
    for line in Path(asked.input).read_text().splitlines():
        own = json.loads(line)
        order = sorted(range(len(own["candidates"])), key=lambda i: -len(own["candidates"][i]))
        rows = [
            {"rank": place + 1, "candidate_id": own["candidate_ids"][index]}
            for place, index in enumerate(order)
        ]
        lines.append(json.dumps({"id": own["id"], "candidates": rows}) + "\n")
    Path(asked.output).write_text("".join(lines))


def test_a_model_is_asked_in_every_way(toy_prepared, tmp_path, monkeypatch):
    templates = []

    def ranked(asked):
        templates.append(asked.template)
        rank_by_length(asked)

    monkeypatch.setattr(stage, "rank_file", ranked)
    asked = stage.SensitivitySettings(
        model="any",
        prepared_dir=str(toy_prepared),
        output_dir=str(tmp_path / "out"),
        num_requests=30,
    )
    found = stage.sensitivity(asked)
    rows = {row["change"]: row for row in found["rows"]}
    assert list(rows) == ["paraphrase", "typos", "history", "candidates", "planted"]
    assert templates == ["A7", "A8", "A7", "A7", "A7", "A7"]
    assert {row["num_requests"] for row in rows.values()} == {30}
    assert len({tuple(row) for row in rows.values()}) == 1
    assert rows["history"]["first_changed"] == 0.0
    assert rows["planted"]["planted_first"]["after"] == 1.0, "its title is longer"
    assert stage.sensitivity(asked) == found and len(templates) == 6
    told = stage.changes_table(found["rows"]).rows  # of rows as JSON has them
    assert [row[0] for row in told] == list(rows)
    assert "planted first" in (tmp_path / "out" / "sensitivity.md").read_text()
