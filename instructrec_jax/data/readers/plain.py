"""Plain logs, TSV with a header, JSONL, Parquet or Arrow: events or ordered sequences, and items.

Sequences hold one line per user with all items, oldest first. They have no times, and they were
filtered by whoever ordered them: a k-core of sequences that were cut before would remove items that
the whole log keeps, so none is applied unless asked for.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.damage import Damage, damaged
from instructrec_jax.data.readers.raw_log import (
    Format,
    LogBuilder,
    RawItem,
    RawLog,
    RowEvents,
    find_one,
)
from instructrec_jax.data.readers.rows import Column, read_rows, renamed, tsv_rows
from instructrec_jax.data.readers.tables import is_table, table_rows
from instructrec_jax.data.readers.values import as_id, as_path, as_text, listed
from instructrec_jax.errors import UserError

_ITEM_FILES = ("items.tsv", "items.jsonl", "items.parquet", "items")  # the last: a folder
_INTERACTION_FILES = tuple(name.replace("items", "interactions") for name in _ITEM_FILES)
_INTERACTION_COLUMNS = (
    Column(("user_id",)),
    Column(("item_id",)),
    Column(("timestamp",), is_required=False),
    Column(("review",), is_required=False),
)
_ITEM_COLUMNS = (
    Column(("item_id",)),
    Column(("title",)),
    Column(("category",), is_required=False),
    Column(("brand",), is_required=False),
)
_SEQUENCE_COLUMNS = (Column(("user_id",)), Column(("item_ids",)))
_DETAIL_COLUMNS = (
    Column(("item_id",)),
    Column(("categories", "category"), is_required=False),
    Column(("brand",), is_required=False),
)


def _find_items(folder: Path, beside: Path) -> tuple[Path, ...]:
    """Finds the `items` file, and `items_meta*.tsv` with details of some items."""
    items = find_one(folder, _ITEM_FILES)
    if items is None:
        raise UserError(
            f"{folder} holds {beside.name} but none of {', '.join(_ITEM_FILES)} (or .gz), from "
            "which the items' titles are read; add it there"
        )
    details = sorted(path for path in folder.iterdir() if _is_details(path.name))
    if len(details) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(path.name for path in details)}, of which one is read; "
            "keep one of them there"
        )
    return items, *details


def _read_items(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, fields: Mapping[str, str]
) -> None:
    """Adds the catalogue; the categories of a file of details are one path, joined by commas."""
    items, *details = paths
    item_columns, detail_columns = (renamed(c, fields) for c in (_ITEM_COLUMNS, _DETAIL_COLUMNS))

    def parse_item(line: int, row: list[Any]) -> RawItem:
        item, title, category, brand = row
        return RawItem(
            raw_id=as_id(item, items, line, "item_id"),
            title=as_text(title, items, line, "title"),
            category=as_path(category, items, line, "category"),
            brand=as_path(brand, items, line, "brand"),
        )

    for item in damage.parsed(_rows(items, item_columns, damage), parse_item):
        builder.add_item(item)
    for path in details:

        def parse_details(line: int, row: list[Any], path: Path = path) -> RawItem:
            item, categories, brand = row
            return RawItem(
                raw_id=as_id(item, path, line, "item_id"),
                title="",
                category=as_path(
                    listed(categories or "") or (categories or "").split(","),
                    path,
                    line,
                    "categories",
                ),
                brand=as_path(brand, path, line, "brand"),
            )

        for item in damage.parsed(tsv_rows(path, detail_columns, damage), parse_details):
            builder.add_details(item)


def _rows(path: Path, columns: Sequence[Column], damage: Damage) -> Iterator[tuple[int, list[Any]]]:
    """Yields (line or row number, values) of a file or folder of any of the forms."""
    return table_rows(path, columns) if is_table(path) else read_rows(path, columns, damage)


def _is_details(name: str) -> bool:
    """Tells whether a file's name is that of brands and categories."""
    return name.startswith("items_meta") and name.removesuffix(".gz").endswith(".tsv")


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the files."""
    interactions = find_one(folder, _INTERACTION_FILES)
    if interactions is None:
        return ()
    return interactions, *_find_items(folder, interactions)


def _read(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, fields: Mapping[str, str]
) -> RawLog:
    """Reads interactions in file order, then the catalogue."""
    interactions, *items = paths
    again = functools.partial(_open_events, interactions, renamed(_INTERACTION_COLUMNS, fields))
    builder.add_events(again(damage), again=again, damage=damage)
    _read_items(items, builder, damage, fields)
    return builder.build()


def _open_events(path: Path, columns: Sequence[Column], damage: Damage) -> RowEvents:
    """Begins a pass over the interactions."""
    rows = _rows(path, columns, damage)
    return RowEvents(path=path, rows=rows, damage=damage)


FORMAT = Format(
    name="plain",
    understood=(
        "interactions.tsv, .jsonl, .parquet or a folder of Parquet or Arrow files (user_id, "
        "item_id, optionally timestamp, review) with items in any of these forms (item_id, title, "
        "optionally category, brand)"
    ),
    find=_find,
    read=_read,
    fields=("user_id", "item_id", "timestamp", "title"),
)


def _find_sequences(folder: Path) -> tuple[Path, ...]:
    """Finds the files."""
    sequences = find_one(folder, ("sequences.tsv",))
    return () if sequences is None else (sequences, *_find_items(folder, sequences))


def _read_sequences(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, fields: Mapping[str, str]
) -> RawLog:
    """Reads the sequences, then the catalogue."""
    sequences, *items = paths
    first_lines: dict[str, int] = {}

    def parse(line: int, row: list[Any]) -> tuple[str, list[str]]:
        user = as_id(row[0], sequences, line, "user_id")
        first = first_lines.setdefault(user, line)
        if first != line:
            problem = f"user {user!r} has line {first} already; join the two sequences"
            damaged(sequences, line, "user_again", problem)
        if not row[1].strip():
            problem = "item_ids is empty; expected ids with blanks between them"
            damaged(sequences, line, "empty_sequence", problem)
        return user, row[1].split()

    rows = tsv_rows(sequences, renamed(_SEQUENCE_COLUMNS, fields), damage)
    for user, item_ids in damage.parsed(rows, parse):
        builder.add_sequence(user, item_ids)
    _read_items(items, builder, damage, fields)
    return builder.build()


SEQUENCES = Format(
    name="sequences",
    understood=(
        "sequences.tsv (user_id, item_ids with blanks between them, oldest first) "
        "with items in any form that a plain log may have"
    ),
    find=_find_sequences,
    read=_read_sequences,
    default_k_core=1,
    fields=("user_id", "item_id", "title"),
)
