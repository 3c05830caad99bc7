"""Which events of a log are kept: exact repeats, the k-core, time order, the cut to the last ones.

Everything works on columns of integers, one entry per event, so that logs of many millions of
events take seconds.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Core:
    """The k-core of a log.

    Attributes:
      kept: indices of the events that remain, ascending.
      kept_after_one_pass: indices after a single round, which is what careless code returns.
      num_rounds: rounds that removed something.
    """

    kept: Ints
    kept_after_one_pass: Ints
    num_rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """How far the order within a user is not given by the times.

    Attributes:
      num_users: users with two events of equal time.
      num_users_at_last: users whose last two events have equal time.
    """

    num_users: int
    num_users_at_last: int


def drop_repeats(user: Ints, item: Ints, time: npt.NDArray[np.float64]) -> Ints:
    """Returns the events without exact repeats: same user, same item, same time.

    Args:
      user: [events].
      item: [events].
      time: [events].

    Returns:
      Indices of the first of each group, ascending.

    Example:
      user [0, 0, 0], item [4, 4, 4], time [1, 2, 1] -> [0, 1].
    """
    order = np.lexsort((time, item, user))  # stable: the first in the file leads its group
    is_new = np.zeros(len(order), dtype=bool)
    is_new[:1] = True
    for column in (user, item, time):  # one sorted column at a time in memory
        values = column[order]
        is_new[1:] |= values[1:] != values[:-1]
    is_kept = np.zeros(len(order), dtype=bool)
    is_kept[order[is_new]] = True
    return np.flatnonzero(is_kept)


def k_core(user: Ints, item: Ints, k: int) -> Core:
    """Drops users and items with fewer than `k` events until none is left (the paper: k = 5).

    Args:
      user: [events] indices.
      item: [events] indices.
      k: events that each user and each item must keep.

    Returns:
      The largest set of events in which every user and every item has at least `k`.

    Example:
      user [0, 0, 1, 1, 2], item [0, 1, 0, 1, 1] with k=2 -> kept [0, 1, 2, 3].
    """
    kept = one_pass = np.arange(len(user), dtype=_index_type(len(user)))
    num_rounds = 0
    while True:
        users, items = user[kept], item[kept]
        is_kept = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if is_kept.all():
            return Core(kept=kept, kept_after_one_pass=one_pass, num_rounds=num_rounds)
        kept = kept[is_kept]
        num_rounds += 1
        one_pass = kept if num_rounds == 1 else one_pass


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


def count_distinct(ids: Ints) -> int:
    """Returns how many different ids there are, without sorting them.

    Args:
      ids: numbers from 0.

    Example:
      [4, 0, 4] -> 2.
    """
    return int(np.count_nonzero(np.bincount(ids))) if len(ids) else 0


def _index_type(size: int) -> type[np.signedinteger]:
    """Returns the smaller of the types that can count so far."""
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64
