"""The events of a log on disk, in parts."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.data import events
from instructrec_jax.data.events import EVENT, EventParts

USERS = st.lists(st.integers(0, 9), max_size=60)


def added(folder, users, block=7):
    parts = EventParts(folder)
    rows = [(user, 2 * number, number / 2, number) for number, user in enumerate(users)]
    for begin in range(0, len(rows), block):
        parts.add(np.array(rows[begin : begin + block], EVENT))
    return parts, np.array(rows, EVENT)


def joined(parts):
    return np.concatenate([np.empty(0, EVENT), *parts])


@given(USERS, st.integers(1, 20))
def test_a_part_holds_all_events_of_its_users_in_the_order_they_came(tmp_path_factory, users, most):
    parts, rows = added(tmp_path_factory.getbasetemp(), users)
    assert joined(parts).tolist() == rows.tolist() and len(parts) == len(rows)
    before, events.MAX_PART = events.MAX_PART, most
    try:
        grouped = parts.by_user(10)
    finally:
        events.MAX_PART = before
    found = list(grouped)
    seen = [set(part["user"].tolist()) for part in found]
    assert all(max(left) < min(right) for left, right in itertools.pairwise(seen))
    for part in found:
        assert part["number"].tolist() == sorted(part["number"])
        last = np.count_nonzero(part["user"] == part["user"].max())
        assert len(part) - last < most, "beside its last user"
    assert sorted(joined(grouped).tolist()) == sorted(rows.tolist())


def test_events_are_chosen_and_ordered_in_place(tmp_path):
    parts, rows = added(tmp_path, [0, 1, 2] * 6, block=6)
    parts.keep(lambda part: part["user"] > 0)
    assert joined(parts).tolist() == rows[rows["user"] > 0].tolist()
    parts.keep(lambda part: np.arange(len(part))[::-1])
    assert joined(parts)["number"].tolist() == [5, 4, 2, 1, 11, 10, 8, 7, 17, 16, 14, 13]
    parts.keep(lambda part: part["number"] > 11)
    assert len(list(parts)) == 1 and len(parts) == 4


def test_nothing_has_a_name_so_that_no_kill_leaves_it(tmp_path):
    parts, _ = added(tmp_path, [0, 1])
    column = parts.column(3, np.int32)
    column[1] = 7
    assert column.tolist() == [0, 7, 0] and len(parts) == 2
    assert list(tmp_path.iterdir()) == []
