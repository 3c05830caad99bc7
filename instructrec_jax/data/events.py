"""The events of a log in a file without a name: memory holds one part of them at a time.

The file stands in the folder that is written to and is gone as soon as its process is, however
that ends.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

# `number` is the event's place in the log, from 0.
EVENT = np.dtype(
    [("user", np.int32), ("item", np.int32), ("time", np.float64), ("number", np.int64)]
)
Events = npt.NDArray[np.void]  # [events] EVENT
MAX_PART = 1 << 21  # events of a part, beside those of its last user


class EventParts:
    """Events in parts: as they were added, or all events of some users in each."""

    def __init__(self, folder: Path | str) -> None:
        """Opens the file.

        Args:
          folder: on the file system that it may fill.
        """
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  as long as this object
        self._begins: list[int] = []
        self._lengths: list[int] = []

    def __len__(self) -> int:
        """Returns the number of events."""
        return sum(self._lengths)

    def __iter__(self) -> Iterator[Events]:
        """Yields the parts that hold an event, each a new array."""
        for begin, length in zip(self._begins, self._lengths, strict=True):
            if length:
                events = np.empty(length, EVENT)
                self._file.seek(begin * EVENT.itemsize)
                self._file.readinto(events.view(np.uint8).data)
                yield events

    def add(self, events: Events) -> None:
        """Adds a part."""
        self._begins.append(self._begins[-1] + self._lengths[-1] if self._begins else 0)
        self._lengths.append(len(events))
        self._write(self._begins[-1], events)

    def keep(self, choose: Callable[[Events], npt.NDArray]) -> None:
        """Keeps of each part the events at the places that a function chooses, in that order."""
        numbers = [number for number, length in enumerate(self._lengths) if length]
        for number, events in zip(numbers, self, strict=True):
            chosen = choose(events)
            if chosen.dtype == np.bool_ and chosen.all():
                continue
            kept = events[chosen]
            self._lengths[number] = len(kept)
            self._write(self._begins[number], kept)

    def by_user(self, num_users: int) -> "EventParts":
        """Returns the events in parts that hold all events of their users, in the order of users.

        Args:
          num_users: users are numbers below it.

        Returns:
          Parts whose events are in the order in which they were added.
        """
        per_user = np.zeros(num_users, dtype=np.int64)
        for events in self:
            counted = np.bincount(events["user"])
            per_user[: len(counted)] += counted
        part_of_user = (np.cumsum(per_user) - per_user) // MAX_PART
        grouped = EventParts(self._folder)
        grouped._lengths = np.bincount(part_of_user, per_user).astype(np.int64).tolist()
        grouped._begins = np.cumsum([0, *grouped._lengths])[:-1].tolist()
        ends = list(grouped._begins)
        for events in self:
            parts = part_of_user[events["user"]]
            order = np.argsort(parts, kind="stable")
            found, begins = np.unique(parts[order], return_index=True)
            for part, of_part in zip(
                found.tolist(), np.split(events[order], begins[1:]), strict=True
            ):
                grouped._write(ends[part], of_part)
                ends[part] += len(of_part)
        return grouped

    def column(self, length: int, dtype: npt.DTypeLike) -> np.memmap:
        """Returns an array of zeros on the same file system, which is gone likewise."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.truncate(length * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, "r+", shape=(length,))

    def _write(self, begin: int, events: Events) -> None:
        self._file.seek(begin * EVENT.itemsize)
        self._file.write(np.ascontiguousarray(events).view(np.uint8).data)
