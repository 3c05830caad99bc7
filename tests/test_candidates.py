"""Negatives, candidates and the product-search split."""

from collections import Counter

import columns
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.data.candidates import (
    draw_candidates,
    draw_evaluation,
    draw_negatives,
    evaluation_targets,
    example_rng,
    of_same_category,
)
from instructrec_jax.data.catalogue import search_split, search_splits
from instructrec_jax.errors import UserError
from instructrec_jax.records import History, Item


@given(st.data())
def test_negatives_are_what_the_protocol_allows_or_an_error_says_there_are_too_few(data):
    titles = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=14))
    target = data.draw(st.integers(0, len(titles) - 1))
    excluded = data.draw(st.frozensets(st.integers(0, len(titles) - 1)))
    number = data.draw(st.integers(1, 9))
    allowed = {t for i, t in enumerate(titles) if i not in excluded and t != titles[target]}
    draw = dict(excluded=excluded, target=target, number=number)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    if len(allowed) < number:
        with pytest.raises(UserError, match=f"only {len(allowed)} of different titles"):
            draw_negatives(titles, **draw, rng=rng)
        return
    negatives = draw_negatives(titles, **draw, rng=rng)
    assert len(negatives) == number and target not in negatives
    assert not excluded & set(negatives)
    drawn_titles = [titles[item] for item in [*negatives, target]]
    assert len(set(drawn_titles)) == number + 1


def test_fewer_negatives_are_drawn_only_where_allowed():
    draw = dict(excluded={1}, target=0, number=5, rng=np.random.default_rng(0))
    assert sorted(draw_negatives([0, 1, 2, 2, 3], **draw, allow_fewer=True)) in (
        [2, 4],
        [3, 4],
    )
    with pytest.raises(UserError, match="only 0 of different titles"):
        draw_negatives([0, 1], **draw, allow_fewer=True)


def test_negatives_are_uniform_even_where_most_items_are_excluded():
    # 200 items, all but 12 excluded: both the quick draw and the rest of the catalogue take part.
    allowed = list(range(0, 192, 16))
    excluded = frozenset(range(200)) - set(allowed)
    counts = Counter()
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        counts.update(draw_negatives(range(200), excluded=excluded, target=1, number=3, rng=rng))
    assert set(counts) == set(allowed)
    assert max(abs(count - 750) for count in counts.values()) < 5 * np.sqrt(750)


def test_the_target_stands_once_at_every_place():
    places = Counter()
    for seed in range(500):
        rng = np.random.default_rng(seed)
        drawn = draw_candidates(range(50), excluded={7}, target=7, num_candidates=5, rng=rng)
        assert drawn.count(7) == 1 and len(drawn) == 5
        places[drawn.index(7)] += 1
    assert set(places) == set(range(5)) and min(places.values()) > 60


def test_draws_depend_on_seed_dataset_split_and_example_alone():
    def draw(**changes):
        where = {"example_id": "u1:4", "dataset": "toy", "split": "test", "seed": 0, **changes}
        return example_rng(where.pop("example_id"), **where).integers(1 << 40)

    assert draw() == draw()
    changed = [{"example_id": "u1:3"}, {"dataset": "toys"}, {"split": "validation"}, {"seed": 1}]
    assert len({int(draw(**change)) for change in [{}, *changed]}) == 5


def test_evaluation_draws_each_example_by_its_own_seed():
    title_ids = [*range(30), 3, 4]
    rows = [History(user_id=f"u{n}", item_ids=(n, n + 1, n + 2, n + 3)) for n in range(9)]
    seen = [sorted({*row.item_ids, 20}) for row in rows]
    targets = evaluation_targets(
        columns.histories(rows), ["train", "test", "validation", *[""] * 29]
    )
    drawn = draw_evaluation(
        targets,
        columns.item_sets(seen),
        title_ids=title_ids,
        num_candidates=6,
        dataset="toy",
        seed=3,
    )
    assert [(row.protocol, row.split) for row in drawn[-4:]] == [
        ("leave_one_out", "validation"),
        ("leave_one_out", "test"),
        ("product_search", "test"),
        ("product_search", "validation"),
    ]
    for target, row in zip(targets, drawn, strict=True):
        user = int(row.user_id[1:]) if row.user_id else None
        assert target.candidate_ids == (row.target_id,)
        assert row.candidate_ids == draw_candidates(
            title_ids,
            excluded=frozenset() if user is None else frozenset(seen[user]),
            target=row.target_id,
            num_candidates=6,
            rng=example_rng(row.example_id, dataset="toy", split=row.split, seed=3),
        )


