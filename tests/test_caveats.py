"""Warnings of a report: small lists, catalogues and samples, equal users, repeated texts, ties."""

import dataclasses

import columns
import numpy as np
import pytest
from report_toy import NUM_USERS, make_data, make_folders, run

from instructrec_jax.records import Annotation, History
from instructrec_jax.report import caveats


def examples_of(data, **changes):
    found = data.evaluation("leave_one_out", "test")
    return [dataclasses.replace(example, **changes) for example in found]


def shortened(examples, number):
    """The examples with fewer candidates each, the target among them."""
    return [
        dataclasses.replace(e, candidate_ids=(e.target_id, *e.candidate_ids[: number - 1]))
        for e in examples
    ]


@pytest.fixture(scope="module")
def data():
    data = make_data()
    return dataclasses.replace(data, items=data.items * 3)  # 120 items, enough for lists of 10


def test_examples_without_a_fault_have_no_warning(data):
    assert caveats.caveats(examples_of(data), data) == []
    assert caveats.certain_hits(examples_of(data)) == {}


def test_few_examples_are_said(data):
    (found,) = caveats.caveats(examples_of(data)[:20], data)
    assert "only 20 examples: one of them moves HR@K by 0.050" in found


def test_a_catalogue_that_is_small_for_its_lists_is_said(data):
    (found,) = caveats.caveats(examples_of(data), make_data())
    assert "the catalogue has 40 items for lists of up to 10" in found


def test_cutoffs_at_or_above_the_number_of_candidates_are_said(data):
    examples = examples_of(data)
    mixed = shortened(examples[:7], 3) + shortened(examples[7:10], 5) + examples[10:]
    assert caveats.certain_hits(mixed) == {"hr@3": 7, "hr@5": 10, "ndcg@3": 7, "ndcg@5": 10}
    (found,) = caveats.caveats(mixed, data)
    assert f"any scorer hits, for HR@3 in 7, HR@5 in 10 of {NUM_USERS} examples" in found


def test_negatives_that_popularity_prefers_are_said():
    sizes, untied = np.full(100, 10), np.zeros(100, int)
    last = np.where(np.arange(100) < 3, 1, 10)  # the target is the most popular of 3 lists
    found = caveats.favoured_negatives(last, untied, sizes)
    assert "popularity has HR@1 0.030, below chance, and its reverse 0.970" in found
    assert caveats.favoured_negatives(np.arange(100) % 10 + 1, untied, sizes) is None
    assert caveats.favoured_negatives(sizes, sizes - 1, sizes) is None  # all are equally popular


def test_users_with_equal_histories_are_said(data):
    same = [
        History(user_id=str(user), item_ids=(3, 1, 2) if user % 2 else (1, 3, 2))
        for user in range(NUM_USERS)
    ]
    equal = dataclasses.replace(data, histories=columns.histories(same))
    (found,) = caveats.caveats(examples_of(data, position=2), equal)
    assert f"{NUM_USERS} of {NUM_USERS} users have the items of another user's history" in found


class _Texts:
    """The intention of each position: of every third user, one that every user has."""

    def intentions(self, user, position):
        text = "something nice" if user % 3 == 0 else f"something of {user} {position}"
        return Annotation(texts=(text,), second_texts=(f"They want {user} {position}",))


def test_test_intentions_that_training_has_too_are_said(data):
    found = caveats.repeated_intentions(data, _Texts())
    assert list(found) == ["vague"]
    assert found["vague"].startswith(f"{NUM_USERS // 3} of {NUM_USERS} intention texts")


def test_ties_have_figures_in_expectation_where_they_are_more_than_a_few(tmp_path):
    folders = make_folders(tmp_path)
    found = run(folders, tmp_path / "out")["scenarios"]["sequential"]
    ties = found["ties"]
    assert ties["model"] == {"share": 0.0, "expected": None}
    assert ties["popularity"]["share"] > 0.5
    pessimistic, expected = found["test"]["popularity"], ties["popularity"]["expected"]
    for name, value in pessimistic.items():
        assert expected[name]["estimate"] > value["estimate"]
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "\n  expected   | ." in text and "expected: another candidate is equal" in text
    assert "warning sequential: the catalogue has 40 items" in text
    assert found["warnings"][0].startswith("the catalogue has 40 items")
