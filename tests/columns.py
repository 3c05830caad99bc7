"""Columns of records that a test writes down: histories, item sets and candidate lists."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from instructrec_jax.data.columnar import (
    TEST,
    CandidateColumns,
    Candidates,
    Histories,
    ItemSets,
    starts_of,
)
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.prepared_writer import PreparedWriter
from instructrec_jax.records import CandidateList, History


def write_prepared(folder: Path, data: PreparedData) -> None:
    """Writes artefact A's Parquet files at once."""
    with PreparedWriter(folder) as writer:
        writer.add_items(data.items, data.search_splits)
        writer.add(data.histories, data.seen_items, data.candidates)


def item_sets(rows: Iterable[Iterable[int]]) -> ItemSets:
    """The sets of some users."""
    return ItemSets(*flatten(rows, np.int32))


def histories(rows: Sequence[History]) -> Histories:
    """The given histories; either all have times or none has."""
    item_ids, starts = flatten((row.item_ids for row in rows), np.int32)
    return Histories(
        pa.array([row.user_id for row in rows], type=pa.string()),
        item_ids,
        starts,
        times=flatten((row.times for row in rows), np.int64)[0],
        review_rows=flatten((row.review_rows for row in rows), np.int32)[0],
    )


def candidates(rows: Sequence[CandidateList], of_users: Histories) -> Candidates:
    """The given lists."""
    row_of_user = {user_id: row for row, user_id in enumerate(of_users.user_ids.to_pylist())}
    candidate_ids, starts = flatten((row.candidate_ids for row in rows), np.int32)
    of_rows = [row_of_user[row.user_id] if row.user_id else -1 for row in rows]
    columns = CandidateColumns(
        history_rows=np.array(of_rows, dtype=np.int32),
        positions=np.array([row.position for row in rows], dtype=np.int32),
        target_ids=np.array([row.target_id for row in rows], dtype=np.int32),
        is_test=np.array([row.split == TEST for row in rows], dtype=np.bool_),
        starts=starts,
        candidate_ids=candidate_ids,
    )
    return Candidates(of_users, columns)


def flatten(rows: Iterable[Iterable[int]], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of integers as one flat column, and where each row begins.

    Example:
      [[4, 5], [], [6]] -> [4, 5, 6] and [0, 2, 2, 3].
    """
    lists = [list(row) for row in rows]
    flat = np.array([value for values in lists for value in values], dtype=dtype)
    return flat, starts_of([len(values) for values in lists])
