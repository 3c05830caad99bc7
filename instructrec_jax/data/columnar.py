"""Histories, item sets and candidate lists in flat columns, one number per entry.

A log of 10^7 events has about as many history entries: as Python records they would take
gigabytes. Each class is a sequence of records, which are made from the columns when asked for; the
columns are public for work on all records at once.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instructrec_jax.records import CandidateList, History

TRAIN, VALIDATION, TEST = "train", "validation", "test"
LEAVE_ONE_OUT, PRODUCT_SEARCH = "leave_one_out", "product_search"
CONFIGS, SPLITS = (LEAVE_ONE_OUT, PRODUCT_SEARCH), (TRAIN, VALIDATION, TEST)
HELD_OUT = (VALIDATION, TEST)
_BLOCK = 4096  # records made at a time where all are walked through
_Record = TypeVar("_Record")


class Lazy(Sequence[_Record], Generic[_Record]):
    """A sequence whose records are made from columns whenever they are asked for."""

    def block(self, begin: int, end: int) -> list[_Record]:
        """Returns the records `begin` .. `end` - 1; both lie within the sequence."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> _Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Record]: ...
    def __getitem__(self, index: int | slice) -> _Record | Sequence[_Record]:
        """Returns one record, or the records of a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]  # counts negative ones from the end; IndexError beyond it
        return self.block(number, number + 1)[0]

    def __iter__(self) -> Iterator[_Record]:
        """Yields the records in order, made block by block."""
        for begin in range(0, len(self), _BLOCK):
            yield from self.block(begin, min(begin + _BLOCK, len(self)))


class ItemSets(Lazy[npt.NDArray[np.int32]]):
    """For each user the distinct items of the whole sequence, ascending, as int32 arrays.

    Attributes:
      item_ids: [total] int32, user after user.
      starts: [users + 1] int64, where each user's items begin; the last is the total.
    """

    def __init__(self, item_ids: npt.NDArray[np.int32], starts: npt.NDArray[np.int64]) -> None:
        self.item_ids, self.starts = item_ids, starts

    def __len__(self) -> int:
        """Returns the number of users."""
        return len(self.starts) - 1

    def block(self, begin: int, end: int) -> list[npt.NDArray[np.int32]]:
        """Returns views of the column."""
        bounds = self.starts[begin : end + 1].tolist()
        return [self.item_ids[first:last] for first, last in pairwise(bounds)]


class Histories(Lazy[History]):
    """The users' histories.

    Attributes:
      user_ids: [users] Arrow strings, as in the raw log.
      item_ids: [total] int32, history after history, oldest item first.
      starts: [users + 1] int64, where each history begins; the last is the total.
      times: [total] int64 seconds since 1970; [0] where the log has no such times.
      review_rows: [total] int32 indices into `PreparedData.reviews`, -1 for none; [0] where the log
        has no reviews.
    """

    def __init__(
        self,
        user_ids: pa.StringArray,
        item_ids: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64],
        *,
        times: npt.NDArray[np.int64] | None = None,
        review_rows: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.user_ids, self.item_ids, self.starts = user_ids, item_ids, starts
        self.times = np.zeros(0, dtype=np.int64) if times is None else times
        self.review_rows = np.zeros(0, dtype=np.int32) if review_rows is None else review_rows

    def with_review_rows(self, review_rows: npt.NDArray[np.int32]) -> "Histories":
        """Returns the same histories with the indices of reviews, [total] int32."""
        return Histories(
            self.user_ids, self.item_ids, self.starts, times=self.times, review_rows=review_rows
        )

    def from_end(self) -> npt.NDArray[np.int64]:
        """Returns [total] int64, 1 for the last item of a history, 2 for the one before it."""
        return np.repeat(self.starts[1:], np.diff(self.starts)) - np.arange(len(self.item_ids))

    def __len__(self) -> int:
        """Returns the number of users."""
        return len(self.starts) - 1

    def block(self, begin: int, end: int) -> list[History]:
        """Returns records of Python numbers."""
        bounds = self.starts[begin : end + 1].tolist()
        first, last = bounds[0], bounds[-1]
        items, times, rows = (
            column[first:last].tolist() for column in (self.item_ids, self.times, self.review_rows)
        )
        return [
            History(
                user_id=user_id,
                item_ids=tuple(items[a - first : b - first]),
                times=tuple(times[a - first : b - first]),
                review_rows=tuple(rows[a - first : b - first]),
            )
            for user_id, (a, b) in zip(
                self.user_ids.slice(begin, end - begin).to_pylist(), pairwise(bounds), strict=True
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CandidateColumns:
    """Candidate lists as numbers.

    Attributes:
      history_rows: [lists] int32, index of the user's history; -1 in product search.
      positions: [lists] int32, of the target in the history; -1 in product search.
      target_ids: [lists] int32.
      is_test: [lists] bool; the others are of the validation split.
      starts: [lists + 1] int64, where each list's candidates begin; the last is the total.
      candidate_ids: [total] int32, list after list, each in its seeded order.
    """

    history_rows: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    target_ids: npt.NDArray[np.int32]
    is_test: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]
    candidate_ids: npt.NDArray[np.int32]

    def where(self, *, protocol: str, split: str) -> "CandidateColumns":
        """Returns the lists of one protocol and split, in the same order."""
        is_wanted = (self.history_rows >= 0) == (protocol == LEAVE_ONE_OUT)
        is_wanted &= self.is_test == (split == TEST)
        lengths = np.diff(self.starts)
        return CandidateColumns(
            history_rows=self.history_rows[is_wanted],
            positions=self.positions[is_wanted],
            target_ids=self.target_ids[is_wanted],
            is_test=self.is_test[is_wanted],
            starts=starts_of(lengths[is_wanted]),
            candidate_ids=self.candidate_ids[np.repeat(is_wanted, lengths)],
        )

    @classmethod
    def joined(cls, parts: Sequence["CandidateColumns"]) -> "CandidateColumns":
        """Returns the lists of all parts, one after the other; at least one part is given."""
        joined: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(cls)
            if field.name != "starts"
        }
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(**joined, starts=starts_of(lengths))


class Candidates(Lazy[CandidateList]):
    """Candidate lists; those of a file are read when they are asked for.

    Attributes:
      histories: those that the lists' `history_rows` point to.
    """

    def __init__(
        self,
        histories: Histories,
        columns: CandidateColumns | None = None,
        *,
        load: Callable[[str | None, str | None], CandidateColumns] | None = None,
    ) -> None:
        """Takes the columns themselves, or else the way to read them.

        Args:
          histories: of the same data.
          columns: the lists.
          load: returns the lists of a protocol and split, or all lists for (None, None).
        """
        self.histories = histories
        self._columns, self._load = columns, load

    @property
    def columns(self) -> CandidateColumns:
        """The lists as numbers."""
        if self._columns is None:
            assert self._load is not None
            self._columns = self._load(None, None)
        return self._columns

    def select(self, *, protocol: str, split: str) -> "Candidates":
        """Returns the lists of one protocol and split; only they are kept where a file is read."""
        if self._columns is None and self._load is not None:
            return Candidates(self.histories, self._load(protocol, split))
        return Candidates(self.histories, self.columns.where(protocol=protocol, split=split))

    def __len__(self) -> int:
        """Returns the number of lists."""
        return len(self.columns.target_ids)

    def example_ids(self, begin: int = 0, end: int | None = None) -> list[str]:
        """Returns the ids of the lists `begin` .. `end` - 1, made from user, position and draw."""
        columns = self.columns
        targets, positions = columns.target_ids[begin:end], columns.positions[begin:end]
        return [
            (f"{user}:{position}" if position >= 0 else f"item:{target}")
            + (f"#{draw}" if draw > 1 else "")
            for user, target, position, draw in zip(
                self.user_ids(begin, end),
                targets.tolist(),
                positions.tolist(),
                self.draws[begin:end].tolist(),
                strict=True,
            )
        ]

    @functools.cached_property
    def draws(self) -> npt.NDArray[np.int64]:
        """[lists] 1 for the first list of an event, 2 for its next one, and so on."""
        columns = self.columns
        event = (columns.history_rows, columns.positions, columns.target_ids)
        numbers = np.arange(len(self))
        begins = np.ones(len(self), dtype=np.bool_)
        begins[1:] = np.any([column[1:] != column[:-1] for column in event], axis=0)
        return numbers - np.maximum.accumulate(np.where(begins, numbers, 0)) + 1

    def user_ids(self, begin: int = 0, end: int | None = None) -> list[str]:
        """Returns the users of the lists `begin` .. `end` - 1, "" in product search."""
        rows = self.columns.history_rows[begin:end]
        users = self.histories.user_ids.take(pa.array(rows, mask=rows < 0))
        return users.fill_null("").to_pylist()

    def block(self, begin: int, end: int) -> list[CandidateList]:
        """Returns records of Python numbers."""
        columns = self.columns
        bounds = columns.starts[begin : end + 1].tolist()
        ids = columns.candidate_ids[bounds[0] : bounds[-1]].tolist()
        return [
            CandidateList(
                example_id=example_id,
                protocol=LEAVE_ONE_OUT if position >= 0 else PRODUCT_SEARCH,
                split=TEST if is_test else VALIDATION,
                user_id=user,
                position=position,
                target_id=target,
                candidate_ids=tuple(ids[a - bounds[0] : b - bounds[0]]),
            )
            for example_id, user, position, target, is_test, (a, b) in zip(
                self.example_ids(begin, end),
                self.user_ids(begin, end),
                columns.positions[begin:end].tolist(),
                columns.target_ids[begin:end].tolist(),
                columns.is_test[begin:end].tolist(),
                pairwise(bounds),
                strict=True,
            )
        ]


def starts_of(lengths: npt.NDArray[np.integer] | Sequence[int]) -> npt.NDArray[np.int64]:
    """Returns where runs of the given lengths begin, and at last where they end.

    Example:
      [2, 0, 3] -> [0, 2, 2, 5].
    """
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
