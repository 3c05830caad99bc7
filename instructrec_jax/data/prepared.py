"""Artefact A: the catalogue, the histories and the candidates, as Parquet files in a folder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.records import CandidateList, History, Item

STAGE = "prepare"
_INTEGERS = pa.list_(pa.int32())
_SCHEMAS = {
    "items": pa.schema(
        {
            "item_id": pa.int32(),
            "raw_id": pa.string(),
            "title": pa.string(),
            "category": pa.string(),
            "search_split": pa.string(),
        }
    ),
    "histories": pa.schema(
        {"user_id": pa.string(), "item_ids": _INTEGERS, "seen_item_ids": _INTEGERS}
    ),
    "candidates": pa.schema(
        {
            "example_id": pa.string(),
            "protocol": pa.string(),
            "split": pa.string(),
            "user_id": pa.string(),
            "position": pa.int32(),
            "target_id": pa.int32(),
            "candidate_ids": _INTEGERS,
        }
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """Everything that later stages know of a data set.

    Attributes:
      dataset: its name.
      items: [items], an item's id is its index.
      search_splits: [items] "train", "validation", "test" or "" (no category, hence no query).
      histories: [users], cut to the last items.
      seen_items: [users] int32 [distinct items], ascending: the items of the user's whole
        sequence, before the cut; they are never negatives of that user.
      candidates: evaluation examples, leave-one-out first, then product search.
    """

    dataset: str
    items: Sequence[Item]
    search_splits: Sequence[str]
    histories: Sequence[History]
    seen_items: Sequence[npt.NDArray[np.int32]]
    candidates: Sequence[CandidateList]


def write_prepared(folder: Path | str, data: PreparedData) -> None:
    """Writes the three Parquet files into a folder that exists; the manifest is the stage's."""
    tables = {
        "items": {**_columns(data.items, Item), "search_split": list(data.search_splits)},
        "histories": {
            "user_id": [history.user_id for history in data.histories],
            "item_ids": _lists([history.item_ids for history in data.histories]),
            "seen_item_ids": _lists(data.seen_items),
        },
        "candidates": {
            **_columns(data.candidates, CandidateList),
            "candidate_ids": _lists([row.candidate_ids for row in data.candidates]),
        },
    }
    for name, columns in tables.items():
        table = pa.table(columns, schema=_SCHEMAS[name])
        pq.write_table(table, Path(folder) / f"{name}.parquet", compression="zstd")


def read_prepared(folder: Path | str) -> PreparedData:
    """Reads what `prepare` wrote.

    Args:
      folder: its output folder.

    Raises:
      UserError: if the folder holds no finished preparation or a damaged one.
    """
    manifest = read_manifest(folder)
    if manifest.stage != STAGE:
        raise UserError(
            f"{folder} holds the output of {manifest.stage!r}, expected that of {STAGE!r}; "
            "name the folder that `instructrec prepare` wrote"
        )
    items = _read(folder, "items")
    histories = _read(folder, "histories")
    rows = _read(folder, "candidates")
    candidate_ids = [tuple(ids.tolist()) for ids in rows.pop("candidate_ids")]
    users = histories["user_id"]
    return PreparedData(
        dataset=str(manifest.settings["dataset"]),
        search_splits=tuple(items.pop("search_split")),
        items=tuple(_records(Item, items)),
        histories=tuple(
            History(user_id=user, item_ids=tuple(ids.tolist()))
            for user, ids in zip(users, histories["item_ids"], strict=True)
        ),
        seen_items=tuple(histories["seen_item_ids"]),
        candidates=tuple(_records(CandidateList, {**rows, "candidate_ids": candidate_ids})),
    )


def _columns(records: Sequence[Any], kind: type) -> dict[str, list[Any]]:
    """Returns the records' fields as columns."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {name: [getattr(record, name) for record in records] for name in names}


def _records(kind: Any, columns: dict[str, list[Any]]) -> list[Any]:
    """Returns records from columns."""
    rows = zip(*columns.values(), strict=True)
    return [kind(**dict(zip(columns, row, strict=True))) for row in rows]


def _lists(rows: Sequence[Sequence[int]] | Sequence[npt.NDArray[np.int32]]) -> pa.Array:
    """Returns rows of integers as one list column."""
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    parts = [np.asarray(row, dtype=np.int32) for row in rows]
    flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def _read(folder: Path | str, name: str) -> dict[str, list[Any]]:
    """Reads a table; list columns become arrays that share one buffer."""
    path = Path(folder) / f"{name}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"cannot read {path} ({str(error).splitlines()[0]}); remove its folder and run "
            "`instructrec prepare` again"
        ) from None
    if not table.schema.equals(_SCHEMAS[name]):
        raise UserError(
            f"{path} has the columns {', '.join(table.column_names)}, expected "
            f"{', '.join(_SCHEMAS[name].names)}; run `instructrec prepare` again"
        )
    return {column: _values(table[column].combine_chunks()) for column in table.column_names}


def _values(column: pa.Array) -> list[Any]:
    """Returns a column's values."""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat = column.values.to_numpy()
    return np.split(flat, column.offsets.to_numpy()[1:-1]) if len(column) else []
