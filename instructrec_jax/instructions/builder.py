"""Builds instruction records (artefact C) from prepared data (A) and a teacher's texts (B).

Any range of the records of any split can be built alone, and by itself gives what a run over all of
them gives: files can be written in parallel, on many machines, or again after a kill.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.columnar import (
    HELD_OUT,
    LEAVE_ONE_OUT,
    PRODUCT_SEARCH,
    TRAIN,
)
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.leaks import quotes_title
from instructrec_jax.instructions.search_events import SearchEvents
from instructrec_jax.instructions.train_negatives import (
    RULES,
    UNIFORM,
    Asked,
    CatalogueRanker,
    TrainNegatives,
)
from instructrec_jax.records import (
    Annotation,
    CandidateList,
    History,
    InstructionRecord,
    TeacherTexts,
)
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import MAX_CANDIDATES, Count, OneOf, Range, Seed, check_fields

# Users whose texts stand for a product-search query: a record keeps several teacher texts.
NUM_SEARCH_TEXTS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What decides the records beside the prepared data and the texts.

    Attributes:
      num_train_negatives: negatives beside the target of a training record.
      train_negatives: what they are: "uniform" over the catalogue; by "popularity", as often as
        training histories have them; or "matched" with the target, items next to it in the order of
        the untrained co-occurrence scorer, for ranking the best items of a retriever.
      max_train_positions: most recent training targets of each user; all without it.
      shuffled_labels: the target of a training record is drawn among its candidates: a model that
        learns from such records must fall to chance, and `report` checks those that it is given.
      states_time: fill the context of a record with the month of its target event.
      seed: of the negatives and of the order of training records.
    """

    num_train_negatives: Annotated[int, Range(1, MAX_CANDIDATES)] = 9
    train_negatives: Annotated[str, OneOf(tuple(RULES))] = UNIFORM
    max_train_positions: Count | None = None
    shuffled_labels: bool = False
    states_time: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


