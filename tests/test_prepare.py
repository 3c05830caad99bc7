"""`prepare` from files to artefact A: counts, protocol, reruns, refusals, real data."""

import dataclasses
import errno
import hashlib
import json
from pathlib import Path

import pytest
from synthetic import write_logs

from instructrec_jax.data import events
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.readers import raw_log
from instructrec_jax.data.settings import PrepareSettings, SyntheticSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.settings import SettingError
from instructrec_jax.stages.prepare import prepare

SHARED = Path(__file__).parents[2] / "shared"
LOOSE = PrepareSettings(k_core=1, num_candidates=2)


@pytest.fixture(scope="module")
def toy_logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy_logs")
    return write_logs(folder, num_users=120, num_items=90, seed=1)


@pytest.fixture(scope="module")
def toy(toy_logs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "toy"
    prepare(dataset="toy", input_dir=toy_logs, output_dir=folder)
    return folder


def write_small(folder: Path, interactions: list[str], items: list[str]) -> Path:
    """Writes logs from lines with blanks in place of tabs; "_" is a blank inside a title."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, header, lines in (
        ("interactions.tsv", "user_id item_id timestamp", interactions),
        ("items.tsv", "item_id title category", items),
    ):
        text = "\n".join(line.replace(" ", "\t").replace("_", " ") for line in lines)
        (folder / name).write_text(header.replace(" ", "\t") + "\n" + text + "\n")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"  # holds the command
    }


def whole_sequences(folder: Path) -> dict[str, list[str]]:
    """Returns every user's items by time, straight from the file."""
    rows = [line.split("\t") for line in (folder / "interactions.tsv").read_text().splitlines()[1:]]
    by_user: dict[str, list[tuple[float, int, str]]] = {}
    for number, (user, item, time) in enumerate(rows):
        by_user.setdefault(user, []).append((float(time), number, item))
    return {user: [item for *_, item in sorted(events)] for user, events in by_user.items()}


def test_histories_are_the_last_twenty_in_time_order(toy, toy_logs):
    data = read_prepared(toy)
    raw_ids = [item.raw_id for item in data.items]
    whole = whole_sequences(toy_logs)
    assert any(len(sequence) > 20 for sequence in whole.values())
    for history, seen in zip(data.histories, data.seen_items, strict=True):
        expected = [item for item in whole[history.user_id] if item in set(raw_ids)]
        assert [raw_ids[item] for item in history.item_ids] == expected[-20:]
        assert [raw_ids[item] for item in seen] == sorted(set(expected), key=raw_ids.index)


def test_every_example_has_its_target_once_among_unseen_items_of_other_titles(toy):
    data = read_prepared(toy)
    users = {
        h.user_id: (h, set(s.tolist()))
        for h, s in zip(data.histories, data.seen_items, strict=True)
    }
    for row in data.candidates:
        assert len(row.candidate_ids) == 10
        assert row.candidate_ids.count(row.target_id) == 1
        assert len({data.items[item].title.casefold() for item in row.candidate_ids}) == 10
        if row.protocol == "leave_one_out":
            history, seen = users[row.user_id]
            assert row.example_id == f"{row.user_id}:{row.position}"
            assert row.target_id == history.item_ids[row.position]
            back = {"validation": 2, "test": 1}[row.split]
            assert row.position == len(history.item_ids) - back
            assert seen & set(row.candidate_ids) == {row.target_id}
        else:
            assert row.example_id == f"item:{row.target_id}"
            assert (row.user_id, row.position) == ("", -1)
            assert data.search_splits[row.target_id] == row.split
    num_held_out = sum(split in ("validation", "test") for split in data.search_splits)
    assert num_held_out > 0
    assert len(data.candidates) == 2 * len(data.histories) + num_held_out


def test_items_are_numbered_in_file_order(toy):
    data = read_prepared(toy)
    assert [item.item_id for item in data.items] == list(range(len(data.items)))
    numbers = [int(item.raw_id[1:]) for item in data.items]
    assert numbers == sorted(numbers)


def test_a_rerun_elsewhere_is_byte_identical(toy, toy_logs, tmp_path):
    prepare(dataset="toy", input_dir=toy_logs, output_dir=tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(toy)
    assert len(hashes(toy)) == 3


@pytest.mark.parametrize("change", [{"dataset": "toys"}, {"settings": PrepareSettings(seed=1)}])
def test_another_seed_or_dataset_changes_candidates_but_no_history(toy, toy_logs, tmp_path, change):
    prepare(**{"dataset": "toy", "input_dir": toy_logs, "output_dir": tmp_path / "o", **change})
    one, other = hashes(toy), hashes(tmp_path / "o")
    assert one["histories.parquet"] == other["histories.parquet"]
    assert one["candidates.parquet"] != other["candidates.parquet"]


def test_candidates_of_a_user_do_not_depend_on_the_order_of_users(toy_logs, toy, tmp_path):
    lines = (toy_logs / "interactions.tsv").read_text().splitlines()
    shuffled = [lines[0], *sorted(lines[1:])]
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/interactions.tsv").write_text("\n".join(shuffled) + "\n")
    (tmp_path / "logs/items.tsv").write_bytes((toy_logs / "items.tsv").read_bytes())
    prepare(dataset="toy", input_dir=tmp_path / "logs", output_dir=tmp_path / "o")
    one, other = (
        {row.example_id: row for row in read_prepared(folder).candidates}
        for folder in (toy, tmp_path / "o")
    )
    assert one == other


def test_output_of_the_same_work_is_reused_and_left_alone(toy, toy_logs, caplog):
    before = {path.name: path.stat().st_mtime_ns for path in toy.iterdir()}
    with caplog.at_level("INFO"):
        manifest = prepare(dataset="toy", input_dir=toy_logs, output_dir=toy)
    assert "reused" in caplog.text
    counts = manifest.counts
    line = "users={users} items={items} interactions={interactions}".format(**counts)
    assert line in caplog.messages
    assert counts["interactions"] == sum(len(h.item_ids) for h in read_prepared(toy).histories)
    assert {path.name: path.stat().st_mtime_ns for path in toy.iterdir()} == before


def test_a_loss_of_more_than_one_event_in_twenty_is_the_last_word(tmp_path, caplog):
    events = [f"u{user} i{user + n} {n}" for user in range(5) for n in range(4)]
    items = [f"i{item} Kite_{item} Toys" for item in range(8)]
    logs = write_small(tmp_path / "logs", [*events, "u0 ghost 9"], items)
    prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=LOOSE)
    assert "were left out" not in caplog.text  # 1 of 21
    write_small(logs, [*events, "u3 ghost 9", "u4 ghost 9"], items)
    for _ in range(2):  # and again where the output is reused
        caplog.clear()
        with caplog.at_level("INFO"):
            prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "p", settings=LOOSE)
        assert caplog.records[-1].levelname == "WARNING"
        assert caplog.messages[-1] == (
            "2 of the log's 22 events (9 %) were left out: interactions_of_unknown_items=2, "
            "such as user 'u3', item 'ghost'"
        )


