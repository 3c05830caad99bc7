"""Artefact A in columns: sequences that make records when asked, and reviews near at hand."""

import itertools

import columns
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec_jax.data import prepared_writer
from instructrec_jax.data.columnar import Histories
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.data.reviews import Reviews, write_reviews
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest
from instructrec_jax.records import CandidateList, History, Item

PROTOCOLS = ("leave_one_out", "product_search")
SPLITS = ("validation", "test")


def histories_of(lengths, *, has_times=False, has_reviews=False):
    numbers = itertools.count()
    rows = []
    for user, length in enumerate(lengths):
        items = tuple(next(numbers) % 7 for _ in range(length))
        rows.append(
            History(
                user_id=f"u{user}",
                item_ids=items,
                times=tuple(10**10 + item for item in items) if has_times else (),
                review_rows=tuple(item - 1 for item in items) if has_reviews else (),
            )
        )
    return rows


def candidates_of(histories, num_searched):
    rows = [
        CandidateList(
            example_id=f"{history.user_id}:{position}",
            protocol="leave_one_out",
            split=split,
            user_id=history.user_id,
            position=position,
            target_id=history.item_ids[position],
            candidate_ids=tuple(range(position)),
        )
        for history in histories
        for split, position in zip(
            SPLITS, (len(history.item_ids) - 2, len(history.item_ids) - 1), strict=True
        )
    ]
    searched = [
        CandidateList(
            example_id=f"item:{item}",
            protocol="product_search",
            split=SPLITS[item % 2],
            user_id="",
            position=-1,
            target_id=item,
            candidate_ids=(item, 5),
        )
        for item in range(num_searched)
    ]
    return rows + searched


def data_of(histories, num_searched=3):
    own = columns.histories(histories)
    return PreparedData(
        dataset="toy",
        items=[
            Item(item_id=n, raw_id=f"r{n}", title=f"T{n}", category="C", brand="B" * n)
            for n in range(7)
        ],
        search_splits=["train"] * 7,
        histories=own,
        seen_items=columns.item_sets(sorted(set(history.item_ids)) for history in histories),
        candidates=columns.candidates(candidates_of(histories, num_searched), own),
    )


def stored(folder, data):
    folder.mkdir(exist_ok=True)
    columns.write_prepared(folder, data)
    Manifest(stage="prepare", inputs={}, settings={"dataset": "toy"}).write(folder)
    return read_prepared(folder)


@pytest.mark.parametrize("changed", [{"dataset": 7}, {"dataset": "toy", "prepared_format": 1}])
def test_a_manifest_of_another_format_is_refused(tmp_path, changed):
    Manifest(stage="prepare", inputs={}, settings=changed).write(tmp_path)
    with pytest.raises(UserError, match=r"expected format 2; run `instructrec prepare` again"):
        read_prepared(tmp_path)


@given(st.lists(st.integers(2, 5), max_size=9), st.booleans(), st.booleans())
def test_sequences_give_back_the_records_they_were_made_of(lengths, has_times, has_reviews):
    rows = histories_of(lengths, has_times=has_times, has_reviews=has_reviews)
    histories = columns.histories(rows)
    assert list(histories) == rows
    assert [histories[place] for place in range(-len(rows), 0)] == rows
    assert histories[1:] == rows[1:]
    assert len(histories.times) == has_times * sum(lengths)
    lists = candidates_of(rows, num_searched=4)
    candidates = columns.candidates(lists, histories)
    assert list(candidates) == lists == [candidates[place] for place in range(len(lists))]
    for protocol, split in itertools.product(PROTOCOLS, SPLITS):
        wanted = [row for row in lists if (row.protocol, row.split) == (protocol, split)]
        assert list(candidates.select(protocol=protocol, split=split)) == wanted


def test_places_beyond_the_end_are_index_errors():
    histories = columns.histories(histories_of([3, 2]))
    for place in (2, -3):
        with pytest.raises(IndexError):
            histories[place]


@pytest.mark.parametrize("group", [2, 1 << 16], ids=["many row groups", "one row group"])
@pytest.mark.parametrize("has_times", [True, False])
def test_what_is_written_is_read_back(tmp_path, monkeypatch, group, has_times):
    monkeypatch.setattr(prepared_writer, "_GROUP_ROWS", group)
    data = data_of(histories_of([3, 4, 2, 5, 3], has_times=has_times, has_reviews=has_times))
    again = stored(tmp_path / "a", data)
    assert again.items == tuple(data.items) and again.search_splits == tuple(data.search_splits)
    assert list(again.histories) == list(data.histories)
    assert [seen.tolist() for seen in again.seen_items] == [s.tolist() for s in data.seen_items]
    for protocol, split in itertools.product(PROTOCOLS, SPLITS):
        expected = list(data.evaluation(protocol, split))
        assert expected and list(again.evaluation(protocol, split)) == expected
    assert list(again.candidates) == list(data.candidates)
    assert again.reviews == ()


