"""Artefact A: catalogue, histories and candidates as Parquet files, reviews as an Arrow file.

What there is one of per event stays in columns, in memory and on disk. Candidates and reviews are
read when they are asked for, so that a log of 10^7 events opens in a moment.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.data.columnar import (
    TEST,
    CandidateColumns,
    Candidates,
    Histories,
    ItemSets,
    starts_of,
)
from instructrec_jax.data.reviews import FILE_NAME as REVIEWS
from instructrec_jax.data.reviews import Reviews
from instructrec_jax.errors import UserError
from instructrec_jax.files import check_is_file
from instructrec_jax.manifest import FILE_NAME, check_files, read_manifest
from instructrec_jax.records import Item

STAGE = "prepare"
ORIGIN = "prepared"  # input of data whose candidates were chosen anew: the data before that
FORMAT = 2  # of the files below; part of the manifest, so that older output is not taken for new
_INTEGERS = pa.list_(pa.int32())
SCHEMAS = {
    "items": pa.schema(
        {
            "item_id": pa.int32(),
            "raw_id": pa.string(),
            "title": pa.string(),
            "category": pa.string(),
            "brand": pa.string(),
            "search_split": pa.string(),
        }
    ),
    "histories": pa.schema(
        {
            "user_id": pa.string(),
            "item_ids": _INTEGERS,
            "seen_item_ids": _INTEGERS,
            "times": pa.list_(pa.int64()),  # empty lists where the log has none; likewise:
            "review_rows": _INTEGERS,
        }
    ),
    "candidates": pa.schema(
        {
            "example_id": pa.string(),
            "protocol": pa.string(),
            "split": pa.string(),
            "user_id": pa.string(),
            "history_row": pa.int32(),
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
      candidates: all evaluation examples, leave-one-out first, then product search.
      reviews: [reviews] texts that the histories' `review_rows` point to; () for none.
    """

    dataset: str
    items: Sequence[Item]
    search_splits: Sequence[str]
    histories: Histories
    seen_items: ItemSets
    candidates: Candidates
    reviews: Sequence[str] = ()

    def evaluation(self, protocol: str, split: str) -> Candidates:
        """Returns the evaluation examples of one protocol and split.

        Args:
          protocol: "leave_one_out" or "product_search".
          split: "validation" or "test".
        """
        return self.candidates.select(protocol=protocol, split=split)


def read_prepared(folder: Path | str) -> PreparedData:
    """Reads what `prepare` wrote; candidates and reviews only when they are asked for.

    Args:
      folder: its output folder.

    Raises:
      UserError: if the folder holds no finished preparation or a damaged one.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.stage != STAGE:
        raise UserError(
            f"{folder} holds the output of {manifest.stage!r}, expected that of {STAGE!r}; "
            "name the folder that `instructrec prepare` wrote"
        )
    settings = manifest.settings
    dataset, form = settings.get("dataset"), settings.get("prepared_format", FORMAT)
    if not isinstance(dataset, str) or form != FORMAT:
        raise UserError(
            f"{folder} holds format {form!r} of dataset {dataset!r}, expected format {FORMAT}; "
            "run `instructrec prepare` again into another folder"
        )
    check_files(folder)
    items, search_splits = _read_items(folder / "items.parquet")
    histories, seen_items = _read_histories(folder / "histories.parquet")
    for ids in (histories.item_ids, seen_items.item_ids):
        _check_range(folder / "histories.parquet", ids, len(items))
    path = folder / "candidates.parquet"
    _check(path)

    def load(protocol: str | None, split: str | None) -> CandidateColumns:
        found = _read_candidates(path, protocol, split)
        for ids in (found.target_ids, found.candidate_ids):
            _check_range(path, ids, len(items))
        _check_range(path, found.history_rows, len(histories), least=-1)
        return found

    return PreparedData(
        dataset=dataset,
        items=items,
        search_splits=search_splits,
        histories=histories,
        seen_items=seen_items,
        candidates=Candidates(histories, load=load),
        reviews=Reviews(folder / REVIEWS) if (folder / REVIEWS).exists() else (),
    )


def hashes_of(folder: Path | str) -> tuple[str, ...]:
    """Returns what tells prepared data from others: the sha256 of the manifest.

    After it comes that of the data which `instructrec candidates` gave other candidates, if it did:
    items and histories are the same there, and so is what was made of them alone.

    Raises:
      UserError: if the folder holds no manifest.
    """
    origin = read_manifest(folder).inputs.get(ORIGIN)
    return (files.sha256(Path(folder) / FILE_NAME), *([] if origin is None else [origin]))


def _read_items(path: Path) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Returns the catalogue and the items' product-search splits."""
    items: list[Item] = []
    splits: list[str] = []
    for group in _groups(path):
        columns = {name: group[name].to_pylist() for name in group.column_names}
        splits += columns.pop("search_split")
        for row in zip(*columns.values(), strict=True):
            items.append(Item(**dict(zip(columns, row, strict=True))))
    return tuple(items), tuple(splits)


