"""Events of a log, read once for the log's columns and once more for the reviews' texts."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from instructrec_jax.damage import Damage, damaged
from instructrec_jax.data.readers.rows import as_id, as_text, as_time
from instructrec_jax.errors import UserError

# user, item, time (None where the log has no times), review as written ("" for none)
Event = tuple[str, str, float | None, str]


class EventReader(Protocol):
    """One pass over the events of a file.

    Attributes:
      has_reviews: whether the events seen so far may have reviews.
      num_without_text: events seen so far whose review is empty or missing.
      num_repeated_lines: lines that repeat an earlier line exactly; None where none were compared.
    """

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
        event = (
            as_id(user, self.path, line, "user_id"),
            as_id(item, self.path, line, "item_id"),
            None if time is None else as_time(time, self.path, line),
            as_text(review, self.path, line, "review"),
        )
        if self._has_times is None:
            self._has_times = time is not None
        if self._has_times != (time is not None):
            have = "no timestamp" if time is None else "a timestamp"
            problem = f"{have}, unlike the lines before; give all events one, or none"
            damaged(self.path, line, "bad_time", problem)
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
