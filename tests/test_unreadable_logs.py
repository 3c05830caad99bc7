"""Logs that cannot be read: each ends in one message that names file, line and cause."""

import gzip
import os

import pytest
from raw_logs import read_logs
from test_readers import INTERACTIONS, ITEMS, put

from instructrec_jax.errors import UserError


@pytest.mark.parametrize("name", ["interactions.tsv", "items.tsv"])
def test_what_cannot_be_read_ends_in_one_message(tmp_path, name):
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv=ITEMS)
    path = tmp_path / name
    path.unlink()
    for make, problem in (
        (path.mkdir, f"{name}: it is a folder"),
        (lambda: os.mkfifo(path), f"{name}: it is a folder, a FIFO or a device"),
        (lambda: path.symlink_to("gone"), f"{name}: No such file"),
        (lambda: path.symlink_to(name), f"{name}: Too many levels of symbolic links"),
    ):
        make()
        with pytest.raises(UserError, match=f"cannot read .*{problem}"):
            read_logs(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


BAD = {
    "line ends of old Macs": (
        {"items__tsv": ITEMS.replace("\n", "\r")},
        ["items.tsv line 1", "carriage returns (CR) without line feeds"],
    ),
    "a line end in CSV quotes": (
        {"items__tsv": 'item_id\ttitle\tcategory\ni1\t"Red\nKite"\tToys\n'},
        ["items.tsv line 2", "quoted as CSV holds a tab or a line end", "csv.QUOTE_NONE"],
    ),
    "a tab in CSV quotes": (
        {"items__tsv": 'item_id\ttitle\ni1\t"Red\tKite"\n'},
        ["items.tsv line 2", "quoted as CSV holds a tab or a line end"],
    ),
    "half a line": (
        {"interactions__tsv": INTERACTIONS + "u3\ti"},
        ["interactions.tsv line 5", "2 tab-separated fields, expected 3", "half-written"],
    ),
    "stray tab": (
        {"items__tsv": "item_id\ttitle\ni1\tA\tB\n"},
        ["items.tsv line 2", "3 tab-separated fields, expected 2"],
    ),
    "missing column": (
        {"interactions__tsv": "user\titem_id\nu\ti1\n"},
        ["interactions.tsv line 1", "no column 'user_id'", "'user', 'item_id'"],
    ),
    "column twice": (
        {"interactions__tsv": "user_id\titem_id\tuser_id\nu\ti1\tu\n"},
        ["interactions.tsv line 1", "'user_id' twice"],
    ),
    "time is a date": (
        {"interactions__tsv": "user_id\titem_id\ttimestamp\nu\ti1\t2018-01-02\n"},
        ["interactions.tsv line 2", "'2018-01-02'", "expected a number"],
    ),
    "time is nan": (
        {"interactions__tsv": "user_id\titem_id\ttimestamp\nu\ti1\t1\nu\ti1\tnan\n"},
        ["interactions.tsv line 3", "'nan'"],
    ),
    "time with underscores": (
        {"interactions__tsv": "user_id\titem_id\ttimestamp\nu\ti1\t1_0\n"},
        ["interactions.tsv line 2", "'1_0'"],
    ),
    "empty file": ({"interactions__tsv": ""}, ["interactions.tsv is empty"]),
    "header only": (
        {"interactions__tsv": "user_id\titem_id\n"},
        ["interactions.tsv holds a header and no rows"],
    ),
    "empty id": (
        {"interactions__tsv": "user_id\titem_id\n\ti1\n"},
        ["interactions.tsv line 2", "user_id is empty"],
    ),
    "not utf-8": (
        {"items__tsv": b"item_id\ttitle\ni1\tok\ni2\tcaf\xe9\n"},
        ["items.tsv line 3", "not UTF-8"],
    ),
    "cut gzip": (
        {"interactions__tsv": gzip.compress((INTERACTIONS + "u9\ti1\t8\n" * 400).encode())[:-9]},
        ["interactions.tsv is damaged after line", "cut or changed"],
    ),
    "broken json": (
        {
            "interactions__tsv": None,
            "interactions__jsonl": '{"user_id": "u", "item_id": "i1"}\n{"u',
        },
        ["interactions.jsonl line 2", "not JSON", "half-written"],
    ),
    "json list": (
        {"interactions__tsv": None, "interactions__jsonl": '["u", "i1"]\n'},
        ["interactions.jsonl line 1", "expected a JSON object"],
    ),
    "json without field": (
        {"items__tsv": None, "items__jsonl": '{"item_id": "i1", "name": "A"}\n'},
        ["items.jsonl line 1", "no field 'title'", "'item_id', 'name'"],
    ),
    "json id of wrong type": (
        {"items__tsv": None, "items__jsonl": '{"item_id": [1], "title": "A"}\n'},
        ["items.jsonl line 1", "item_id is [1]"],
    ),
    "json half a surrogate pair": (
        {"items__tsv": None, "items__jsonl": '{"item_id": "\\ud83d", "title": "A"}\n'},
        ["items.jsonl line 1", "surrogate"],
    ),
    "json category of wrong type": (
        {"items__tsv": None, "items__jsonl": '{"item_id": 1, "title": "A", "category": {}}\n'},
        ["items.jsonl line 1", "category is {}"],
    ),
    "some events without time": (
        {
            "interactions__tsv": None,
            "interactions__jsonl": '{"user_id": 1, "item_id": 1, "timestamp": 3}\n'
            '{"user_id": 1, "item_id": 2}\n',
        },
        ["interactions.jsonl line 2", "no timestamp, unlike the lines before"],
    ),
    "some events with time": (
        {
            "interactions__tsv": None,
            "interactions__jsonl": '{"user_id": 1, "item_id": 1}\n'
            '{"user_id": 1, "item_id": 2, "timestamp": 3}\n',
        },
        ["interactions.jsonl line 2", "a timestamp, unlike the lines before"],
    ),
    "no items": ({"items__tsv": None}, ["holds interactions.tsv but none of items.tsv"]),
    "nothing known": (
        {"interactions__tsv": None, "items__tsv": None, "ratings__csv": "1,2\n"},
        ["which holds ratings.csv", "interactions.tsv", "NAME.inter", "sequences.tsv"],
    ),
    "plain and gzip": (
        {"items__tsv__gz": gzip.compress(ITEMS.encode())},
        ["items.tsv and items.tsv.gz", "keep one"],
    ),
    "two logs": (
        {"sequences__tsv": "user_id\titem_ids\nu\ti1\n"},
        ["interactions.tsv and sequences.tsv", "its own folder"],
    ),
    "recbole without items": (
        {"interactions__tsv": None, "toy__inter": "user_id:token\titem_id:token\nu\ti\n"},
        ["holds toy.inter but no toy.item"],
    ),
    "two recbole logs": (
        {"interactions__tsv": None, "a__inter": "x", "b__inter": "x"},
        ["several .inter files (a.inter, b.inter)"],
    ),
    "untyped header": (
        {
            "interactions__tsv": None,
            "a__inter": "user_id\titem_id:token\nu\ti\n",
            "a__item": "item_id:token\ttitle:token\ni\tA\n",
        },
        ["a.inter line 1", "'user_id' is not `name:type`"],
    ),
    "user twice in sequences": (
        {"interactions__tsv": None, "sequences__tsv": "user_id\titem_ids\nu\ti1\nv\ti1\nu\ti2\n"},
        ["sequences.tsv line 4", "user 'u' has line 2 already"],
    ),
    "empty sequence": (
        {"interactions__tsv": None, "sequences__tsv": "user_id\titem_ids\nu\t \n"},
        ["sequences.tsv line 2", "item_ids is empty"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named_by_file_and_line(tmp_path, case):
    changes, expected = BAD[case]
    contents = {"interactions__tsv": INTERACTIONS, "items__tsv": ITEMS, **changes}
    put(tmp_path, **{name: text for name, text in contents.items() if text is not None})
    with pytest.raises(UserError) as caught:
        read_logs(tmp_path)
    for part in expected:
        assert part in str(caught.value)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path):
    put(tmp_path, notes__txt="x")
    with pytest.raises(UserError, match="does not exist"):
        read_logs(tmp_path / "absent")
    with pytest.raises(UserError, match="is a file"):
        read_logs(tmp_path / "notes.txt")
