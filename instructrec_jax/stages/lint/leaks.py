"""What `lint` looks for in every record: repeated ids, and what gives an answer away."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.columnar import CONFIGS, HELD_OUT, SPLITS, TRAIN
from instructrec_jax.instructions.leaks import is_foreign, quoting
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.pipeline.record_store import Columns, column_batches

NUM_EXAMPLES = 3  # example ids that a finding names
_MAX_HASHES = 2**25  # ids held at a time, 8 bytes each; more of them take more passes
_MAX_NAMED = 1000
_FIELDS = (
    *("example_id", "target_id", "target", "candidate_ids", "history", "preference"),
    *("vague_intention", "second_vague_intention", "specific_intention"),
)
REPEATED, IN_TWO_SPLITS = "ids_twice_in_a_split", "ids_in_two_splits"
INTENTION, PREFERENCE = "intentions_quoting_the_target", "preferences_quoting_the_target"
SEARCH_PREFERENCE = "search_preferences_quoting_the_target"
HELD_OUT_PAIR, NO_CANDIDATE = "held_out_searches_in_training", "targets_not_among_candidates"
SAME_INTENTION, REPEAT_PURCHASE = "equal_intentions_in_training", "repeat_purchases"
# What is said of each number that ought to be 0.
_MESSAGES = {
    REPEATED: (Severity.ERROR, "{n} records have the id of another one of their split"),
    IN_TWO_SPLITS: (Severity.ERROR, "leak: {n} example ids are in two splits"),
    INTENTION: (
        Severity.ERROR,
        "leak: {n} records have a vague intention that quotes the title of their target",
    ),
    PREFERENCE: (
        Severity.ERROR,
        "leak: {n} records have a preference that quotes the title of their target, in words that "
        "the history does not have",
    ),
    HELD_OUT_PAIR: (
        Severity.ERROR,
        "leak: {n} training records hold a query and item that product search holds out",
    ),
    NO_CANDIDATE: (Severity.ERROR, "{n} records do not have their target among the candidates"),
    SEARCH_PREFERENCE: (
        Severity.WARNING,
        "{n} records without a history have a preference that quotes the title of their target: a "
        "taste for its series or maker, unless they are many",
    ),
    SAME_INTENTION: (
        Severity.WARNING,
        "{n} training records have the vague intention and the target of a held-out record, a "
        "coincidence of short texts unless they are many",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordTally:
    """What all records of a dataset were found to hold.

    Attributes:
      num_records: how many were read.
      counts: number of records by what was found, 0 included.
      examples: the first example ids by what was found.
    """

    num_records: int
    counts: Mapping[str, int]
    examples: Mapping[str, Sequence[str]]

    @property
    def findings(self) -> list[Finding]:
        """A finding for each number that ought to be 0 and is not."""
        return [
            Finding(
                severity=severity,
                subject="records",
                message=f"{message.format(n=self.counts[name])}: "
                + ", ".join(self.examples[name])
                + (" ..." if self.counts[name] > len(self.examples[name]) else ""),
            )
            for name, (severity, message) in _MESSAGES.items()
            if self.counts[name]
        ]


def check_records(dataset: str) -> RecordTally:
    """Reads every record of a dataset of the data_dir in use.

    Args:
      dataset: its name.
    """
    tally = _Tally()
    for config in CONFIGS:
        _check_ids(dataset, config, tally)
    held_out = _held_out(dataset)
    num_records = 0
    for config in CONFIGS:
        for split in SPLITS:
            for batch in column_batches(dataset, config, split, _FIELDS):
                num_records += len(batch["example_id"])
                _check_batch(batch, tally)
                if split == TRAIN:
                    held_out.check(batch, tally)
    return RecordTally(
        num_records=num_records,
        counts={name: tally.counts[name] for name in (*_MESSAGES, REPEAT_PURCHASE)},
        examples=tally.examples,
    )


class _Tally:
    """Counts by what was found, with the first example ids."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, name: str, example_id: bytes) -> None:
        """Counts one record."""
        self.counts[name] += 1
        self.name(name, example_id)

    def name(self, name: str, example_id: bytes) -> None:
        """Remembers an example id, as long as there are few."""
        if len(self.examples[name]) < NUM_EXAMPLES:
            self.examples[name].append(example_id.decode())


