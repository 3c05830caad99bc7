"""The checks of a report: each passes on what is sound, and fails where a mistake is planted."""

import dataclasses

import numpy as np
import pytest
from report_toy import make_data, make_folders, run, write_scores

from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.task_modules import SHIPPED, find_variant
from instructrec_jax.metrics import ranking
from instructrec_jax.report import ranking_report, results, validity
from instructrec_jax.report.details import Details
from instructrec_jax.report.validity import FAILED, NOT_RUN, PASSED, Preference

IDS = [str(number) for number in range(200)]
LISTS = np.where(np.arange(12) < np.where(np.arange(200) % 3, 10, 12)[:, None], np.arange(12), -1)
TARGETS = np.random.default_rng(0).integers(0, 10, 200)
SIZES = (LISTS >= 0).sum(axis=1)


def test_oracle_and_constant_scorers_land_where_they_must_in_lists_of_any_length():
    oracle, constant = validity.known_scorers(IDS, LISTS, TARGETS)
    assert (oracle.status, constant.status) == (PASSED, PASSED)
    assert oracle.found == "HR@1 1.000, NDCG@5 1.000"
    assert constant.found.startswith("HR@1 0.000, NDCG@5 0.000 with ties against the target")


def test_chance_is_the_published_one():
    # PAPER 1.4, of 10 candidates.
    expected = [0.1, 0.3, 0.5, 0.2131, 0.2948]
    assert validity.chance(np.array([10, 1])) == pytest.approx(
        np.array([expected, [1.0] * 5]), abs=5e-5
    )


def test_a_metric_that_favours_the_target_among_equals_is_found(monkeypatch):
    found = ranking.ranks_and_ties

    def one_place_better(*given):
        rank, num_tied = found(*given)
        return np.maximum(rank - 1, 1), np.maximum(num_tied - 1, 0)

    monkeypatch.setattr(ranking, "ranks_and_ties", one_place_better)
    _, constant = validity.known_scorers(IDS, LISTS, TARGETS)
    assert (constant.status, constant.ids) == (FAILED, IDS[:5])


def test_a_random_scorer_is_at_chance_and_a_better_or_worse_one_is_not():
    rank = np.random.default_rng(1).integers(1, SIZES + 1)
    assert validity.at_chance("random", rank, SIZES).status == PASSED
    better = np.where(np.arange(200) % 5, rank, 1)
    assert validity.at_chance("random", better, SIZES).status == FAILED
    assert validity.at_chance("random", np.full(200, 9), SIZES).status == FAILED
    assert validity.at_chance("random", np.array([1]), np.array([2])).status == PASSED, "few"