def test_titles_that_nobody_sees_are_no_titles(tmp_path):
    events = [f"u{user} i{4 if n == 3 else user + n} {n}" for user in (0, 1, 5) for n in range(4)]
    items = [f"i{item} Kite_{item} Toys" for item in range(9) if item != 4]
    logs = write_small(tmp_path / "logs", events, [*items, "i4 \u200e\u2060 Toys"])
    manifest = prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=LOOSE)
    assert manifest.counts["log_items_without_title"] == manifest.drops["items_without_title"] == 1
    assert manifest.drops["interactions_of_items_without_title"] == 3


def test_titles_that_are_one_to_a_model_are_never_negatives_of_each_other(tmp_path):
    titles = ["Cr\u00eape", "Cre\u0302pe", "Wait\u2026", "Wait...", "A;_B", "A,_B", "Kite", "Drum"]
    items = [f"i{number} {title} Toys" for number, title in enumerate(titles)]
    events = [f"u{user} i{(2 * user + n) % 8} {n}" for user in range(20) for n in (0, 3, 6)]
    logs = write_small(tmp_path / "logs", events, items)
    few = dataclasses.replace(
        LOOSE, num_candidates=5, allow_fewer_candidates=True, max_same_title_share=1.0
    )
    prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=few)
    one_of = [0, 0, 1, 1, 2, 2, 3, 4]
    for row in read_prepared(tmp_path / "o").candidates:
        assert len({one_of[item] for item in row.candidate_ids}) == len(row.candidate_ids)


def test_output_of_other_work_is_never_overwritten(toy, toy_logs, tmp_path):
    before = hashes(toy)
    with pytest.raises(UserError, match=r"holds another run.*'seed'"):
        prepare(dataset="toy", input_dir=toy_logs, output_dir=toy, settings=PrepareSettings(seed=9))
    other_logs = write_logs(tmp_path / "other", num_users=50, num_items=40, seed=2)
    with pytest.raises(UserError, match=r"holds another run.*interactions\.tsv|items\.tsv"):
        prepare(dataset="toy", input_dir=other_logs, output_dir=toy)
    with pytest.raises(UserError, match=r"no manifest\.json"):
        prepare(dataset="toy", input_dir=toy_logs, output_dir=toy_logs)
    assert hashes(toy) == before


