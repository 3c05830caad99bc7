"""Writes artefact A part by part: a catalogue, then users with their evaluation examples."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.data.columnar import (
    LEAVE_ONE_OUT,
    PRODUCT_SEARCH,
    TEST,
    VALIDATION,
    Candidates,
    Histories,
    ItemSets,
)
from instructrec_jax.data.prepared import SCHEMAS
from instructrec_jax.records import Item

_GROUP_ROWS = 1 << 16  # written, and later read, at a time


class PreparedWriter:
    """Writes the Parquet files into a folder that exists, users and their examples part by part.

    The stage writes the manifest, and `write_reviews` the file of reviews, if any.
    """

    def __init__(self, folder: Path | str) -> None:
        """Begins the files."""
        self._files = {
            name: _RowGroups(Path(folder) / f"{name}.parquet", schema)
            for name, schema in SCHEMAS.items()
        }
        self._num_users = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def add_items(self, items: Sequence[Item], search_splits: Sequence[str]) -> None:
        """Writes the catalogue."""
        self._files["items"].add(len(items), functools.partial(_item_columns, items, search_splits))

    def add(self, histories: Histories, seen_items: ItemSets, candidates: Candidates) -> None:
        """Writes the next users, and the examples whose histories these are or that have none."""
        of_users = functools.partial(_history_columns, histories, seen_items)
        of_lists = functools.partial(_candidate_columns, candidates, self._num_users)
        self._files["histories"].add(len(histories), of_users)
        self._files["candidates"].add(len(candidates), of_lists)
        self._num_users += len(histories)


class _RowGroups:
    """A Parquet file of row groups of one size, however many rows come at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema, self._waiting = schema, schema.empty_table()

    def add(self, num_rows: int, columns: Callable[[int, int], dict[str, Any]]) -> None:
        """Adds rows; `columns` returns the rows from one number to another."""
        for begin in range(0, num_rows, _GROUP_ROWS):
            group = columns(begin, min(begin + _GROUP_ROWS, num_rows))
            self._waiting = pa.concat_tables([self._waiting, pa.table(group, schema=self._schema)])
            if len(self._waiting) >= _GROUP_ROWS:
                self._write(self._waiting.slice(0, _GROUP_ROWS))
                self._waiting = self._waiting.slice(_GROUP_ROWS)

    def close(self) -> None:
        """Writes what waits, and ends the file."""
        if len(self._waiting):
            self._write(self._waiting)
        self._writer.close()

    def _write(self, group: pa.Table) -> None:
        self._writer.write_table(group.combine_chunks())


def _item_columns(
    items: Sequence[Item], search_splits: Sequence[str], begin: int, end: int
) -> dict[str, Any]:
    """Returns the catalogue's rows `begin` .. `end` - 1 as columns."""
    names = [field.name for field in dataclasses.fields(Item)]
    rows = items[begin:end]
    columns: dict[str, Any] = {name: [getattr(item, name) for item in rows] for name in names}
    return {**columns, "search_split": list(search_splits[begin:end])}


def _history_columns(histories: Histories, seen: ItemSets, begin: int, end: int) -> dict[str, Any]:
    """Returns the histories `begin` .. `end` - 1 as columns."""
    nothing = np.zeros(len(histories) + 1, dtype=np.int64)

    def lists(column: npt.NDArray) -> pa.Array:
        return _lists(column, histories.starts if len(column) else nothing, begin, end)

    return {
        "user_id": histories.user_ids.slice(begin, end - begin),
        "item_ids": lists(histories.item_ids),
        "seen_item_ids": _lists(seen.item_ids, seen.starts, begin, end),
        "times": lists(histories.times),
        "review_rows": lists(histories.review_rows),
    }


def _candidate_columns(
    candidates: Candidates, first_row: int, begin: int, end: int
) -> dict[str, Any]:
    """Returns the candidate lists `begin` .. `end` - 1 as columns.

    Args:
      candidates: the lists.
      first_row: where the file has the first of their histories.
      begin: first list.
      end: the list after the last.
    """
    columns = candidates.columns
    rows = columns.history_rows[begin:end]
    return {
        "example_id": candidates.example_ids(begin, end),
        "protocol": np.where(rows >= 0, LEAVE_ONE_OUT, PRODUCT_SEARCH),
        "split": np.where(columns.is_test[begin:end], TEST, VALIDATION),
        "user_id": candidates.user_ids(begin, end),
        "history_row": np.where(rows >= 0, rows + first_row, -1).astype(np.int32),
        "position": columns.positions[begin:end],
        "target_id": columns.target_ids[begin:end],
        "candidate_ids": _lists(columns.candidate_ids, columns.starts, begin, end),
    }


def _lists(
    flat: npt.NDArray[np.integer], starts: npt.NDArray[np.int64], begin: int, end: int
) -> pa.Array:
    """Returns the rows `begin` .. `end` - 1 of a flat column as one list column."""
    first, last = int(starts[begin]), int(starts[end])
    offsets = (starts[begin : end + 1] - first).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat[first:last]))