def test_a_target_that_often_stands_first_is_found():
    assert validity.target_indices(LISTS[:90], TARGETS[:90]).status == NOT_RUN, "30 of 12"
    lists = LISTS[:, :10]
    assert validity.target_indices(lists, TARGETS).status == PASSED
    assert validity.target_indices(lists, TARGETS // 2).status == FAILED


def test_rows_of_other_candidates_are_named_and_the_order_does_not_matter():
    other = LISTS.copy()
    other[7, 0] = 99
    names = {"prepared data": LISTS, "a": np.flip(LISTS, axis=1)}
    assert validity.same_candidates(IDS, names).status == PASSED
    found = validity.same_candidates(IDS, {**names, "b": other})
    assert (found.status, found.ids, found.found) == (FAILED, ["7"], "not in b; wrong: 1")


def test_test_events_in_a_history_or_among_negatives_are_named():
    data = make_data()
    examples = [example for example in data.candidates if example.split == "test"]
    assert validity.histories(examples, data).status == PASSED
    first, second, third, *others = examples
    seen = data.histories[1].item_ids[0]
    wrong = [
        dataclasses.replace(first, position=first.position - 1),
        dataclasses.replace(second, candidate_ids=(seen, *second.candidate_ids[1:])),
        dataclasses.replace(third, candidate_ids=(third.target_id,) * 2),
        dataclasses.replace(others[-1], target_id=35, candidate_ids=(35, 1)),
    ]
    found = validity.histories([*wrong, *others[:-1]], data)
    assert (found.status, found.ids) == (FAILED, [example.example_id for example in wrong])


REVIEW = "My nephew plays it every single evening after school with his two best friends."


@pytest.mark.parametrize(
    ("texts", "history_reviews", "status"),
    [
        (["likes long games of chess"], [], PASSED),
        (["he plays it every single evening after school"], [], PASSED),
        (["nephew plays it every single evening after school with"], [], FAILED),
        (["nephew plays it every single evening after school with"], [REVIEW], PASSED),
        (["fond of Braid and Zelda Ocarina"], [], FAILED),
    ],
)
def test_a_preference_that_knows_the_test_item_or_its_review_is_named(
    texts, history_reviews, status
):
    row = Preference(
        example_id="7:3",
        texts=texts,
        target="Zelda Ocarina",
        review=REVIEW,
        history=["Halo", "Myst"],
        history_reviews=history_reviews,
    )
    found = validity.preferences([row])
    assert (found.status, list(found.ids)) == (status, ["7:3"] if status == FAILED else [])


def _records():
    builder = RecordBuilder(make_data(), RecordSettings(), None)
    return list(builder.records("leave_one_out", "test", range(5)))


def test_a_prompt_that_depends_on_the_label_is_named():
    own = [find_variant(SHIPPED, name) for name in ("A1", "A7", "C10.specific")]
    assert validity.label_swap(_records(), own).status == PASSED

    def targets_first(variant, record):  # the template language itself refuses {target}
        return "; ".join(sorted(record.candidates, key=lambda title: title != record.target)), ""

    found = validity.label_swap(_records(), own, render=targets_first)
    assert (found.status, len(found.ids)) == (FAILED, 5)


def test_shuffled_labels_change_the_targets_of_training_records_and_nothing_else():
    data = make_data()
    true, shuffled = (
        RecordBuilder(data, RecordSettings(shuffled_labels=flag), None) for flag in (False, True)
    )
    for split, number in (("train", 200), ("test", 10)):
        own = list(true.records("leave_one_out", split, range(number)))
        other = list(shuffled.records("leave_one_out", split, range(number)))
        changes = [
            dataclasses.replace(b, target_id=a.target_id, target=a.target)
            for a, b in zip(own, other, strict=True)
        ]
        assert changes == own
        same = [a.target_id == b.target_id for a, b in zip(own, other, strict=True)]
        assert np.mean(same) == (1.0 if split == "test" else pytest.approx(0.1, abs=0.06))


def test_a_report_bears_its_badge_and_reads_the_run_on_shuffled_labels(tmp_path):
    folders = make_folders(tmp_path)
    for split in ("validation", "test"):
        told = {"labels": "shuffled"}
        write_scores(folders / f"noise_{split}", make_data(), split, {"A7": 0.0}, **told)
    noise = [folders / f"noise_{split}" for split in ("validation", "test")]
    model = [folders / split for split in ("validation", "test")]
    found = run(
        folders,
        tmp_path / "out",
        scores={"model": model, "noise": noise},
        metrics_file=None,
        fuse=["model+noise"],
    )
    found = found["scenarios"]
    checks = {check["check"]: check for check in found["sequential"]["validity"]}
    assert all(check.keys() == {"check", "status", "found", "ids"} for check in checks.values())
    status = {name: check["status"] for name, check in checks.items()}
    assert status.pop("preferences") == NOT_RUN and set(status.values()) == {PASSED}
    assert checks["same candidates"]["found"].endswith("in 7 rows of 60 examples")
    other = {c["check"]: c["status"] for c in found["personalized_search.specific"]["validity"]}
    assert other["shuffled labels"] == NOT_RUN
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "validity: 8 checks passed; not run: preferences\n" in text
    hashes = {
        own["ranked_candidates_sha256"]
        for own in found["sequential"]["protocol"]["systems"].values()
    }
    assert len(hashes) == 1


def test_a_failure_is_an_error_that_names_its_examples():
    wrong = validity.Check(check="history", status=FAILED, found="60 lists", ids=["7:3"])
    shown = results.ScenarioResult(
        scenario="play",
        systems=[],
        certain_hits={},
        warnings=[],
        details=Details(),
        validity=[wrong],
        facts={},
    )
    ((kind, text),) = ranking_report._failures(results.Report(dataset="toy", scenarios=[shown]))
    assert (kind, text) == ("error", "play: check 'history' failed, 60 lists: 7:3")
    assert ranking_report.badge([wrong]) == "validity: 0 checks passed; failed: history"