class RecordBuilder:
    """Builds the records of one dataset."""

    def __init__(
        self,
        data: PreparedData,
        settings: RecordSettings,
        texts: TeacherTexts | None,
        *,
        ranker: CatalogueRanker | None = None,
    ) -> None:
        """Takes what all records are made from.

        Args:
          data: artefact A.
          settings: what else decides.
          texts: artefact B; None for records without preferences and vague intentions.
          ranker: in whose order "matched" negatives stand beside their target; it must not have
            seen the held-out events.
        """
        self._data, self._settings, self._texts = data, settings, texts
        self._negatives = TrainNegatives(
            data,
            rule=settings.train_negatives,
            number=settings.num_train_negatives,
            seed=settings.seed,
            ranker=ranker,
        )
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
        self, config: str, split: str, numbers: range, counts: Counter[str] | None = None
    ) -> Iterator[InstructionRecord]:
        """Yields the records with these numbers, in order.

        Training records are in seeded random order, because readers shuffle within a window only;
        held-out ones in that of the prepared candidates.

        Args:
          config: "leave_one_out" or "product_search".
          split: "train", "validation" or "test".
          numbers: of the records, from 0.
          counts: what `TrainNegatives.draw` counts is added to it.
        """
        counts = Counter() if counts is None else counts
        if split != TRAIN:
            yield from self._evaluation_records(config, split, numbers)
            return
        size = self._negatives.block
        for begin in range(numbers.start, numbers.stop, size):
            some = slice(begin, min(begin + size, numbers.stop))
            if config == LEAVE_ONE_OUT:
                made = self._training_records(self._positions[some].tolist(), counts)
            else:
                made = self._search_records(self._search_items[some].tolist(), counts)
            yield from map(self._labelled, made)

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

    def _labelled(self, record: InstructionRecord) -> InstructionRecord:
        """Returns a training record with its own target, or with one that says nothing."""
        if not self._settings.shuffled_labels:
            return record
        rng = np.random.default_rng(stable_seed(self._settings.seed, "label", record.example_id))
        index = int(rng.integers(len(record.candidates)))
        chosen = {"target_id": record.candidate_ids[index], "target": record.candidates[index]}
        return dataclasses.replace(record, **chosen)  # type: ignore[arg-type]

    def _training_records(
        self, positions: Sequence[tuple[int, int]], counts: Counter[str]
    ) -> Iterator[InstructionRecord]:
        """Yields the records of training positions (user, position).

        The specific intention is withheld where the target belongs to the held-out pairs of
        product search: such a pair is never trained on (PAPER section 7, reading 8).

        Held-out items are negatives like all others, a user's own and those of product search:
        where training avoids them, an item that was never a negative is likely to be the answer.
        """
        asked = [self._asked(user, position) for user, position in positions]
        drawn = self._negatives.draw(asked, counts)
        for (user, position), one, candidate_ids in zip(positions, asked, drawn, strict=True):
            history = self._data.histories[user]
            row = _training_row(one, LEAVE_ONE_OUT, history.user_id, position, candidate_ids)
            record = self._personal_record(row, user, history)
            if one.target in self._held_out:
                record = dataclasses.replace(record, specific_intention="")
            yield record

    def _asked(self, user: int, position: int) -> Asked:
        """Returns what the candidates of a training position depend on."""
        history = self._data.histories[user]
        items = history.item_ids
        held_out, known = set(items[-len(HELD_OUT) :]), set(items[: -len(HELD_OUT)])
        seen = self._data.seen_items[user].tolist()
        return Asked(
            example_id=f"{history.user_id}:{position}",
            target=items[position],
            excluded=frozenset(item for item in seen if item in known or item not in held_out),
            history=items[:position],
        )

    def _search_records(
        self, item_ids: Sequence[int], counts: Counter[str]
    ) -> Iterator[InstructionRecord]:
        """Yields the training records of items that are searched for."""
        asked = [
            Asked(example_id=f"item:{item}", target=item, excluded=frozenset(), history=None)
            for item in item_ids
        ]
        for one, drawn in zip(asked, self._negatives.draw(asked, counts), strict=True):
            yield self._search_record(_training_row(one, PRODUCT_SEARCH, "", -1, drawn))

    def _evaluation_records(
        self, config: str, split: str, numbers: range
    ) -> Iterator[InstructionRecord]:
        """Yields the records of frozen candidate lists."""
        rows = self._evaluation(config, split)
        users = rows.columns.history_rows
        for number, row in zip(numbers, rows.block(numbers.start, numbers.stop), strict=True):
            if config == PRODUCT_SEARCH:
                yield self._search_record(row)
            else:
                user = int(users[number])
                yield self._personal_record(row, user, self._data.histories[user])

    def _personal_record(
        self, row: CandidateList, user: int, history: History
    ) -> InstructionRecord:
        """Returns the record of a user's position; nothing after it is read."""
        context = ""
        if self._settings.states_time and history.times:
            context = _month(history.times[row.position], history.user_id)
        preferences, intentions = [], []
        if self._texts is not None:
            preferences.append(self._texts.preference(user, row.position))
            intentions.append(self._texts.intentions(user, row.position))
        return self._record(
            row,
            history=self._titles(history.item_ids[: row.position]),
            preferences=preferences,
            intentions=intentions,
            context=context,
        )

    def _search_record(self, row: CandidateList) -> InstructionRecord:
        """Returns the record of an item that is searched for without a history.

        Its texts are those on users who chose it, the first of each that does not quote its title,
        at positions of the same split: a text that is trained on as one user's is never a held-out
        query.
        """
        if self._texts is None:
            return self._record(row)
        rng = np.random.default_rng(
            stable_seed(self._settings.seed, self._data.dataset, row.example_id, "texts")
        )
        events = self._events(row.split).draw(row.target_id, number=NUM_SEARCH_TEXTS, rng=rng)
        title = self._data.items[row.target_id].title
        return self._record(
            row,
            preferences=[_first(self._texts.preference(*event), title) for event in events],
            intentions=[_first(self._texts.intentions(*event), title) for event in events],
        )

    def _record(
        self,
        row: CandidateList,
        *,
        history: tuple[str, ...] = (),
        preferences: Sequence[Annotation] = (),
        intentions: Sequence[Annotation] = (),
        context: str = "",
    ) -> InstructionRecord:
        """Returns the record of one example."""
        target = self._data.items[row.target_id]
        written = [text for text in (*preferences, *intentions) if text.texts or text.second_texts]
        return InstructionRecord(
            example_id=row.example_id,
            user_id=row.user_id,
            position=row.position,
            history=history,
            preference=_distinct(text.texts for text in preferences),
            vague_intention=_distinct(text.texts for text in intentions),
            second_vague_intention=_distinct(text.second_texts for text in intentions),
            specific_intention=target.category,
            context=context,
            teacher=", ".join(dict.fromkeys(text.version for text in written)),
            target_id=row.target_id,
            target=target.title,
            candidate_ids=row.candidate_ids,
            candidates=self._titles(row.candidate_ids),
        )

    def _titles(self, item_ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._data.items[item_id].title for item_id in item_ids)


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


def _first(annotation: Annotation, title: str) -> Annotation:
    """Returns the first text of each kind that does not give a title away."""

    def first(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(itertools.islice((t for t in texts if not quotes_title(t, title)), 1))

    return dataclasses.replace(
        annotation, texts=first(annotation.texts), second_texts=first(annotation.second_texts)
    )


def _distinct(texts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Returns all texts in order, each once."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(texts)))


def _training_row(
    asked: Asked, protocol: str, user_id: str, position: int, drawn: tuple[int, ...]
) -> CandidateList:
    """Returns a training example in the form of the frozen ones."""
    return CandidateList(
        example_id=asked.example_id,
        protocol=protocol,
        split=TRAIN,
        user_id=user_id,
        position=position,
        target_id=asked.target,
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


def _month(seconds: int, user_id: str) -> str:
    """Returns the month of a time in seconds since 1970, such as "May 2014"."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise UserError(
            f"user {user_id!r} has the time {seconds}, expected seconds since 1970; run "
            "`instructrec prepare` again, which checks the log's times"
        ) from None
    return f"{_MONTHS[moment.month - 1]} {moment.year}"
