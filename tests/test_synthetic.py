"""Invented logs: exact sizes, equal bytes, planted taste, every format understood by `prepare`."""

import collections
import dataclasses
import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_logs import events_of, named_events, read_logs

from instructrec_jax.cli import main
from instructrec_jax.data.preparation import write_preparation
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.settings import KINDS, PrepareSettings, SyntheticSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.stages.prepare import prepare

SMALL = SyntheticSettings(num_users=80, num_interactions=1000, num_items=60)


def rows(path):
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def digest(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@settings(max_examples=30)
@given(st.data())
def test_sizes_are_exactly_those_asked_for_and_no_item_comes_twice(tmp_path_factory, data):
    num_users, num_items = data.draw(st.integers(1, 30)), data.draw(st.integers(6, 25))
    wanted = SyntheticSettings(
        num_users=num_users,
        num_items=num_items,
        num_interactions=data.draw(st.integers(num_users, num_users * num_items)),
        seed=data.draw(st.integers(0, 3)),
        zipf_exponent=data.draw(st.sampled_from([0.0, 1.0, 2.0])),
    )
    folder = tmp_path_factory.mktemp("log")
    counts = write_log(folder, wanted)
    events = rows(folder / "interactions.tsv")
    items = rows(folder / "items.tsv")
    assert counts == {"users": num_users, "items": num_items, "interactions": len(events)}
    assert len(events) == wanted.num_interactions and len(items) == num_items
    assert len({(user, item) for user, item, _ in events}) == len(events)
    assert len({user for user, *_ in events}) == num_users
    assert {item for _, item, _ in events} <= {item for item, *_ in items}
    assert len({title for _, title, *_ in items}) == num_items


def test_the_same_settings_write_the_same_bytes_and_another_seed_others(tmp_path):
    packed = dataclasses.replace(SMALL, format="amazon_2018", is_gzip=True, has_reviews=True)
    for name, one in (("a", packed), ("b", packed), ("c", dataclasses.replace(packed, seed=1))):
        write_log(tmp_path / name, one)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a").keys() == digest(tmp_path / "c").keys()
    assert not digest(tmp_path / "a").items() & digest(tmp_path / "c").items()


def test_users_keep_to_a_favourite_kind_and_popularity_falls_steeply(tmp_path):
    write_log(tmp_path, SyntheticSettings(num_users=400, num_interactions=6000, num_items=600))
    kinds = {item: path.split(", ")[1] for item, _, path, _ in rows(tmp_path / "items.tsv")}
    of_user = collections.defaultdict(collections.Counter)
    popularity = collections.Counter()
    for user, item, _ in rows(tmp_path / "interactions.tsv"):
        of_user[user][kinds[item]] += 1
        popularity[item] += 1
    share = sum(max(counts.values()) for counts in of_user.values()) / 6000
    assert set(kinds.values()) == set(KINDS) and 0.7 < share < 0.95
    numbers = [number for _, number in popularity.most_common()]
    assert sum(numbers[:60]) > 0.3 * 6000 > 4 * sum(numbers[300:360])


@pytest.mark.parametrize("form", ["plain", "jsonl", "recbole", "amazon_2018"])
@pytest.mark.parametrize("is_gzip", [False, True])
def test_every_format_is_understood_and_says_the_same(tmp_path, form, is_gzip):
    write_log(tmp_path / form, dataclasses.replace(SMALL, format=form, is_gzip=is_gzip))
    write_log(tmp_path / "toy", SMALL)
    log, same = read_logs(tmp_path / form), read_logs(tmp_path / "toy")
    for name in ("user", "item"):
        assert events_of(log)[name].tolist() == events_of(same)[name].tolist()
    assert [item.title for item in log.items] == [item.title for item in same.items]
    assert [item.category for item in log.items] == [item.category for item in same.items]


def test_reviews_come_through_prepare_to_the_history_entry_they_belong_to(tmp_path):
    wanted = dataclasses.replace(SMALL, format="amazon_2018", has_reviews=True)
    write_log(tmp_path / "log", wanted)
    log = read_logs(tmp_path / "log")
    assert log.reviews is not None
    pairs = [pair for *pair, _ in named_events(log)]
    texts = {tuple(pairs[number]): text for number, text in log.reviews()}
    small = PrepareSettings(max_history=6, num_candidates=3)
    manifest = prepare(
        dataset="toy", input_dir=tmp_path / "log", output_dir=tmp_path / "o", settings=small
    )
    data = read_prepared(tmp_path / "o")
    assert manifest.counts["reviews"] == len(data.reviews) == len(data.histories.item_ids)
    assert manifest.settings["prepared_format"] == 2
    for history in data.histories:
        assert len(history.times) == len(history.item_ids) == len(history.review_rows)
        assert list(history.times) == sorted(history.times)
        for item, row in zip(history.item_ids, history.review_rows, strict=True):
            assert data.reviews[row] == texts[history.user_id, data.items[item].raw_id]
    assert all(item.brand for item in data.items)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_users": 0}, "num_users is 0; expected a whole number, 1 to"),
        ({"num_items": 5}, "num_items is 5; expected a whole number, 6 to"),
        ({"zipf_exponent": float("nan")}, "zipf_exponent is nan; expected a finite number"),
        ({"zipf_exponent": float("inf")}, "zipf_exponent is inf; expected a finite number"),
        ({"num_interactions": 79}, "num_interactions is 79; expected 80 to 4800"),
        ({"num_interactions": 4801}, "num_interactions is 4801; expected 80 to 4800"),
        ({"favourite_share": 1.5}, r"favourite_share is 1\.5; expected a finite number, 0 to 1"),
        ({"format": "csv"}, "format is 'csv'; expected one of 'plain'"),
        ({"has_reviews": True}, "'plain' has no reviews; use amazon_2018"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_log(tmp_path / "log", dataclasses.replace(SMALL, **changes))
    assert not (tmp_path / "log").exists()


def test_the_command_writes_a_log_once(tmp_path, capsys):
    folder = tmp_path / "log"
    words = ["data", "synthesize", f"--output_dir={folder}", "--num_users=9"]
    assert main.main([*words, "--num_interactions=90", "--seed=4"]) == 0
    assert str(folder) in capsys.readouterr().out
    counts = read_manifest(folder).counts
    assert counts == {"users": 9, "items": 60, "interactions": 90}
    before = digest(folder)
    assert main.main([*words, "--num_interactions=90", "--seed=4"]) == 0
    assert digest(folder) == before
    assert main.main([*words, "--num_interactions=91"]) == 2
    assert digest(folder) == before


def test_a_log_is_written_and_prepared_without_an_object_an_event(tmp_path):
    """Peak memory is a few columns, far from what objects would take (300 bytes an event)."""
    wanted = SyntheticSettings(num_users=2000, num_interactions=40_000, num_items=200)
    write_log(tmp_path / "log", wanted)
    log = read_logs(tmp_path / "log")
    tracemalloc.start()
    write_preparation(tmp_path, log, "toy", PrepareSettings(k_core=5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000 * 150


@pytest.mark.slow
def test_the_benchmark_of_the_data_stages_prints_a_row_a_size(tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "data_scale.py"
    command = [sys.executable, script, "--sizes", "1200", "--reviews", "--num_workers", "1"]
    done = subprocess.run(
        [*command, "--work_dir", tmp_path], capture_output=True, text=True, check=True
    )
    header, row = done.stdout.splitlines()
    assert header.split()[:2] == ["interactions", "users"] and "build MB" in header
    assert row.split()[0] == "1,200.0"
    assert not list(tmp_path.iterdir())