def test_every_drop_is_counted_by_reason(tmp_path):
    logs = write_small(
        tmp_path / "logs",
        [
            "u a 1",
            "u b 2",
            "u a 1",  # exact repeat
            "u a 5",  # bought again later: stays
            "u ghost 3",  # not in the catalogue
            "u mute 4",  # no title
            "u c 6",
            "v a 1",  # too short
            "v b 1",
            *("w c 1", "w d 2", "w e 3"),
        ],
        [
            "a Red_Kite Toys",
            "b &amp;quot;Blue&amp;quot;__Kite Toys",
            "c " + "Long_" * 60 + " Toys",
            "mute &nbsp; Toys",
            "d Green_Kite Toys",
            "e Kite_of_Paper Toys",
            "lone Never_Bought Toys",
            "a Red_Kite_Again Toys",
        ],
    )
    manifest = prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=LOOSE)
    assert {name: number for name, number in manifest.drops.items() if number} == {
        "items_listed_again": 1,
        "items_without_title": 1,
        "items_without_interactions": 1,
        "interactions_of_unknown_items": 1,
        "interactions_of_items_without_title": 1,
        "exact_repeats": 1,
        "interactions_of_short_users": 2,
        "users_too_short": 1,
    }
    assert manifest.counts["titles_cut"] == 1
    assert manifest.counts["users_with_time_ties"] == 0
    data = read_prepared(tmp_path / "o")
    assert [item.title for item in data.items[:2]] == ["Red Kite", '"Blue" Kite']
    assert len(data.items[2].title) == 199 and data.items[2].title.endswith("Long")
    assert data.histories[0].item_ids == (0, 1, 0, 2)
    assert read_manifest(tmp_path / "o").drops == manifest.drops


def test_one_pass_counts_stand_beside_the_k_core(toy):
    counts, drops = read_manifest(toy).counts, read_manifest(toy).drops
    assert counts["interactions_before_cut"] <= counts["one_pass_interactions"]
    assert drops["interactions_before_last_items"] == (
        counts["interactions_before_cut"] - counts["interactions"]
    )


