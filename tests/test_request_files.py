"""Requests from files: what a row may say, and what is said of one that cannot be used."""

import csv
import gzip
import io
import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.damage import Damage
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import find_variant
from instructrec_jax.requests.request_files import INSTRUCTION, RequestFile
from instructrec_jax.requests.row_files import LISTS, RowFile

MODULE = "instructrec_jax.tasks.mixtures"
ROW = {"id": "u7", "instruction": "Which one?", "candidates": ["Braid", "Doom", "Ico"]}


def write(path, rows):
    """Rows as a JSONL file, a text as the line that it is; or as its name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if {".csv", ".tsv"} & set(path.suffixes):
        text = as_cells(rows, "," if ".csv" in path.suffixes else "\t")
    else:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        text = "".join(f"{line}\n" for line in lines)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_cells(rows, delimiter):
    """Rows as CSV, lists as JSON arrays."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if k in LISTS else v for k, v in row.items()})
    return stream.getvalue()


def read(path, *, template=None, on_damage="fail"):
    """The requests of a file that can be used, and what was left out."""
    variant = INSTRUCTION if template is None else find_variant(MODULE, template)
    file = RequestFile(RowFile(path), [variant])
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


OTHER_FORMS = ["r.jsonl.gz", "r.csv", "r.csv.gz", "r.tsv"]


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_requests_of_any_form_are_those_of_jsonl(tmp_path, name):
    rows = [
        {
            "id": "u7",
            "history": ['Halo, "the" first', "Myst;\tor not\n"],
            "preference": "likes [puzzles]",
            "intention": "12",
            "candidates": ["Braid", "Caf\u00e9", "Ico"],
            "candidate_ids": [2**40, 9, 4],
            "target_index": 2,
            "exclude": [9],
            "note": "mine",
        },
        {"id": "u8", "history": ["Doom"], "intention": "3", "candidates": ["A", "B"]},
    ]
    expected, _ = read(write(tmp_path / "plain.jsonl", rows), template="C10.specific")
    found, damage = read(write(tmp_path / name, rows), template="C10.specific")
    assert found == expected and len(found) == 2 and not damage.counts


def test_requests_come_through_a_pipe(tmp_path, monkeypatch):
    lines = f"{json.dumps(ROW)}\n\n{json.dumps(ROW | {'id': 8})}".encode()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    found, _ = read("-")
    assert [record.example_id for record in found] == ["u7", "8"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"id": 1')))
    with pytest.raises(UserError, match=r"^stdin line 1: not JSON"):
        read("-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with pytest.raises(UserError, match=r"^stdin is empty; expected one request a line"):
        read("-")


HEADER = "id,instruction,candidates\n"
GOOD = 'a,Which?,"[""Braid"", ""Ico""]"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER + "a,Which?,Braid|Ico\n",
            "line 2: candidates is 'Braid|Ico'; .* a JSON array, such",
        ),
        (HEADER + "a,Which?,\"['Braid', 'Ico']\"\n", r"is \"\['Braid', .*pandas: column.map"),
        (HEADER + GOOD + "b,Which\n", "line 3: 2 fields, expected 3 as in the header"),
        (
            HEADER + GOOD + 'b,Which?,"[""Braid',
            "not a readable CSV file after line 2 .*half-written",
        ),
        (HEADER + 'a,"Which\none?",\n' + "b,,x\n", "line 2: request 'a': has no candidates"),
        ("id,id\n", "the header names 'id' twice"),
        ("a;b\n", "names 'a;b', none of which is a field of a request .* parted by ','"),
        (HEADER, "is empty; expected one request a line"),
        ("", "is empty; expected one request a line"),
        (
            "id,instruction,candidate\na,Which?,x\n",
            "has no candidates: is it 'candidate'\\? Name it",
        ),
    ],
)
def test_a_mistake_in_csv_is_named(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "r.csv")


def test_bytes_that_are_no_text_are_named_in_csv(tmp_path):
    (tmp_path / "r.csv").write_bytes(HEADER.encode() + b"a,\xff,[]\n" + GOOD.encode())
    with pytest.raises(UserError, match="line 2: instruction is not UTF-8; convert the file"):
        read(tmp_path / "r.csv")
    found, damage = read(tmp_path / "r.csv", on_damage="skip")
    assert len(found) == 1 and damage.counts == {"not_utf8": 1}


def test_a_gzip_file_that_was_cut_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl.gz", [ROW | {"id": str(number)} for number in range(9000)])
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(
        UserError, match=r"not a readable gzip file after line \d+ .*obtain it again"
    ):
        read(path)


def test_fields_that_no_request_has_are_named(tmp_path, caplog):
    caplog.set_level("INFO")
    read(write(tmp_path / "r.csv", [ROW | {"prefrence": "x"}]))
    assert "fields that no request has are ignored: 'prefrence'" in caplog.text


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
    with pytest.raises(UserError, match="has an instruction, and a template is named"):
        read(write(path, [ROW]), template="A7")


def test_files_that_are_none_are_refused(tmp_path):
    for name, message in (
        ("r.txt", r"expected \*\.jsonl, \*\.csv, \*\.tsv, \*\.parquet .* or - for JSONL"),
        ("r.parquet.gz", r"all but \*\.parquet also with \.gz"),
        ("r.jsonl", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            RowFile(tmp_path / name)
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
