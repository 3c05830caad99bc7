"""What every reader returns: the events of a log in columns, and the items as they were written."""

import array
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.readers.lines import fail
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
    default_category: str = ""


class LogBuilder:
    """Collects what a reader finds, one item or event at a time, in compact columns."""

    def __init__(self) -> None:
        self._items: dict[str, RawItem] = {}
        self._users: dict[str, int] = {}
        self._event_items: dict[str, int] = {}
        self._user = array.array("i")
        self._item = array.array("i")
        self._time = array.array("d")
        self._has_times: bool | None = None
        self._num_again = 0

    def add_item(self, item: RawItem) -> None:
        """Adds an item of the catalogue; a raw id that is already there is counted and left."""
        if item.raw_id in self._items:
            self._num_again += 1
        else:
            self._items[item.raw_id] = item

    def add_event(self, user: str, item: str, time: float | None, *, path: Path, line: int) -> None:
        """Adds one event.

        Args:
          user: raw id.
          item: raw id.
          time: in the log's unit; None in every event of a log that is ordered but not timed.
          path: file the event stands in, for the message.
          line: its line.

        Raises:
          UserError: if some events have a time and others have none.
        """
        if self._has_times is None:
            self._has_times = time is not None
        if self._has_times != (time is not None):
            have = "no timestamp" if time is None else "a timestamp"
            fail(path, line, f"{have}, unlike the lines before; give all events one, or none")
        self._user.append(self._users.setdefault(user, len(self._users)))
        self._item.append(self._event_items.setdefault(item, len(self._event_items)))
        self._time.append(float(len(self._time)) if time is None else time)

    def build(self) -> RawLog:
        """Returns everything collected.

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
            has_times=bool(self._has_times),
            num_items_listed_again=self._num_again,
        )
