"""Events of equal time: an order that neither the file nor the catalogue decides, unless asked."""

import collections
import dataclasses
import itertools
import random
from pathlib import Path

import pytest
from test_prepare import LOOSE, write_small

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.stages.prepare import prepare


def write_days(folder: Path, num_days: int = 1) -> Path:
    """60 users who took 6 of 30 items within a few days, in a file that runs by item."""
    draw = random.Random(0)
    taken = {user: draw.sample(range(30), 6) for user in range(60)}
    events = [
        f"u{user} i{item} {taken[user].index(item) % num_days}"
        for item in range(30)
        for user in range(60)
        if item in taken[user]
    ]
    return write_small(folder, events, [f"i{item} Kite_{item} Toys" for item in range(30)])


def test_events_of_equal_time_are_in_an_order_that_no_file_decides(tmp_path):
    logs = write_days(tmp_path / "logs")
    settings = dataclasses.replace(LOOSE, num_candidates=10)
    found = {}
    for name in ("by_item", "reversed"):
        out = tmp_path / name
        prepare(dataset="toy", input_dir=logs, output_dir=out, settings=settings)
        found[name] = {h.user_id: h.item_ids for h in read_prepared(out).histories}
        header, *lines = (logs / "interactions.tsv").read_text().splitlines()
        (logs / "interactions.tsv").write_text("\n".join([header, *lines[::-1]]) + "\n")
    assert found["by_item"] == found["reversed"]
    histories = list(found["by_item"].values())
    num_largest = sum(items[-1] == max(items) for items in histories)
    assert num_largest < 25, "of 60, 10 by chance; all in file order"
    pairs = collections.Counter(
        (a, b) for items in histories for a, b in itertools.combinations(items, 2)
    )
    assert any(pairs[b, a] for a, b in pairs), "each user has an order of their own"


def test_the_order_of_ties_depends_on_the_seed_and_keeps_the_times(tmp_path):
    logs = write_days(tmp_path / "logs", num_days=2)
    found = []
    for seed in (0, 0, 1):
        settings = dataclasses.replace(LOOSE, num_candidates=10, seed=seed)
        out = tmp_path / f"o{len(found)}"
        manifest = prepare(dataset="toy", input_dir=logs, output_dir=out, settings=settings)
        found.append([h.item_ids for h in read_prepared(out).histories])
    assert found[0] == found[1] != found[2]
    assert [set(items[:3]) for items in found[0]] == [set(items[:3]) for items in found[2]]
    assert manifest.counts["users_with_time_tie_at_last_item"] == 60


def test_users_with_a_tie_at_their_last_item_are_warned_of(tmp_path, caplog):
    settings = dataclasses.replace(LOOSE, num_candidates=10)
    logs = write_days(tmp_path / "logs")
    prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=settings)
    assert "the test item of 60 of 60 users is one of several of equal time" in caplog.text


def test_equal_times_keep_file_order_where_asked_for_and_are_counted(tmp_path):
    items = [f"{name} Kite_{name} Toys" for name in "abcdef"]
    logs = write_small(
        tmp_path / "logs",
        [
            *("u c 5", "u b 5", "u a 1"),
            *("v a 1", "v b 1", "v c 2"),
            *("w a 1", "w b 2", "w c 3", "w d 4", "w e 5", "w f 6"),
        ],
        items,
    )
    settings = dataclasses.replace(
        LOOSE, num_candidates=4, allow_fewer_candidates=True, tie_order="file"
    )
    with pytest.raises(UserError):  # w has seen the whole catalogue
        prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=settings)
    (logs / "items.tsv").write_text((logs / "items.tsv").read_text() + "g\tKite g\tToys\n")
    lines = (logs / "interactions.tsv").read_text() + "u\tg\t0\n"
    (logs / "interactions.tsv").write_text(lines)
    manifest = prepare(dataset="toy", input_dir=logs, output_dir=tmp_path / "o", settings=settings)
    data = read_prepared(tmp_path / "o")
    assert data.histories[0].item_ids == (6, 0, 2, 1)
    assert manifest.counts["users_with_time_ties"] == 2
    assert manifest.counts["users_with_time_tie_at_last_item"] == 1
    w_test = next(row for row in data.candidates if row.example_id == "w:5")
    assert sorted(w_test.candidate_ids) == [5, 6]
    assert manifest.counts["candidate_lists_with_fewer"] >= 2
