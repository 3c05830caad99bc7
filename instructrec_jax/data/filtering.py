"""Which events of a log are kept: exact repeats, the k-core, time order, the cut to the last ones.

Everything works on columns of integers, one entry per event, so that logs of many millions of
events take seconds. But for the k-core they are the events of some users, with all of each.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.events import EventParts, Events

Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Size:
    """How large a log is.

    Attributes:
      num_events: its events.
      num_users: users with an event.
      per_item: [items] events of each.
    """

    num_events: int
    num_users: int
    per_item: Ints

    @property
    def num_items(self) -> int:
        """Items with an event."""
        return int(np.count_nonzero(self.per_item))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Core:
    """The k-core of a log.

    Attributes:
      before: what there was.
      size: what remains.
      after_one_pass: what a single round leaves, which is what careless code returns.
      num_rounds: rounds that removed something.
    """

    before: Size
    size: Size
    after_one_pass: Size
    num_rounds: int


def size_of(events: EventParts, num_items: int) -> Size:
    """Counts events, users and items.

    Args:
      events: in parts of whole users.
      num_items: items are numbers below it.
    """
    num_users, per_item = 0, np.zeros(num_items, dtype=np.int64)
    for part in events:
        num_users += int(np.count_nonzero(_per_user(part["user"])))
        per_item += np.bincount(part["item"], minlength=num_items)
    return Size(num_events=len(events), num_users=num_users, per_item=per_item)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """How far the order within a user is not given by the times.

    Attributes:
      num_users: users with two events of equal time.
      num_users_at_last: users whose last two events have equal time.
    """

    num_users: int
    num_users_at_last: int


def is_first(user: Ints, item: Ints, time: npt.NDArray[np.float64]) -> Bools:
    """Returns which events are no exact repeats of an earlier one: same user, item and time.

    Args:
      user: [events].
      item: [events].
      time: [events].

    Example:
      user [0, 0, 0], item [4, 4, 4], time [1, 2, 1] -> [True, True, False].
    """
    order = np.lexsort((time, item, user))  # stable: the first in the file leads its group
    is_new = np.zeros(len(order), dtype=bool)
    is_new[:1] = True
    for column in (user, item, time):  # one sorted column at a time in memory
        values = column[order]
        is_new[1:] |= values[1:] != values[:-1]
    is_kept = np.zeros(len(order), dtype=bool)
    is_kept[order[is_new]] = True
    return is_kept


def has_many(user: Ints, number: int) -> Bools:
    """Returns which events are of users with at least so many.

    Example:
      user [5, 5, 7], number 2 -> [True, True, False].
    """
    return _per_user(user)[user - user.min()] >= number


def is_among_last(user: Ints, number: int) -> Bools:
    """Returns which events are among the last so many of their user, whose events are together.

    Example:
      user [3, 3, 3, 8], number 2 -> [False, True, True, True].
    """
    starts, lengths = split_by_user(user)
    positions = np.arange(len(user)) - np.repeat(starts, lengths)
    return positions >= np.repeat(lengths - number, lengths)


def k_core(
    events: EventParts,
    num_items: int,
    k: int,
    *,
    keep: Callable[[Callable[[Events], Bools]], None],
) -> Core:
    """Drops users and items with fewer than `k` events until none is left (the paper: k = 5).

    What is left is the largest set of events in which every user and every item has at least `k`.

    Args:
      events: in parts of whole users.
      num_items: items are numbers below it.
      k: events that each user and each item must keep.
      keep: `events.keep`, or a function that does the same and more.

    Example:
      user [0, 0, 1, 1, 2], item [0, 1, 0, 1, 1] with k=2 leaves the first four.
    """
    size = before = after_one_pass = size_of(events, num_items)
    num_rounds = 0

    def is_in_both(part: Events) -> Bools:
        return (size.per_item >= k)[part["item"]] & has_many(part["user"], k)

    while True:
        keep(is_in_both)
        if len(events) == size.num_events:
            return Core(
                before=before, size=size, after_one_pass=after_one_pass, num_rounds=num_rounds
            )
        size = size_of(events, num_items)
        num_rounds += 1
        after_one_pass = size if num_rounds == 1 else after_one_pass


def order_events(
    user: Ints,
    time: npt.NDArray[np.float64],
    tie_keys: Callable[[Ints], npt.NDArray[np.uint64]] | None = None,
) -> Ints:
    """Returns the events by user, oldest first.

    Args:
      user: [events] indices.
      time: [events].
      tie_keys: returns, for the given events, what orders those of equal user and time; without
        it they keep the file's order.

    Example:
      user [1, 0, 1], time [5, 7, 5] -> [1, 0, 2].
    """
    order = np.lexsort((time, user))
    if tie_keys is None:
        return order
    is_tie = np.zeros(len(order) + 1, dtype=bool)
    is_tie[1:-1] = (user[order[1:]] == user[order[:-1]]) & (time[order[1:]] == time[order[:-1]])
    places = np.flatnonzero(is_tie[1:] | is_tie[:-1])
    tied = order[places]
    order[places] = tied[np.lexsort((tie_keys(tied), time[tied], user[tied]))]
    return order


def pair_hashes(
    first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Returns a hash of each pair of hashes, all [pairs].

    Pairs with the same first hash are in an order of their own, whatever the second ones are.
    """
    mixed = first ^ second
    # The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit changes every other.
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def count_ties(user: Ints, time: npt.NDArray[np.float64]) -> Ties:
    """Counts the users whose order is not given by the times.

    Args:
      user: [events] in the order of `order_events`.
      time: [events] likewise.
    """
    is_tie = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    is_last = np.ones(len(user), dtype=bool)
    is_last[:-1] = user[1:] != user[:-1]
    return Ties(
        num_users=len(np.unique(user[1:][is_tie])),
        num_users_at_last=int((is_tie & is_last[1:]).sum()),
    )


def split_by_user(user: Ints) -> tuple[Ints, Ints]:
    """Returns where each user's run of events begins, and how long it is.

    Args:
      user: [events], all events of a user side by side.

    Returns:
      starts [users] and lengths [users].

    Example:
      [3, 3, 8] -> ([0, 2], [2, 1]).
    """
    is_start = np.ones(len(user), dtype=bool)
    is_start[1:] = user[1:] != user[:-1]
    starts = np.flatnonzero(is_start)
    return starts, np.diff(starts, append=len(user))


def _per_user(user: Ints) -> Ints:
    """Returns the events of each user from the first one on."""
    return np.bincount(user - user.min())
