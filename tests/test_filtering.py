"""Repeats, k-core, order and ties, against slow and plain re-implementations."""

from collections import Counter
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from raw_logs import event_parts

from instructrec_jax.data import events, filtering

PAIRS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6), st.integers(0, 3)), max_size=60)


def columns(rows):
    array = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return array[:, 0], array[:, 1], array[:, 2].astype(np.float64)


def k_core(user, item, k, *, max_part=events.MAX_PART):
    """The core of a log of one part or several, and the numbers of the events that are left."""
    rows = [(*pair, 0.0, number) for number, pair in enumerate(zip(user, item, strict=True))]
    with mock.patch.object(events, "MAX_PART", max_part):
        parts = event_parts(np.array(rows, events.EVENT)).by_user(8)
    core = filtering.k_core(parts, 7, k, keep=parts.keep)
    return core, sorted(number for part in parts for number in part["number"].tolist())


@given(PAIRS, st.integers(1, 4))
def test_k_core_is_the_largest_set_in_which_all_have_k(rows, k):
    user, item, _ = columns(rows)
    kept = list(range(len(rows)))
    while True:  # one event at a time: another order of removal, the same fixed point
        users, items = Counter(user[kept].tolist()), Counter(item[kept].tolist())
        poor = [i for i in kept if users[user[i]] < k or items[item[i]] < k]
        if not poor:
            break
        kept.remove(poor[0])
    for parts in (1, 100):
        core, left = k_core(user, item, k, max_part=parts)
        assert left == kept
        assert core.size.num_events == len(kept) <= core.after_one_pass.num_events
        assert core.size.num_users == len(set(user[kept])) <= core.after_one_pass.num_users
        assert core.size.num_items == len(set(item[kept])) <= core.after_one_pass.num_items


def test_k_core_goes_on_where_one_pass_would_stop():
    # Item 2 has one event; without it user 1 is too short; without user 1 item 1 is too rare.
    user, item = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 3, 1, 2, 0, 3])
    core, left = k_core(user, item, 2)
    assert left == [0, 2, 5, 6]
    after = core.after_one_pass
    assert (after.num_events, after.num_users, after.num_items) == (6, 3, 3)
    assert core.num_rounds == 3


@given(PAIRS)
def test_the_first_of_exact_repeats_is_kept_in_file_order(rows):
    firsts = [index for index, row in enumerate(rows) if row not in rows[:index]]
    assert np.flatnonzero(filtering.is_first(*columns(rows))).tolist() == firsts


@given(PAIRS)
def test_order_is_by_user_then_time_then_file(rows):
    user, _, time = columns(rows)
    expected = sorted(range(len(rows)), key=lambda index: (rows[index][0], rows[index][2], index))
    assert filtering.order_events(user, time).tolist() == expected


@given(PAIRS)
def test_ties_are_counted_by_user(rows):
    user, _, time = columns(rows)
    order = filtering.order_events(user, time)
    by_user: dict[int, list[float]] = {}
    for index in order:
        by_user.setdefault(int(user[index]), []).append(float(time[index]))
    ties = filtering.count_ties(user[order], time[order])
    assert ties.num_users == sum(len(set(times)) < len(times) for times in by_user.values())
    assert ties.num_users_at_last == sum(
        len(times) > 1 and times[-1] == times[-2] for times in by_user.values()
    )


def test_runs_of_users():
    starts, lengths = filtering.split_by_user(np.array([3, 3, 8, 9, 9, 9]))
    assert (starts.tolist(), lengths.tolist()) == ([0, 2, 3], [2, 1, 3])
