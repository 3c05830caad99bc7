"""Damaged lines: refused by default, or left out up to a bound, counted, with examples."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_logs import read_logs
from synthetic import write_logs

from instructrec_jax.damage import Damage, DamagedLineError, damaged
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.stages.prepare import prepare

ITEMS = "item_id\ttitle\ni1\tRed Kite\ni2\tBlue Kite\n"


def error(reason: str, line: int) -> DamagedLineError:
    with pytest.raises(DamagedLineError) as caught:
        damaged(Path("folder/log.tsv"), line, reason, "value is 7, expected 8")
    return caught.value


def test_a_damaged_line_names_its_file_line_and_value():
    assert str(error("bad_id", 3)) == "folder/log.tsv line 3: value is 7, expected 8"
    assert error("bad_id", 3).place == "log.tsv line 3"


def test_fail_is_the_default_and_says_how_to_go_on():
    with pytest.raises(UserError, match=r"log\.tsv line 3: value is 7(?s:.*)--on_damage=skip"):
        Damage().handle(error("bad_id", 3))


@given(
    reasons=st.lists(st.sampled_from(["bad_id", "bad_time", "not_json"]), max_size=30),
    bound=st.integers(0, 30),
)
def test_skip_counts_by_reason_and_ends_beyond_the_bound(reasons, bound):
    damage = Damage(on_damage="skip", max_damaged=bound)
    for number, reason in enumerate(reasons, start=1):
        if number > bound:
            with pytest.raises(UserError, match=f"more than --max_damaged={bound} lines"):
                damage.handle(error(reason, number))
            return
        damage.handle(error(reason, number))
    assert damage.counts == {reason: reasons.count(reason) for reason in reasons}
    for reason, places in damage.examples.items():
        lines = [number for number, other in enumerate(reasons, start=1) if other == reason]
        assert places == [f"log.tsv line {number}" for number in lines[:5]]


# name of the file -> (its good lines, damaged lines with their reason); the first line is kept
LOGS = {
    "interactions.tsv": (
        ["user_id\titem_id\ttimestamp", "u1\ti1\t3", "u2\ti2\t4"],
        [
            ("u1\ti1", "wrong_fields"),
            ("\ti1\t5", "bad_id"),
            ("u1\ti1\tnan", "bad_time"),
            ("u1\ti1\t2018-01-02", "bad_time"),
            (b"u\xff\ti1\t3", "not_utf8"),
        ],
    ),
    "interactions.jsonl": (
        [
            '{"user_id": "u1", "item_id": "i1", "timestamp": 3}',
            '{"user_id": "u2", "item_id": "i2", "timestamp": 4}',
        ],
        [
            ('{"user_id": "u1", "item', "not_json"),
            ("[1, 2]", "not_json"),
            ('{"user_id": "u1"}', "missing_field"),
            ('{"user_id": "u1", "item_id": "i1"}', "bad_time"),
            ('{"user_id": "\\ud83d", "item_id": "i1", "timestamp": 3}', "bad_id"),
        ],
    ),
    "toy.inter": (
        ["user_id:token\titem_id:token\ttimestamp:float", "u1\ti1\t3", "u2\ti2\t4"],
        [("u1\ti1", "wrong_fields"), ("u1\ti1\t1_0", "bad_time")],
    ),
    "sequences.tsv": (
        ["user_id\titem_ids", "u1\ti1", "u2\ti2"],
        [("u1\ti2 i1", "user_again"), ("u3\t  ", "empty_sequence"), ("u4", "wrong_fields")],
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", LOGS)
def test_every_format_leaves_damaged_lines_out_when_asked(tmp_path, name, packed):
    good, bad = LOGS[name]
    lines = [line.encode() for line in good]
    lines += [line if isinstance(line, bytes) else line.encode() for line, _ in bad]
    content = b"\n".join(lines) + b"\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    items = ITEMS.replace("item_id\ttitle", "item_id:token\ttitle:token_seq")
    if name == "toy.inter":
        (tmp_path / "toy.item").write_text(items)
    else:
        (tmp_path / "items.tsv").write_text(ITEMS)
    with pytest.raises(UserError, match=rf"{name} line {len(good) + 1}: "):
        read_logs(tmp_path)
    damage = Damage(on_damage="skip")
    log = read_logs(tmp_path, damage)
    assert (log.users, log.event_items) == (("u1", "u2"), ("i1", "i2"))
    reasons = [reason for _, reason in bad]
    assert damage.counts == {reason: reasons.count(reason) for reason in reasons}
    assert damage.examples[bad[0][1]][0] == f"{name} line {len(good) + 1}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("user_id\titem_id\nu1\n", "no rows that can be used"),
        ("user\titem\nu1\ti1\n", "no column 'user_id'"),
    ],
)
def test_skip_does_not_make_a_log_of_nothing(tmp_path, content, message):
    (tmp_path / "items.tsv").write_text(ITEMS)
    (tmp_path / "interactions.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_logs(tmp_path, Damage(on_damage="skip"))


@pytest.fixture
def broken_logs(tmp_path):
    """A log whose catalogue has two bad lines, cut in the middle of its events' gzip stream."""
    folder = write_logs(tmp_path / "logs", num_users=60, num_items=48, seed=5)
    events = folder / "interactions.tsv"
    events.write_bytes(gzip.compress(events.read_bytes())[:-200])
    items = folder / "items.tsv"
    num_columns = items.read_text().splitlines()[0].count("\t") + 1
    with items.open("a") as stream:
        stream.write("i900\n" + "\t".join(["", *["no id"] * (num_columns - 1)]) + "\n")
    return folder


