"""Builds instruction records (artefact C) from prepared data and a teacher's texts.

Any range of the records of any split can be built alone, and by itself gives what a run over all of
them gives: files can be written in parallel, on many machines, or again after a kill.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from instructrec_jax.data import candidates, titles
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, PRODUCT_SEARCH
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.splits import TEST, TRAIN, VALIDATION
from instructrec_jax.instructions.search_events import SearchEvents
from instructrec_jax.records import (
    CandidateList,
    History,
    InstructionRecord,
    Intentions,
    Item,
    Teacher,
)
from instructrec_jax.seeds import stable_seed

CONFIGS = (LEAVE_ONE_OUT, PRODUCT_SEARCH)
SPLITS = (TRAIN, VALIDATION, TEST)
HELD_OUT = (VALIDATION, TEST)
# Users whose texts stand for a product-search query: a record keeps several teacher texts.
NUM_SEARCH_TEXTS = 3

Tally = collections.Counter[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What decides the records beside the prepared data and the teacher.

    Attributes:
      num_train_negatives: negatives beside the target of a training record.
      max_train_positions: most recent training targets of each user; None for all.
      states_time: whether the context of a record is the month of its target event.
      seed: of the negatives and of the order of training records.
    """

    num_train_negatives: int = 9
    max_train_positions: int | None = None
    states_time: bool = False
    seed: int = 0


class RecordBuilder:
    """Builds the records of one dataset."""

    def __init__(
        self, data: PreparedData, settings: RecordSettings, teacher: Teacher | None
    ) -> None:
        """Takes what all records are made from.

        Args:
          data: artefact A.
          settings: what else decides.
          teacher: who writes preferences and intentions; None for records without them.
        """
        self._data, self._settings, self._teacher = data, settings, teacher
        self._title_ids = titles.title_ids([item.title for item in data.items])
        self._held_out = frozenset(
            item for item, split in enumerate(data.search_splits) if split in HELD_OUT
        )
        self._events = functools.cache(lambda split: SearchEvents(data.histories, split=split))
        self._evaluation = functools.cache(data.evaluation)

    def num_records(self, config: str, split: str) -> int:
        """Returns how many records there are.

        Args:
          config: "leave_one_out" or "product_search".
          split: "train", "validation" or "test".
        """
        if split != TRAIN:
            return len(self._evaluation(config, split))
        return len(self._positions if config == LEAVE_ONE_OUT else self._search_items)

    def records(
        self, config: str, split: str, numbers: range, tally: Tally
    ) -> Iterator[InstructionRecord]:
        """Yields the records with these numbers, in order.

        Training records are in seeded random order, because readers shuffle within a window only;
        held-out ones in that of the prepared candidates.

        Args:
          config: "leave_one_out" or "product_search".
          split: "train", "validation" or "test".
          numbers: of the records, from 0.
          tally: gets the number of teacher texts that were left out, by reason.
        """
        if split != TRAIN:
            yield from self._evaluation_records(config, split, numbers, tally)
        elif config == LEAVE_ONE_OUT:
            for user, position in self._positions[numbers.start : numbers.stop].tolist():
                yield self._training_record(user, position, tally)
        else:
            for item_id in self._search_items[numbers.start : numbers.stop].tolist():
                example_id = f"item:{item_id}"
                drawn = self._draw(example_id, item_id, self._held_out)
                row = _training_row(example_id, PRODUCT_SEARCH, "", -1, item_id, drawn)
                yield self._search_record(row, tally)

    @functools.cached_property
    def _positions(self) -> npt.NDArray[np.int32]:
        lengths = np.diff(self._data.histories.starts)
        return training_positions(
            lengths, max_positions=self._settings.max_train_positions, seed=self._settings.seed
        )

    @functools.cached_property
    def _search_items(self) -> npt.NDArray[np.int64]:
        members = np.flatnonzero(np.array(self._data.search_splits) == TRAIN)
        rng = np.random.default_rng(stable_seed(self._settings.seed, "search order"))
        return members[rng.permutation(len(members))]

    def _training_record(self, user: int, position: int, tally: Tally) -> InstructionRecord:
        """Returns the record of one training position.

        The specific intention is withheld where the target belongs to the held-out pairs of
        product search: such a pair is never trained on (PAPER section 7, reading 8).
        """
        history = self._data.histories[user]
        target = history.item_ids[position]
        example_id = f"{history.user_id}:{position}"
        excluded = frozenset(self._data.seen_items[user].tolist())
        drawn = self._draw(example_id, target, excluded)
        row = _training_row(example_id, LEAVE_ONE_OUT, history.user_id, position, target, drawn)
        record = self._personal_record(row, history, tally)
        if target in self._held_out:
            record = dataclasses.replace(record, specific_intention="")
        return record

    def _evaluation_records(
        self, config: str, split: str, numbers: range, tally: Tally
    ) -> Iterator[InstructionRecord]:
        """Yields the records of frozen candidate lists."""
        rows = self._evaluation(config, split)
        users = rows.columns.history_rows
        for number, row in zip(numbers, rows.block(numbers.start, numbers.stop), strict=True):
            if config == PRODUCT_SEARCH:
                yield self._search_record(row, tally)
            else:
                yield self._personal_record(row, self._data.histories[int(users[number])], tally)

    def _personal_record(
        self, row: CandidateList, history: History, tally: Tally
    ) -> InstructionRecord:
        """Returns the record of a user's position; the teacher reads nothing after it."""
        earlier = self._items(history.item_ids[: row.position])
        wishes = self._intentions(history, row.position, tally)
        context = ""
        if self._settings.states_time and history.times:
            moment = datetime.fromtimestamp(history.times[row.position], UTC)
            context = f"{_MONTHS[moment.month - 1]} {moment.year}"
        return self._record(
            row,
            history=tuple(item.title for item in earlier),
            preference=self._preferences(earlier),
            vague_intention=wishes.vague,
            second_vague_intention=wishes.second_vague,
            context=context,
        )

    def _search_record(self, row: CandidateList, tally: Tally) -> InstructionRecord:
        """Returns the record of an item that is searched for without a history.

        Its teacher texts are those of users who chose it, at positions of the same split: a text
        that is trained on as one user's is never a held-out query.
        """
        if self._teacher is None:
            return self._record(row)
        preference: dict[str, None] = {}
        vague: dict[str, None] = {}
        second_vague: dict[str, None] = {}
        for user, position in self._events(row.split).draw(
            row.target_id,
            number=NUM_SEARCH_TEXTS,
            rng=np.random.default_rng(
                stable_seed(self._settings.seed, self._data.dataset, row.example_id, "texts")
            ),
        ):
            history = self._data.histories[user]
            wishes = self._intentions(history, position, tally)
            earlier = self._items(history.item_ids[:position])
            preference |= dict.fromkeys(self._preferences(earlier)[:1])
            vague |= dict.fromkeys(wishes.vague[:1])
            second_vague |= dict.fromkeys(wishes.second_vague[:1])
        return self._record(
            row,
            preference=tuple(preference),
            vague_intention=tuple(vague),
            second_vague_intention=tuple(second_vague),
        )

    def _record(
        self,
        row: CandidateList,
        *,
        history: tuple[str, ...] = (),
        preference: tuple[str, ...] = (),
        vague_intention: tuple[str, ...] = (),
        second_vague_intention: tuple[str, ...] = (),
        context: str = "",
    ) -> InstructionRecord:
        """Returns the record of one example."""
        target = self._data.items[row.target_id]
        is_taught = bool(preference or vague_intention or second_vague_intention)
        return InstructionRecord(
            example_id=row.example_id,
            user_id=row.user_id,
            position=row.position,
            history=history,
            preference=preference,
            vague_intention=vague_intention,
            second_vague_intention=second_vague_intention,
            specific_intention=target.category,
            context=context,
            teacher=self._teacher.name if self._teacher and is_taught else "",
            target_id=row.target_id,
            target=target.title,
            candidate_ids=row.candidate_ids,
            candidates=tuple(item.title for item in self._items(row.candidate_ids)),
        )

    def _items(self, item_ids: Sequence[int]) -> list[Item]:
        return [self._data.items[item_id] for item_id in item_ids]

    def _preferences(self, earlier: Sequence[Item]) -> tuple[str, ...]:
        """Returns the teacher's texts on a history."""
        return self._teacher.preferences(earlier) if self._teacher and earlier else ()

    def _intentions(self, history: History, position: int, tally: Tally) -> Intentions:
        """Returns what the teacher makes of the user's review of an item."""
        row = history.review_rows[position] if history.review_rows else -1
        if self._teacher is None or row < 0:
            return Intentions()
        target = self._data.items[history.item_ids[position]]
        found = self._teacher.intentions(self._data.reviews[row], target)
        tally.update({f"intentions_{reason}": n for reason, n in found.rejected.items()})
        return found

    def _draw(self, example_id: str, target: int, excluded: frozenset[int]) -> tuple[int, ...]:
        """Returns a training record's candidates, by the rule of the evaluation's.

        Product search excludes every held-out item, even as a negative: a model would learn that
        such items are never what is searched for.
        """
        return candidates.draw_candidates(
            self._title_ids,
            excluded=excluded,
            target=target,
            num_candidates=self._settings.num_train_negatives + 1,
            rng=candidates.example_rng(
                example_id, dataset=self._data.dataset, split=TRAIN, seed=self._settings.seed
            ),
            allow_fewer=True,
        )