def test_a_data_set_without_examples_of_a_kind_gives_none(tmp_path):
    data = stored(tmp_path / "a", data_of(histories_of([3]), num_searched=0))
    assert list(data.evaluation("product_search", "test")) == []


def test_candidates_are_read_when_asked_for_and_damage_is_told_then(tmp_path):
    data = stored(tmp_path / "a", data_of(histories_of([3, 3])))
    path = tmp_path / "a" / "candidates.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read .*candidates\.parquet"):
        data.evaluation("leave_one_out", "test")
    with pytest.raises(UserError, match=r"cannot read .*candidates\.parquet"):
        read_prepared(tmp_path / "a")


@pytest.mark.parametrize("number", [-1, 7, 10**6])
@pytest.mark.parametrize("column", ["item_ids", "seen_item_ids", "target_id", "candidate_ids"])
def test_numbers_of_items_that_are_not_there_are_refused(tmp_path, column, number):
    stored(tmp_path, data_of(histories_of([3, 4])))
    name = "histories" if column in ("item_ids", "seen_item_ids") else "candidates"
    path = tmp_path / f"{name}.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row[column] = [number] * len(row[column]) if column.endswith("ids") else number
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    with pytest.raises(UserError, match=rf"{name}\.parquet .*it names numbers .*expected 0 to 6"):
        list(read_prepared(tmp_path).evaluation("leave_one_out", "validation"))


def test_columns_cost_what_their_numbers_cost():
    num_users, length = 20_000, 10
    histories = Histories(
        pa.array([str(user) for user in range(num_users)]),
        np.zeros(num_users * length, dtype=np.int32),
        np.arange(0, num_users * length + 1, length),
    )
    bytes_used = histories.user_ids.nbytes + histories.item_ids.nbytes + histories.starts.nbytes
    assert bytes_used < num_users * (length * 4 + 8 + 16)
    assert len(histories) == num_users and histories[num_users - 1].user_id == "19999"


def written(path, texts, *, is_kept=None, max_chars=2000):
    is_kept = np.ones(len(texts), dtype=bool) if is_kept is None else np.array(is_kept)
    rows = np.full(len(texts), -1, np.int32)
    counts = write_reviews(path, enumerate(texts), is_kept=is_kept, rows=rows, max_chars=max_chars)
    return rows, *counts


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=12), st.booleans()), max_size=20))
def test_reviews_are_found_by_the_row_of_their_event(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("reviews") / "reviews.arrow"
    texts, is_kept = [text for text, _ in events], [kept for _, kept in events]
    rows, num_texts, _ = written(path, texts, is_kept=np.array(is_kept, dtype=bool))
    reviews = Reviews(path)
    assert num_texts == len(reviews)
    assert sorted(row for row in rows.tolist() if row >= 0) == list(range(len(reviews)))
    for kept, row in zip(is_kept, rows.tolist(), strict=True):
        if not kept:
            assert row == -1
        elif row >= 0:
            assert reviews[row] and set(reviews[row].split()) <= set(reviews[row].split(" "))
    assert list(reviews) == [reviews[row] for row in range(len(reviews))]


def test_reviews_are_cleaned_cut_and_counted(tmp_path):
    texts = ["Good &amp;amp; cheap\n", "  ", "one two three", "&#34;Gift&#34;"]
    rows, num_texts, num_cut = written(tmp_path / "r", texts, max_chars=12)
    assert rows.tolist() == [0, -1, 1, 2] and (num_texts, num_cut) == (3, 1)
    assert list(Reviews(tmp_path / "r")) == ["Good & cheap", "one two", '"Gift"']


def test_reviews_of_many_batches_are_in_order(tmp_path):
    texts = [f"text {number}" for number in range(9000)]
    written(tmp_path / "r", texts)
    reviews = Reviews(tmp_path / "r")
    assert len(reviews) == 9000 and list(reviews) == texts
    assert [reviews[place] for place in (0, 4095, 4096, -1)] == [
        texts[place] for place in (0, 4095, 4096, -1)
    ]
    assert reviews[4090:4100] == texts[4090:4100]


def test_a_damaged_file_of_reviews_is_told(tmp_path):
    written(tmp_path / "r", ["a text"])
    (tmp_path / "r").write_bytes((tmp_path / "r").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"cannot read .*run `instructrec prepare` again"):
        Reviews(tmp_path / "r")
