"""What every reader returns: the events of a log in columns, and the items as they were written."""

import array
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from instructrec_jax.damage import Damage
from instructrec_jax.data.readers.events import EventReader, read_reviews
from instructrec_jax.data.titles import is_seen
from instructrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawItem:
    """An item as the file has it: texts not yet cleaned, "" where absent."""

    raw_id: str
    title: str
    category: str = ""
    brand: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawLog:
    """Events in file order, and the catalogue.

    Attributes:
      users: raw ids of the users, in order of appearance.
      items: the catalogue in file order, each raw id once.
      event_items: raw ids of the items that the events name, in order of appearance.
      event_user: [events] int32, index into `users`.
      event_item: [events] int32, index into `event_items`.
      event_time: [events] float64 in the log's own unit; the event's number where there are none.
      has_times: whether `event_time` comes from the log.
      num_items_listed_again: later lines of an item already in the catalogue (the first counts).
      reviews: reads the files again and yields (event number from 0, review as written) for every
        event that has a text; None where the format has no reviews. Texts never stay in memory.
      has_unix_times: whether `event_time` is in seconds since 1970 (the format says so).
      num_without_text: events whose review is empty or missing; 0 where there are no reviews.
      num_repeated_lines: lines that repeat an earlier line exactly; None where none were compared.
      num_details_of_unknown_items: brands and categories given for items not in the catalogue.
      has_item_file: False where no file lists items: `items` are those of the events, no titles.
      default_category: what the files' name says of all items; it only names items that have
        neither title nor category.
    """

    users: Sequence[str]
    items: Sequence[RawItem]
    event_items: Sequence[str]
    event_user: npt.NDArray[np.int32]
    event_item: npt.NDArray[np.int32]
    event_time: npt.NDArray[np.float64]
    has_times: bool
    num_items_listed_again: int = 0
    reviews: Callable[[], Iterator[tuple[int, str]]] | None = None
    has_unix_times: bool = False
    num_without_text: int = 0
    num_repeated_lines: int | None = None
    num_details_of_unknown_items: int = 0
    has_item_file: bool = True
    default_category: str = ""


def count_log(log: RawLog) -> dict[str, int]:
    """Counts a log as it was read, before anything is left out of it.

    Returns:
      log_interactions, log_users, log_items (that events name), log_pairs (distinct user and item),
      log_items_listed and log_items_without_title (of the catalogue); with reviews
      log_reviews_without_text; where lines were compared log_repeated_lines.
    """
    pairs = log.event_user.astype(np.int64) * len(log.event_items) + log.event_item
    pairs.sort()
    counts = {
        "log_interactions": len(log.event_user),
        "log_users": len(log.users),
        "log_items": len(log.event_items),
        "log_pairs": int((pairs[1:] != pairs[:-1]).sum()) + 1,
        "log_items_listed": len(log.items),
        "log_items_without_title": sum(not is_seen(item.title) for item in log.items),
    }
    if log.reviews is not None:
        counts["log_reviews_without_text"] = log.num_without_text
    if log.num_repeated_lines is not None:
        counts["log_repeated_lines"] = log.num_repeated_lines
    return counts


class LogBuilder:
    """Collects what a reader finds, one item or event at a time, in compact columns."""

    def __init__(self) -> None:
        self._items: dict[str, RawItem] = {}
        self._users: dict[str, int] = {}
        self._event_items: dict[str, int] = {}
        self._user = array.array("i")
        self._item = array.array("i")
        self._time = array.array("d")
        self._has_times = False
        self._num_again = 0
        self._num_unknown = 0
        self._events: EventReader | None = None
        self._reviews: Callable[[], Iterator[tuple[int, str]]] | None = None

    def add_item(self, item: RawItem) -> None:
        """Adds an item of the catalogue; a raw id that is already there is counted and left."""
        if item.raw_id in self._items:
            self._num_again += 1
        else:
            self._items[item.raw_id] = item

    def add_details(self, details: RawItem) -> None:
        """Adds category and brand to an item of the catalogue where it has none.

        Those of an item that is not in the catalogue are counted and left.
        """
        item = self._items.get(details.raw_id)
        if item is None:
            self._num_unknown += 1
            return
        self._items[item.raw_id] = dataclasses.replace(
            item,
            category=item.category or details.category,
            brand=item.brand or details.brand,
        )

    def add_event(self, user: str, item: str, time: float | None) -> None:
        """Adds one event.

        Args:
          user: raw id.
          item: raw id.
          time: in the log's unit; None in every event of a log that is ordered but not timed.
        """
        self._has_times = time is not None
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._item.append(self._event_items.setdefault(item, len(self._event_items)))
        self._time.append(float(len(self._time)) if time is None else time)

    def add_events(
        self, events: EventReader, *, again: Callable[[Damage], EventReader], damage: Damage
    ) -> None:
        """Adds all events of a file.

        Args:
          events: a pass over them.
          again: begins another pass, for the reviews.
          damage: the policy of the passes.
        """
        users, items, times = self._users, self._event_items, self._time
        for user, item, time, _ in events:  # add_event written out: logs have 10^7 events
            self._user.append(users.setdefault(user, len(users)))
            self._item.append(items.setdefault(item, len(items)))
            times.append(float(len(times)) if time is None else time)
            self._has_times = time is not None
        self._events = events
        if events.has_reviews:
            self._reviews = functools.partial(
                read_reviews, again, damage=damage, num_events=len(self._user)
            )

    def items_of_events(self) -> tuple[str, ...]:
        """Returns the raw ids of the items that the events so far name."""
        return tuple(self._event_items)

    def build(
        self,
        *,
        has_unix_times: bool = False,
        has_item_file: bool = True,
        default_category: str = "",
    ) -> RawLog:
        """Returns everything collected; the arguments are as in RawLog.

        Raises:
          UserError: if there is no item or no event.
        """
        if not self._items or not self._user:
            raise UserError("the log holds no items or no interactions")
        return RawLog(
            users=tuple(self._users),
            items=tuple(self._items.values()),
            event_items=tuple(self._event_items),
            event_user=np.frombuffer(self._user, dtype=np.int32),
            event_item=np.frombuffer(self._item, dtype=np.int32),
            event_time=np.frombuffer(self._time, dtype=np.float64),
            has_times=self._has_times,
            num_items_listed_again=self._num_again,
            reviews=self._reviews,
            has_unix_times=has_unix_times,
            num_without_text=self._events.num_without_text if self._reviews and self._events else 0,
            num_repeated_lines=self._events.num_repeated_lines if self._events else None,
            num_details_of_unknown_items=self._num_unknown,
            has_item_file=has_item_file,
            default_category=default_category,
        )