def test_prepare_refuses_damage_and_writes_nothing(broken_logs, tmp_path):
    with pytest.raises(UserError, match=r"interactions\.tsv is damaged after line"):
        prepare(dataset="toy", input_dir=broken_logs, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_tells_what_it_left_out_and_where(broken_logs, tmp_path, caplog):
    caplog.set_level("INFO")
    manifest = prepare(
        dataset="toy",
        input_dir=broken_logs,
        output_dir=tmp_path / "out",
        settings=PrepareSettings(on_damage="skip", k_core=2, max_damaged=3),
    )
    reasons = ("cut_gzip", "wrong_fields", "bad_id")
    assert [manifest.drops[f"damaged_lines_{reason}"] for reason in reasons] == [1, 1, 1]
    cut = manifest.counts["log_interactions"] + 2  # a header before, the next line is cut
    assert manifest.damage == {
        "cut_gzip": [f"interactions.tsv line {cut}"],
        "wrong_fields": ["items.tsv line 50"],
        "bad_id": ["items.tsv line 51"],
    }
    assert read_manifest(tmp_path / "out").damage == manifest.damage
    assert f"cut_gzip 1 (interactions.tsv line {cut})" in caplog.text
    with pytest.raises(UserError, match="more than --max_damaged=2 lines"):
        prepare(
            dataset="toy",
            input_dir=broken_logs,
            output_dir=tmp_path / "other",
            settings=PrepareSettings(on_damage="skip", max_damaged=2),
        )


def test_a_manifest_from_before_there_was_a_policy_is_read(tmp_path):
    Manifest(stage="prepare", inputs={}, settings={}).write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('  "damage": {},\n', ""))
    assert read_manifest(tmp_path).damage == {}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"on_damage": "ignore"}, "on_damage is 'ignore'; expected one of 'fail', 'skip'"),
        ({"k_core": 0}, "k_core is 0; expected a whole number, at least 1"),
        ({"num_candidates": 1}, "num_candidates is 1; expected a whole number, 2 to"),
        ({"num_candidates": 10**9}, "num_candidates is 1000000000; expected .* 2 to 100000"),
        ({"max_history": 2}, "max_history is 2; expected a whole number, at least 3"),
        ({"max_damaged": -1}, "max_damaged is -1"),
        ({"title_fallback": "asin"}, "title_fallback is 'asin'; expected one of 'refuse'"),
        (
            {"max_same_title_share": 1.5},
            "max_same_title_share is 1.5; expected a finite number, 0 to 1",
        ),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(UserError, match=message):
        PrepareSettings(**setting)
