"""Requests from files: what a row may say, and what is said of one that cannot be used."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.damage import Damage
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import find_variant
from instructrec_jax.requests.request_files import INSTRUCTION, RequestFile

MODULE = "instructrec_jax.tasks.mixtures"
ROW = {"id": "u7", "instruction": "Which one?", "candidates": ["Braid", "Doom", "Ico"]}


def write(path, rows):
    """Rows as a JSONL file, a text as the line that it is; or as Parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read(path, *, template=None, on_damage="fail"):
    """The requests of a file that can be used, and what was left out."""
    file = RequestFile(path, [INSTRUCTION if template is None else find_variant(MODULE, template)])
    file.survey(Damage(on_damage=on_damage, switch="ON_DAMAGE"))
    damage, found = Damage(on_damage="skip"), []
    for row in file.rows():
        try:
            found.append(file.parse(row))
        except UserError as error:
            damage.handle(error)
    return found, damage


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_a_row_says_all_that_there_is_to_say(tmp_path, name):
    full = {
        "id": 7,
        "history": ["Halo", "Myst"],
        "preference": "likes puzzles",
        "intention": ["a quiet one", "a short one"],
        "candidates": ["Braid", "Doom", "Ico"],
        "candidate_ids": [2**40, 9, 4],
        "target_index": 2,
        "exclude": [9, 77],
        "unknown": 1.5,
    }
    (record,), _ = read(write(tmp_path / name, [full]), template="C10.specific")
    assert record.example_id == "7" and record.history == ("Halo", "Myst")
    assert record.preference == ("likes puzzles",)
    assert record.vague_intention == ("a quiet one", "a short one")
    assert record.specific_intention == "a quiet one"
    assert record.candidates == ("Braid", "Ico") and record.candidate_ids == (2**40, 4)
    assert (record.target_id, record.target) == (4, "Ico")


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_ids_are_indices_where_the_file_gives_none(tmp_path, name):
    (found,), _ = read(write(tmp_path / name, [ROW | {"exclude": ["Doom"]}]))
    assert found.candidate_ids == (0, 2) and found.context == "Which one?"


def test_an_unknown_target_is_no_candidate_whatever_ids_a_file_gives(tmp_path):
    (found,), _ = read(write(tmp_path / "r.jsonl", [ROW | {"candidate_ids": [-1, -2, 5]}]))
    assert found.target_id not in found.candidate_ids and found.target == ""


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


