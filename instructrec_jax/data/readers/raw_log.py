"""What a format of raw logs is, and what its reader returns: events and the catalogue."""

import array
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from instructrec_jax.damage import Damage, damaged
from instructrec_jax.data.events import EVENT, EventParts, Events
from instructrec_jax.data.readers.values import UNIX_TIMES, as_id, as_text, as_time
from instructrec_jax.data.titles import clean_text, is_seen, junk_kind
from instructrec_jax.errors import UserError
from instructrec_jax.progress import Progress

# user, item, time (None where the log has no times), review as written ("" for none)
Event = tuple[str, str, float | None, str]
_BLOCK = 1 << 18  # events that are written at a time


class EventReader(Protocol):
    """One pass over the events of a file.

    Attributes:
      path: the file.
      has_reviews: whether the events seen so far may have reviews.
      num_without_text: events seen so far whose review is empty or missing.
      num_repeated_lines: lines that repeat an earlier line exactly; None where none were compared.
    """

    path: Path
    has_reviews: bool
    num_without_text: int
    num_repeated_lines: int | None

    def __iter__(self) -> Iterator[Event]:
        """Yields the events in file order; damaged ones are left out or raise."""


@dataclasses.dataclass(kw_only=True)
class RowEvents:
    """Events of rows (user, item, time or None, review or None): an `EventReader`.

    Attributes:
      path: the file, for messages.
      rows: yields (line number, row).
      damage: what happens to damaged lines.
    """

    path: Path
    rows: Iterator[tuple[int, list[Any]]]
    damage: Damage
    has_reviews: bool = False
    num_without_text: int = 0
    num_repeated_lines: int | None = None
    _has_times: bool | None = None

    def __iter__(self) -> Iterator[Event]:
        """Yields the events; each row is read once."""
        return self.damage.parsed(self.rows, self._parse)

    def _parse(self, line: int, row: list[Any]) -> Event:
        """Checks one row; the first one decides whether events have times."""
        user, item, time, review = row
        path, has_time = self.path, time is not None
        event = (
            as_id(user, path, line, "user_id"),
            as_id(item, path, line, "item_id"),
            as_time(time, path, line) if has_time else None,
            "" if review is None else as_text(review, path, line, "review"),
        )
        if self._has_times is None:
            self._has_times = has_time
        if self._has_times != has_time:
            have = "a timestamp" if has_time else "no timestamp"
            problem = f"{have}, unlike the lines before; give all events one, or none"
            damaged(path, line, "bad_time", problem)
        self.has_reviews |= review is not None
        self.num_without_text += not event[3].strip()
        return event


