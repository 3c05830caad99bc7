"""Hard negatives: candidates from the lists of a retriever, such as the paper's matcher.

A file holds a user in each line, `user_id` and `item_ids` (raw ids, best first, blanks between
them), with those names in the first line; plain or gzip. It may hold items of the user's history,
and the target: they are no negatives.
"""

import dataclasses
import gzip
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from instructrec_jax import files
from instructrec_jax.data.candidates import example_rng
from instructrec_jax.data.columnar import (
    LEAVE_ONE_OUT,
    CandidateColumns,
    Candidates,
    starts_of,
)
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.readers.rows import fail, read_lines
from instructrec_jax.errors import UserError

HEADER = "user_id\titem_ids"
# What is removed of the lists, and why.
UNKNOWN_USERS, UNKNOWN_ITEMS = "lists_of_unknown_users", "unknown_items"
OF_THE_USER, TARGETS, SAME_TITLE = "items_of_the_user", "targets", "items_of_equal_title"
NO_LIST, TOO_SHORT = "examples_without_a_list", "examples_with_too_short_a_list"

Lists = Mapping[int, Sequence[int]]  # item ids, best first, by the index of a user's history


def read_lists(path: Path | str, data: PreparedData) -> tuple[Lists, Counter[str]]:
    """Reads the lists of a file.

    Args:
      path: the file.
      data: whose raw ids the file has.

    Returns:
      The lists, and what was left out of them by reason.

    Raises:
      UserError: for a damaged line, a user who has two lists, or a file of other data.
    """
    path = Path(path)
    items = {item.raw_id: item.item_id for item in data.items}
    users = {user: row for row, user in enumerate(data.histories.user_ids.to_pylist())}
    lists: dict[int, Sequence[int]] = {}
    dropped: Counter[str] = Counter()
    for number, line in read_lines(path):
        if number == 1:
            if line != HEADER:
                fail(path, 1, f"is {line[:60]!r}, expected the names {HEADER!r}")
            continue
        user, separator, named = line.partition("\t")
        if not separator:
            fail(path, number, "has no tab between user_id and item_ids")
        if (row := users.get(user)) is None:
            dropped[UNKNOWN_USERS] += 1
            continue
        if row in lists:
            fail(path, number, f"is another list of user {user!r}, expected one")
        ids = [items.get(raw) for raw in named.split()]
        lists[row] = tuple(dict.fromkeys(item for item in ids if item is not None))
        dropped[UNKNOWN_ITEMS] += ids.count(None)
    if not any(lists.values()):
        raise UserError(
            f"{path} names no user and item of {data.dataset}; expected raw ids as its log has "
            f"them, such as user {next(iter(users), '')!r} and item {next(iter(items), '')!r}"
        )
    return lists, dropped


def write_lists(
    path: Path | str, data: PreparedData, lists: Iterable[tuple[str, list[int]]]
) -> None:
    """Writes a gzip file that `read_lists` reads.

    Args:
      path: the file.
      data: whose raw ids are written.
      lists: user ids, and item ids best first.

    Raises:
      UserError: if a raw id holds a blank, which parts the ids of a list.
    """
    raw_ids = [item.raw_id for item in data.items]
    if broken := next((raw for raw in raw_ids if len(raw.split()) != 1), None):
        raise UserError(f"lists cannot name item {broken!r}: blanks part the ids of a list")
    with (
        files.atomic_file(path) as temporary,
        temporary.open("wb") as stream,
        gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed,
    ):
        packed.write(f"{HEADER}\n".encode())
        for user, own in lists:
            packed.write(f"{user}\t{' '.join(raw_ids[item] for item in own)}\n".encode())


def with_hard_negatives(
    data: PreparedData,
    lists: Lists,
    *,
    split: str,
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    num_candidates: int,
    seed: int,
) -> tuple[CandidateColumns, Counter[str]]:
    """Returns leave-one-out examples of a split: the target among the best of its user's list.

    An event has one example, however many lists it had. Examples whose list is missing, or too
    short after all that is removed, are left out.

    Args:
      data: artefact A, whose candidates are replaced.
      lists: see `read_lists`.
      split: "validation" or "test".
      title_ids: [items], equal for items of equal title, of which an example shows one.
      num_candidates: the target among them, at least 2.
      seed: of the order of an example's candidates.

    Returns:
      The examples, and what was removed or left out by reason.
    """
    drops: Counter[str] = Counter()
    examples = data.evaluation(LEAVE_ONE_OUT, split)
    columns = examples.columns
    is_first = examples.draws == 1
    example_ids = examples.example_ids()
    kept: list[int] = []
    chosen: list[int] = []
    for index in np.flatnonzero(is_first).tolist():
        row, target = int(columns.history_rows[index]), int(columns.target_ids[index])
        if row not in lists:
            drops[NO_LIST] += 1
            continue
        seen = frozenset(data.seen_items[row].tolist())
        own = _negatives(lists[row], seen, target, title_ids, drops)[: num_candidates - 1]
        if len(own) < num_candidates - 1:
            drops[TOO_SHORT] += 1
            continue
        own.append(target)
        example_rng(example_ids[index], dataset=data.dataset, split=split, seed=seed).shuffle(own)
        kept.append(index)
        chosen += own
    if not kept:
        raise UserError(
            f"no list leaves {num_candidates - 1} negatives of a {split} target; lower "
            "--num_candidates, or give longer lists"
        )
    found = CandidateColumns(
        history_rows=columns.history_rows[kept],
        positions=columns.positions[kept],
        target_ids=columns.target_ids[kept],
        is_test=columns.is_test[kept],
        starts=starts_of([num_candidates] * len(kept)),
        candidate_ids=np.array(chosen, np.int32),
    )
    return found, drops


def _negatives(
    items: Sequence[int],
    seen: frozenset[int],
    target: int,
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    drops: Counter[str],
) -> list[int]:
    """Returns the items of a list that may be negatives, in order, and counts the others."""
    found: list[int] = []
    titles = {title_ids[target]}
    for item in items:
        if item == target:
            drops[TARGETS] += 1
        elif item in seen:
            drops[OF_THE_USER] += 1
        elif title_ids[item] in titles:
            drops[SAME_TITLE] += 1
        else:
            titles.add(title_ids[item])
            found.append(item)
    return found


def replaced(data: PreparedData, new: Mapping[str, CandidateColumns]) -> Candidates:
    """Returns all candidates of A with the leave-one-out examples of some splits replaced.

    Args:
      data: artefact A.
      new: the examples by split.
    """
    whole = data.candidates.columns
    parts = list(new.values())
    is_kept = np.ones(len(whole.target_ids), dtype=np.bool_)
    for split in new:
        is_kept &= (whole.history_rows < 0) | (whole.is_test != (split == "test"))
    lengths = np.diff(whole.starts)
    rest = dataclasses.replace(
        whole,
        **{
            name: getattr(whole, name)[is_kept]
            for name in ("history_rows", "positions", "target_ids", "is_test")
        },
        starts=starts_of(lengths[is_kept]),
        candidate_ids=whole.candidate_ids[np.repeat(is_kept, lengths)],
    )
    return Candidates(data.histories, CandidateColumns.joined([*parts, rest]))