def _read_histories(path: Path) -> tuple[Histories, ItemSets]:
    """Returns the histories and the users' distinct items."""
    user_ids: list[pa.Array] = []
    columns = {
        name: _Flat(dtype)
        for name, dtype in (
            ("item_ids", np.int32),
            ("seen_item_ids", np.int32),
            ("times", np.int64),
            ("review_rows", np.int32),
        )
    }
    for group in _groups(path):
        user_ids += group["user_id"].chunks
        for name, column in columns.items():
            column.add(group[name])
    users = pa.concat_arrays(user_ids) if user_ids else pa.array([], type=pa.string())
    histories = Histories(
        users,
        columns["item_ids"].values(),
        columns["item_ids"].starts(),
        times=columns["times"].values(),
        review_rows=columns["review_rows"].values(),
    )
    seen = columns["seen_item_ids"]
    return histories, ItemSets(seen.values(), seen.starts())


def _read_candidates(path: Path, protocol: str | None, split: str | None) -> CandidateColumns:
    """Reads the lists of a protocol and split, or all; the strings are made anew from numbers."""
    names = ("history_row", "position", "target_id", "split", "candidate_ids")
    parts = [_candidate_part(pa.table({name: [] for name in names}, _subschema(names)))]
    for group in _groups(path, names):
        part = _candidate_part(group)
        if protocol is not None and split is not None:
            part = part.where(protocol=protocol, split=split)
        parts.append(part)
    return CandidateColumns.joined(parts)


def _candidate_part(group: pa.Table) -> CandidateColumns:
    """Returns a row group as columns."""
    lists = _Flat(np.int32)
    lists.add(group["candidate_ids"])
    return CandidateColumns(
        history_rows=group["history_row"].to_numpy(),
        positions=group["position"].to_numpy(),
        target_ids=group["target_id"].to_numpy(),
        is_test=pc.equal(group["split"], TEST).to_numpy(),
        starts=lists.starts(),
        candidate_ids=lists.values(),
    )


class _Flat:
    """Collects list columns into one flat column."""

    def __init__(self, dtype: Any) -> None:
        self._values = [np.zeros(0, dtype=dtype)]
        self._lengths = [np.zeros(0, dtype=np.int32)]

    def add(self, column: pa.ChunkedArray) -> None:
        """Adds the rows of a column."""
        for chunk in column.chunks:
            self._values.append(chunk.flatten().to_numpy())
            self._lengths.append(np.diff(chunk.offsets.to_numpy()))

    def values(self) -> Any:
        """Returns all rows, one after the other."""
        return np.concatenate(self._values)

    def starts(self) -> npt.NDArray[np.int64]:
        """Returns where each row begins, and at last the end."""
        return starts_of(np.concatenate(self._lengths))


def _groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yields a file's row groups, which are of bounded size."""
    _check(path)
    try:
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                # One thread, and back what was used: the peak is one row group's, not the file's.
                yield file.read_row_group(number, columns=columns, use_threads=False)
                pa.default_memory_pool().release_unused()
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None


def _check(path: Path) -> None:
    """Raises UserError if a file is missing, damaged or has other columns."""
    check_is_file(path)
    try:
        found = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(path, error) from None
    schema = SCHEMAS[path.stem]
    if not found.equals(schema):
        raise UserError(
            f"{path} has the columns {', '.join(found.names)}, expected "
            f"{', '.join(schema.names)}; run `instructrec prepare` again"
        )


def _check_range(path: Path, ids: npt.NDArray[np.integer], end: int, *, least: int = 0) -> None:
    """Raises UserError if a file has numbers of items or users that are not there."""
    if len(ids) and not least <= ids.min() <= ids.max() < end:
        problem = f"it names numbers {ids.min()} to {ids.max()}, expected {least} to {end - 1}"
        raise _damaged(path, ValueError(problem))


def _damaged(path: Path, error: Exception) -> UserError:
    """Returns the error for a file that cannot be read."""
    return UserError(
        f"cannot read {path} ({str(error).splitlines()[0]}); remove its folder and run "
        "`instructrec prepare` again"
    )


def _subschema(names: Sequence[str]) -> pa.Schema:
    """Returns the schema of some columns of the candidates' file."""
    return pa.schema([SCHEMAS["candidates"].field(name) for name in names])