def test_negatives_of_product_search_may_be_of_other_categories_alone():
    items = [
        Item(item_id=i, raw_id=str(i), title=f"title {i}", category="ab"[i % 2]) for i in range(30)
    ]
    targets = evaluation_targets(columns.histories([]), ["test"] * 30)
    draw = dict(title_ids=range(30), num_candidates=10, dataset="toy", seed=0)
    plain = draw_evaluation(targets, columns.item_sets([]), **draw)
    other = draw_evaluation(targets, columns.item_sets([]), **draw, not_for=of_same_category(items))

    def num_alike(example):
        return sum(item % 2 == example.target_id % 2 for item in example.candidate_ids)

    assert sum(num_alike(example) for example in plain) > 60
    assert all(num_alike(example) == 1 for example in other)


def test_more_draws_of_the_test_events_leave_the_first_as_it_was():
    rows = [History(user_id=f"u{n}", item_ids=(n, n + 1, n + 2)) for n in range(4)]
    splits = ["train", "test", "validation", *[""] * 29]
    seen = columns.item_sets(row.item_ids for row in rows)
    draw = {"title_ids": range(32), "num_candidates": 6, "dataset": "toy", "seed": 3}
    once = draw_evaluation(evaluation_targets(columns.histories(rows), splits), seen, **draw)
    targets = evaluation_targets(columns.histories(rows), splits, test_draws=3)
    drawn = draw_evaluation(targets, seen, **draw)
    assert [row for row, number in zip(drawn, drawn.draws, strict=True) if number == 1] == [*once]
    ids = [row.example_id for row in drawn]
    assert ids[:5] == ["u0:1", "u0:2", "u0:2#2", "u0:2#3", "u1:1"] and len(set(ids)) == len(ids)
    assert ids[-4:] == ["item:1", "item:1#2", "item:1#3", "item:2"]
    assert drawn.example_ids(3, 7) == ids[3:7]
    lists = {row.candidate_ids for row in drawn if (row.user_id, row.split) == ("u0", "test")}
    assert len(lists) == 3
    selected = drawn.select(protocol="leave_one_out", split="test")
    assert selected.example_ids() == ids[1:4] + ids[5:8] + ids[9:12] + ids[13:16]


def test_drawn_candidates_are_those_of_earlier_releases():
    rng = example_rng("u1:4", dataset="toy", split="test", seed=0)
    drawn = draw_candidates(range(1000), excluded={7}, target=7, num_candidates=10, rng=rng)
    assert drawn == (91, 7, 429, 641, 497, 991, 323, 130, 838, 646)


def items(titles, category="Toys"):
    return [
        Item(item_id=index, raw_id=str(index), title=title, category=category)
        for index, title in enumerate(titles)
    ]


def test_search_split_is_80_10_10_and_depends_on_no_other_item():
    titles = [f"Kite {index}" for index in range(4000)]
    splits = search_splits(items(titles), dataset="toy", seed=0)
    shares = {name: count / 4000 for name, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.02)
    assert search_splits(items(titles[:50]), dataset="toy", seed=0) == splits[:50]
    assert search_splits(items(titles), dataset="toy", seed=1) != splits


def test_items_without_category_have_no_search_split():
    assert search_splits(items(["A", "B"], category=""), dataset="toy", seed=0) == ("", "")


@given(st.text(min_size=1), st.integers(0, 5))
def test_equal_titles_share_a_search_split(title, seed):
    split = search_split(title, dataset="toy", seed=seed)
    again = search_split(title.casefold(), dataset="toy", seed=seed)
    assert split in ("train", "validation", "test")
    if title.casefold().casefold() == title.casefold():
        assert again == split


def test_more_candidates_than_a_catalogue_has_take_no_memory():
    histories = columns.histories([History(user_id="u", item_ids=(0, 1, 2))])
    targets = evaluation_targets(histories, [""] * 9)
    draw = {"title_ids": range(9), "num_candidates": 10**9, "dataset": "toy", "seed": 0}
    with pytest.raises(UserError, match=r"'u:1': cannot draw 999999999 negatives"):
        draw_evaluation(targets, columns.item_sets([[0, 1, 2]]), **draw)
    lists = draw_evaluation(targets, columns.item_sets([[0, 1, 2]]), **draw, allow_fewer=True)
    assert sorted(lists[0].candidate_ids) == [1, 3, 4, 5, 6, 7, 8]