BAD = {
    "no candidates": (without("candidates"), "no_candidates", "has no candidates"),
    "none": (ROW | {"candidates": []}, "few_candidates", "has 0 candidates, expected at least 2"),
    "one": (ROW | {"candidates": ["Ico"]}, "few_candidates", "has 1 candidates"),
    "twins": (
        ROW | {"candidates": ["Ico", "Doom", " Ico  "]},
        "equal_titles",
        "2 candidates have the title 'Ico'; a model cannot tell them apart",
    ),
    "empty": (ROW | {"candidates": ["Ico", " "]}, "empty_title", "candidate 1 has an empty title"),
    "unseen": (
        ROW | {"candidates": ["Ico", "\u200e"]},
        "empty_title",
        r"candidate 1 has an empty title, '\\u200e'",
    ),
    "composed": (ROW | {"candidates": ["Caf\u00e9", "Cafe\u0301"]}, "equal_titles", "2 candidates"),
    "wide": (ROW | {"candidates": ["\uff28alo", "Halo"]}, "equal_titles", "the title 'Halo'"),
    "fraction": (ROW | {"candidates": ["\u00bd", "1\u20442"]}, "equal_titles", "2 candidates"),
    "dots": (ROW | {"candidates": ["So\u2026", "So..."]}, "equal_titles", "2 candidates"),
    "mark": (ROW | {"candidates": ["\u200eGarnet", "Garnet"]}, "equal_titles", "2 candidates"),
    "listed": (ROW | {"candidates": ["A; B", "A, B"]}, "equal_titles", "the title 'A, B'"),
    "mixed": (ROW | {"candidates": ["Ico", 3]}, "bad_candidates", "holds 3, expected texts only"),
    "text": (ROW | {"candidates": "Ico"}, "bad_candidates", "is 'Ico', expected a list of texts"),
    "ids": (ROW | {"candidate_ids": [1, 2]}, "bad_candidate_ids", "2 different .* 3 candidates"),
    "same ids": (ROW | {"candidate_ids": [1, 2, 1]}, "bad_candidate_ids", "2 different"),
    "text ids": (ROW | {"candidate_ids": ["a"]}, "bad_candidate_ids", "expected whole numbers"),
    "big ids": (ROW | {"candidate_ids": [2**70, 1, 2]}, "bad_candidate_ids", "expected whole"),
    "target": (ROW | {"target_index": 3}, "bad_target_index", r"is 3, expected .* 0 \.\. 2, or -1"),
    "bool": (ROW | {"target_index": True}, "bad_target_index", "is True"),
    "exclude": (ROW | {"exclude": "Ico"}, "bad_exclude", "expected titles or candidate_ids"),
    "all out": (ROW | {"exclude": [0, 1]}, "few_candidates", "excludes all but 1 of its"),
    "own": (ROW | {"exclude": [0], "target_index": 0}, "bad_exclude", "its own target 'Braid'"),
    "no text": (without("instruction"), "no_instruction", "instruction is None, .*TEMPLATES"),
    "blank": (ROW | {"instruction": "\n"}, "no_instruction", "expected a text"),
    "half": (ROW | {"instruction": "\ud800"}, "not_unicode", "no Unicode text"),
    "again": (ROW | {"id": "first"}, "repeated_id", "has the id of line 1; give each"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_named_by_line_and_id(tmp_path, case):
    row, reason, message = BAD[case]
    first, last = ROW | {"id": "first"}, ROW | {"id": "last"}
    path = write(tmp_path / "r.jsonl", [first, "", row, last])
    named = rf"r\.jsonl line 3: request '{row['id']}'.*{message}.*\nON_DAMAGE=skip leaves"
    with pytest.raises(UserError, match=named):
        read(path)
    found, damage = read(path, on_damage="skip")
    assert [request.example_id for request in found] == ["first", "last"]
    assert damage.counts == {reason: 1} and damage.examples == {reason: ["r.jsonl line 3"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "candi', "line 2: not JSON .*half-written"),
        ("[1, 2]", "line 2: holds list, expected an object"),
        ("[" * 100_000, "line 2: not JSON"),
        ("{}", "line 2: id is None, expected text or a whole number"),
        ('{"id": 1.5}', r"line 2: id is 1\.5"),
        ('{"id": " "}', "line 2: id is ' '"),
    ],
)
def test_a_line_that_tells_no_id_is_named_by_its_number(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / "r.jsonl", [ROW, line]))


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        read(path)


def test_a_template_asks_for_the_texts_that_it_shows(tmp_path):
    path = write(tmp_path / "r.jsonl", [without("instruction") | {"history": []}])
    with pytest.raises(UserError, match="has no history, which a template of the run shows"):
        read(path, template="A7")
    with pytest.raises(UserError, match="has an instruction and REQUEST_TEMPLATES says to write"):
        read(write(path, [ROW]), template="A7")


def test_files_that_are_none_are_refused(tmp_path):
    for name, message in (
        ("r.csv", r"expected a file \*\.jsonl or \*\.parquet"),
        ("r.jsonl", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            RequestFile(tmp_path / name, [INSTRUCTION])
    with pytest.raises(UserError, match="is empty; expected one request a line"):
        read(write(tmp_path / "r.jsonl", [""]))
    (tmp_path / "r.parquet").write_text("PAR1")
    with pytest.raises(UserError, match=r"r\.parquet is not a readable Parquet file"):
        read(tmp_path / "r.parquet")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from([*ROW, "candidate_ids", "target_index", "exclude"]), _VALUES)
)
def test_whatever_a_row_holds_it_is_used_or_named(tmp_path_factory, changes):
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", [ROW | changes])
    found, damage = read(path, on_damage="skip")
    assert len(found) + sum(damage.counts.values()) == 1