REFUSED = {
    "too few items for the candidates": (
        {"settings": PrepareSettings(k_core=1, num_candidates=10)},
        ["example 'u:1'", "cannot draw 9 negatives", "--num_candidates"],
    ),
    "nothing left by the k-core": (
        {"settings": PrepareSettings(k_core=5)},
        ["no user with at least 3 interactions is left", "interactions_below_k_core=4", "--k_core"],
    ),
    "bad dataset name": ({"dataset": "My shop"}, ["dataset name 'My shop'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_value_and_leave_nothing_behind(tmp_path, case):
    changes, expected = REFUSED[case]
    logs = write_small(
        tmp_path / "logs",
        ["u a 1", "u b 2", "u c 3", "v d 1"],
        [f"{name} Kite_{name} Toys" for name in "abcd"],
    )
    arguments = {"dataset": "toy", "input_dir": logs, "output_dir": tmp_path / "o", **changes}
    with pytest.raises(UserError) as caught:
        prepare(**arguments)
    for part in expected:
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_names_of_columns_are_part_of_the_work_only_where_they_are_given(toy_logs, toy, tmp_path):
    assert not {"user_field", "item_field"} & read_manifest(toy).settings.keys()
    for path in toy_logs.iterdir():
        text = path.read_text(encoding="utf-8").replace("item_id", "artist_id", 1)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    settings = PrepareSettings(item_field="artist_id")
    other = prepare(dataset="toy", input_dir=tmp_path, output_dir=tmp_path / "o", settings=settings)
    assert other.settings["item_field"] == "artist_id"
    assert other.counts == read_manifest(toy).counts


def test_a_format_without_the_column_refuses_its_name(tmp_path):
    review = '{"reviewerID": "u", "asin": "a", "unixReviewTime": 1300000000, "reviewText": "x"}'
    (tmp_path / "reviews_Kites.json").write_text(review + "\n")
    settings = PrepareSettings(item_field="asin")
    with pytest.raises(SettingError, match=r"item_field is given, .*format 'amazon'.* takes none"):
        prepare(dataset="toy", input_dir=tmp_path, output_dir=tmp_path / "o", settings=settings)


def test_logs_of_another_catalogue_are_refused(tmp_path):
    logs = write_small(tmp_path / "logs", ["u x1 1", "u x2 2", "u x3 3"], ["a Kite Toys"])
    with pytest.raises(UserError, match="log has item 'x1', the catalogue 'a'"):
        prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o")


def test_reading_a_folder_that_is_no_finished_preparation_says_so(toy_logs, tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        read_prepared(tmp_path)
    Manifest(stage="build", inputs={}, settings={}).write(tmp_path)
    with pytest.raises(UserError, match="output of 'build', expected that of 'prepare'"):
        read_prepared(tmp_path)
    prepare(dataset="toy", input_dir=toy_logs, output_dir=tmp_path / "o")
    dataclasses.replace(read_manifest(tmp_path / "o"), files={}).write(tmp_path / "o")
    (tmp_path / "o/items.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match=r"cannot read .*items\.parquet"):
        read_prepared(tmp_path / "o")
    (tmp_path / "o/items.parquet").write_bytes((tmp_path / "o/histories.parquet").read_bytes())
    with pytest.raises(UserError, match=r"items\.parquet has the columns user_id"):
        read_prepared(tmp_path / "o")


def test_the_manifest_tells_the_protocol(toy):
    settings = json.loads((toy / "manifest.json").read_text())["settings"]
    assert settings["k_core"] == 5 and settings["seed"] == 0 and settings["format"] == "plain"
    assert "whole sequence" in settings["protocol"]["negatives"]


@pytest.mark.real_data
def test_games_gives_the_counts_of_the_paper(tmp_path):
    logs = SHARED / "data" / "amazon-games"
    if not logs.is_dir():
        pytest.skip(f"{logs} is absent")
    manifest = prepare(dataset="amazon_games", input_dir=logs, output_dir=tmp_path / "o")
    counts = manifest.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (50546, 16859, 410907)
    assert counts["interactions_before_cut"] == 440264
    data = read_prepared(tmp_path / "o")
    assert [item.raw_id for item in data.items] == [str(number) for number in range(16859)]
    assert data.histories[0].item_ids == tuple(range(15))
    assert counts["search_items_train"] + counts["product_search_test"] > 0  # items_meta_sample
    for split in ("validation", "test"):
        assert len(data.evaluation("leave_one_out", split)) == 50546
    assert not any("&amp;" in item.title for item in data.items)


@pytest.mark.real_data
def test_movielens_counts(tmp_path):
    logs = SHARED / "data" / "ml-100k"
    if not logs.is_dir():
        pytest.skip(f"{logs} is absent")
    manifest = prepare(dataset="ml_100k", input_dir=logs, output_dir=tmp_path / "o")
    counts = manifest.counts
    assert (counts["users"], counts["items"], counts["interactions"]) == (943, 1349, 18858)
    assert counts["interactions_before_cut"] == 99287
    assert counts["users_with_time_ties"] == 943
    assert read_prepared(tmp_path / "o").items[0].category == "Animation, Children's, Comedy"
    loose = PrepareSettings(k_core=1)
    manifest = prepare(
        dataset="ml_100k", input_dir=logs, output_dir=tmp_path / "all", settings=loose
    )
    assert manifest.counts["items"] == 1682
    assert manifest.counts["users_with_time_tie_at_last_item"] == 415


def test_parts_of_any_size_give_the_same_bytes(tmp_path, monkeypatch):
    wanted = SyntheticSettings(
        num_users=80, num_interactions=900, num_items=300, format="amazon_2018", has_reviews=True
    )
    write_log(tmp_path / "log", wanted)
    settings = PrepareSettings(k_core=3, max_history=6, num_candidates=4)
    found = []
    for most in (events.MAX_PART, 1, 100):
        monkeypatch.setattr(events, "MAX_PART", most)
        monkeypatch.setattr(raw_log, "_BLOCK", most)
        folder = tmp_path / str(most)
        arguments = {"input_dir": tmp_path / "log", "output_dir": folder, "settings": settings}
        manifest = prepare(dataset="toy", **arguments)
        contents = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}
        found.append((manifest.counts, manifest.drops, manifest.examples, contents))
    assert found[0][0]["reviews"] and found[0][1]["interactions_below_k_core"]
    assert list(found[0][3]) and found[0] == found[1] == found[2]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_and_ctrl_c_leave_nothing(toy_logs, tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(events.EventParts, "_write", fails)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        prepare(dataset="toy", input_dir=toy_logs, output_dir=tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