def read_reviews(
    open_events: Callable[[Damage], EventReader], *, damage: Damage, num_events: int
) -> Iterator[tuple[int, str]]:
    """Reads a file a second time for its reviews.

    Args:
      open_events: begins another pass, which accepts the same lines as the first one.
      damage: the policy of the first pass; what is damaged is not counted again.
      num_events: events of the first pass.

    Yields:
      (event number from 0, review as written) for every event that has a review.

    Raises:
      UserError: if the file no longer holds the same events.
    """
    number = -1
    for number, (_, _, _, review) in enumerate(open_events(damage.afresh())):
        if number < num_events and review.strip():
            yield number, review
    if number + 1 != num_events:
        raise UserError(
            f"the log held {num_events} events and holds {number + 1} when read again for its "
            "reviews; it was changed meanwhile: leave it alone and rerun"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawItem:
    """An item as the file has it: texts not yet cleaned, "" where absent."""

    raw_id: str
    title: str
    category: str = ""
    brand: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawLog:
    """The events, on disk, and the catalogue.

    Attributes:
      users: raw ids of the users, in order of appearance.
      items: the catalogue in file order, each raw id once.
      event_items: raw ids of the items that the events name, in order of appearance.
      events: in parts of whole users, in file order within a part. `user` is an index into `users`,
        `item` one into `event_items`; `time` is in the log's own unit, and the event's number where
        there are no times.
      has_times: whether times come from the log.
      num_items_listed_again: later lines of an item already in the catalogue, which only fill
        what the earlier ones leave open.
      reviews: reads the files again and yields (event number from 0, review as written) for every
        event that has a text; None where the format has no reviews. Texts never stay in memory.
      has_unix_times: whether times are in seconds since 1970 (the format says so).
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
    events: EventParts
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
    num_pairs = 0
    for events in log.events:
        pairs = events["user"].astype(np.int64) * len(log.event_items) + events["item"]
        pairs.sort()
        num_pairs += int((pairs[1:] != pairs[:-1]).sum()) + 1
    counts = {
        "log_interactions": len(log.events),
        "log_users": len(log.users),
        "log_items": len(log.event_items),
        "log_pairs": num_pairs,
        "log_items_listed": len(log.items),
        "log_items_without_title": sum(not is_seen(item.title) for item in log.items),
    }
    if log.reviews is not None:
        counts["log_reviews_without_text"] = log.num_without_text
    if log.num_repeated_lines is not None:
        counts["log_repeated_lines"] = log.num_repeated_lines
    return counts


class LogBuilder:
    """Collects what a reader finds, one item or event at a time; the events go to disk."""

    def __init__(self, folder: Path | str) -> None:
        """Begins a log.

        Args:
          folder: of the file of events, see `EventParts`.
        """
        self._items: dict[str, RawItem] = {}
        self._users: dict[str, int] = {}
        self._event_items: dict[str, int] = {}
        self._written = EventParts(folder)
        # The events that wait to be written.
        self._user, self._item, self._time = array.array("i"), array.array("i"), array.array("d")
        self._units: dict[str, _Unit] = {}
        self._has_times = False
        self._num_again = 0
        self._num_unknown = 0
        self._events: EventReader | None = None
        self._reviews: Callable[[], Iterator[tuple[int, str]]] | None = None

    def add_item(self, item: RawItem) -> None:
        """Adds an item of the catalogue.

        Where its raw id is already there it is counted, and fills what is still open: the first
        line that has a title, a category or a brand gives it.
        """
        first = self._items.setdefault(item.raw_id, item)
        if first is not item:
            self._num_again += 1
            self._fill(first, item)

    def add_details(self, details: RawItem) -> None:
        """Adds category and brand to an item of the catalogue where it has none.

        Those of an item that is not in the catalogue are counted and left.
        """
        item = self._items.get(details.raw_id)
        if item is None:
            self._num_unknown += 1
        else:
            self._fill(item, details)

    def _fill(self, item: RawItem, details: RawItem) -> None:
        """Gives an item the title, category and brand that it lacks."""
        is_titled = not junk_kind(clean_text(item.title)) or not is_seen(details.title)
        self._items[item.raw_id] = dataclasses.replace(
            item,
            title=item.title if is_titled else details.title,
            category=item.category or details.category,
            brand=item.brand or details.brand,
        )

    def add_sequence(self, user: str, items: Sequence[str]) -> None:
        """Adds the events of a user, oldest first, of a log that is ordered but not timed."""
        codes, first = self._event_items, len(self._written) + len(self._time)
        self._user.extend([self._users.setdefault(user, len(self._users))] * len(items))
        self._item.extend([codes.setdefault(item, len(codes)) for item in items])
        self._time.extend(range(first, first + len(items)))
        if len(self._time) >= _BLOCK:
            self._write()

    def _write(self) -> None:
        """Writes the events that wait for it."""
        events, first = np.empty(len(self._time), EVENT), len(self._written)
        events["number"] = np.arange(first, first + len(events))
        for name, column in (("user", self._user), ("item", self._item), ("time", self._time)):
            events[name] = column
            del column[:]
        if self._has_times:
            _count_units(events, self._units)
        self._written.add(events)

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
        first = len(self._written)
        progress = Progress("prepare", total=None, unit="events")
        for user, item, time, _ in progress.track(events, every=10_000):
            self._user.append(users.setdefault(user, len(users)))
            self._item.append(items.setdefault(item, len(items)))
            times.append(float(first + len(times)) if time is None else time)
            self._has_times = time is not None
            if len(times) == _BLOCK:
                self._write()
                first += _BLOCK
        self._events = events
        if events.has_reviews:
            self._reviews = functools.partial(
                read_reviews, again, damage=damage, num_events=first + len(times)
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
        if not self._items or not len(self._written) + len(self._time):
            raise UserError("the log holds no items or no interactions")
        self._write()
        if self._events:
            _check_one_unit(self._units, self._events.path)
        return RawLog(
            users=tuple(self._users),
            items=tuple(self._items.values()),
            event_items=tuple(self._event_items),
            events=self._written.by_user(len(self._users)),
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


@dataclasses.dataclass(kw_only=True)
class _Unit:
    """The events whose times are in one unit since 1970: how many, and the first of them."""

    first_time: float
    first_number: int
    count: int = 0


def _count_units(events: Events, units: dict[str, _Unit]) -> None:
    """Counts events by the unit of their times."""
    (first, end), times = UNIX_TIMES, events["time"]
    for unit, factor in (("seconds", 1), ("milliseconds", 1e3), ("microseconds", 1e6)):
        is_of_it = (times >= first * factor) & (times < end * factor)
        if number := int(np.count_nonzero(is_of_it)):
            _, _, time, place = events[is_of_it.argmax()].item()
            units.setdefault(unit, _Unit(first_time=time, first_number=place)).count += number


def _check_one_unit(units: Mapping[str, _Unit], path: Path) -> None:
    """Refuses a log of seconds and milliseconds, whose order would be wrong."""
    if len(units) > 1:
        examples = ", ".join(
            f"{unit.count} in {name} (such as {unit.first_time:.0f} of event "
            f"{unit.first_number + 1})"
            for name, unit in units.items()
        )
        raise UserError(
            f"{path}: the times since 1970 are of several units: {examples}; write all in one unit"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which logs are written down.

    Attributes:
      name: short, for the manifest.
      understood: the files it consists of, as a message lists them.
      find: returns the files of this format in a folder, () if it is another format.
      read: adds those files to a log, given the policy for damaged lines and the user's names of
        columns by their names in `fields`.
      default_k_core: what `--k_core` is where the user gives none; 1 keeps what the files hold.
      fields: the columns that the user may call by another name.
    """

    name: str
    understood: str
    find: Callable[[Path], tuple[Path, ...]]
    read: Callable[[Sequence[Path], LogBuilder, Damage, Mapping[str, str]], RawLog]
    default_k_core: int = 5
    fields: tuple[str, ...] = ()


def find_one(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the one file that has any of the names, plain or with `.gz`; None if there is none.

    Raises:
      UserError: if there are several.
    """
    wanted = {name + end for name in names for end in ("", ".gz")}
    found = sorted(path for path in folder.iterdir() if path.name in wanted)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(path.name for path in found)}, which stand for the "
            "same thing; keep one of them there"
        )
    return found[0] if found else None