def training_positions(
    lengths: npt.NDArray[np.int64], *, max_positions: int | None, seed: int
) -> npt.NDArray[np.int32]:
    """Returns [n, 2] int32 (user index, position) of every training example, in seeded order.

    Training targets are the items between the first, which has no history, and the last two,
    which are held out.

    Args:
      lengths: [users], items of each history.
      max_positions: most recent training targets to take of each user; None for all.
      seed: of the order.

    Example:
      one history of 5 items gives the positions 1 and 2.
    """
    ends = lengths - len(HELD_OUT)
    firsts = np.ones_like(ends)
    if max_positions is not None:
        firsts = np.maximum(firsts, ends - max_positions)
    numbers = np.maximum(ends - firsts, 0)
    pairs = np.empty((int(numbers.sum()), 2), dtype=np.int32)
    pairs[:, 0] = np.repeat(np.arange(len(lengths), dtype=np.int32), numbers)
    begins = np.cumsum(numbers) - numbers
    pairs[:, 1] = np.arange(len(pairs)) - np.repeat(begins - firsts, numbers)
    return pairs[np.random.default_rng(stable_seed(seed, "training order")).permutation(len(pairs))]


def _training_row(
    example_id: str,
    protocol: str,
    user_id: str,
    position: int,
    target: int,
    drawn: tuple[int, ...],
) -> CandidateList:
    """Returns a training example in the form of the frozen ones."""
    return CandidateList(
        example_id=example_id,
        protocol=protocol,
        split=TRAIN,
        user_id=user_id,
        position=position,
        target_id=target,
        candidate_ids=drawn,
    )


# Written out, because the library's names change with the locale.
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