def _check_ids(dataset: str, config: str, tally: _Tally, max_hashes: int = _MAX_HASHES) -> None:
    """Finds ids that occur twice, from hashes: the ids of a large dataset are too much to hold."""
    num_ids = sum(len(ids) for split in SPLITS for ids in _ids(dataset, config, split))
    num_passes = max(1, -(-num_ids // max_hashes))
    repeated: set[int] = set()
    shared: set[int] = set()
    for number in range(num_passes):
        earlier = np.empty(0, np.int64)
        for split in SPLITS:
            hashes = np.fromiter(
                (
                    value
                    for ids in _ids(dataset, config, split)
                    for value in map(hash, ids)
                    if value % num_passes == number
                ),
                np.int64,
            )
            found, occurrences = np.unique(hashes, return_counts=True)
            both = np.intersect1d(found, earlier, assume_unique=True)
            tally.counts[REPEATED] += len(hashes) - len(found)
            tally.counts[IN_TWO_SPLITS] += len(both)
            repeated.update(found[occurrences > 1][:_MAX_NAMED].tolist())
            shared.update(both[:_MAX_NAMED].tolist())
            earlier = np.union1d(earlier, found)
    if repeated or shared:
        # In order of ids: the order of a set of bytes is another one in each process.
        for example_id in sorted({e for s in SPLITS for b in _ids(dataset, config, s) for e in b}):
            for name, hashes_of in ((REPEATED, repeated), (IN_TWO_SPLITS, shared)):
                if hash(example_id) in hashes_of:
                    tally.name(name, example_id)


def _ids(dataset: str, config: str, split: str) -> Iterator[list[bytes]]:
    """Yields the example ids of a split, some thousand at a time."""
    for batch in column_batches(dataset, config, split, ("example_id",)):
        yield batch["example_id"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """What must not be trained on.

    Attributes:
      searches: (query, target) of the held-out records of product search.
      intentions: [n] sorted hashes of (vague intention, target) of all held-out records.
    """

    searches: frozenset[tuple[bytes, int]]
    intentions: npt.NDArray[np.int64]

    def check(self, batch: Columns, tally: _Tally) -> None:
        """Looks for what is held out in training records."""
        searches = zip(batch["specific_intention"], batch["target_id"], strict=True)
        for example_id, search in zip(batch["example_id"], searches, strict=True):
            if search in self.searches:
                tally.add(HELD_OUT_PAIR, example_id)
        rows, hashes = _intentions(batch)
        for row in np.unique(rows[np.isin(hashes, self.intentions)]).tolist():
            tally.add(SAME_INTENTION, batch["example_id"][row])


def _held_out(dataset: str) -> _HeldOut:
    """Collects what must not be trained on."""
    fields = ("specific_intention", "target_id", "vague_intention", "second_vague_intention")
    searches: set[tuple[bytes, int]] = set()
    intentions = [np.empty(0, np.int64)]
    for config in CONFIGS:
        for split in HELD_OUT:
            for batch in column_batches(dataset, config, split, fields):
                intentions.append(_intentions(batch)[1])
                if config == "product_search":
                    pairs = zip(batch["specific_intention"], batch["target_id"], strict=True)
                    searches.update(pair for pair in pairs if pair[0])
    return _HeldOut(searches=frozenset(searches), intentions=np.unique(np.concatenate(intentions)))


def _intentions(batch: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns [n] row and [n] hash of every (vague intention, target) of a batch."""
    found = [
        (row, hash((text, target)))
        for row, (target, *texts) in enumerate(
            zip(
                batch["target_id"],
                batch["vague_intention"],
                batch["second_vague_intention"],
                strict=True,
            )
        )
        for text in (*texts[0], *texts[1])
    ]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _check_batch(batch: Columns, tally: _Tally) -> None:
    """Looks at every record by itself."""
    for example_id, target_id, title, candidate_ids, titles, preference, *intentions, _ in zip(
        *(batch[name] for name in _FIELDS), strict=True
    ):
        if target_id not in candidate_ids:
            tally.add(NO_CANDIDATE, example_id)
        if title in titles:
            tally.counts[REPEAT_PURCHASE] += 1
        target = title.decode()
        if quoting((text.decode() for text in (*intentions[0], *intentions[1])), target):
            tally.add(INTENTION, example_id)
        if found := quoting((text.decode() for text in preference), target):
            history = [item.decode() for item in titles]
            if not history:
                tally.add(SEARCH_PREFERENCE, example_id)
            elif any(is_foreign(text, target, history) for text in found):
                tally.add(PREFERENCE, example_id)
