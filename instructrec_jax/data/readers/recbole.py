"""RecBole's atomic files: `NAME.inter` and `NAME.item`, tab separated, header `name:type`.

`NAME.user` is not read: no template speaks of age or address.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.damage import Damage
from instructrec_jax.data.readers.raw_log import (
    Format,
    LogBuilder,
    RawItem,
    RawLog,
    RowEvents,
    find_one,
)
from instructrec_jax.data.readers.rows import Column, header_names, renamed, tsv_rows
from instructrec_jax.data.readers.values import as_id, as_path, as_text, listed
from instructrec_jax.data.titles import is_null
from instructrec_jax.errors import UserError

_EVENT_COLUMNS = (
    Column(("user_id",)),
    Column(("item_id",)),
    Column(("timestamp",), is_required=False),
    Column(("review", "review_text"), is_required=False),
)
_TITLES = ("title", "movie_title", "item_name", "name")
_PATHS = ("category", "categories")
_GENRES = ("class", "genre", "genres")  # MovieLens: one word per genre, blanks between
_UNKNOWN = frozenset({"unknown", "(no genres listed)"})


def genres_path(genres: str) -> str:
    """Returns MovieLens genres as a category path, "" where the genre is unknown.

    Args:
      genres: words with blanks or "|" between them.

    Example:
      "Animation Children's Comedy" -> "Animation, Children's, Comedy".
    """
    if genres.strip() in _UNKNOWN:
        return ""
    words = genres.replace("|", " ").split()
    return ", ".join(word for word in words if word not in _UNKNOWN)


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the two files, which share their name."""
    names = {path.name.removesuffix(".gz") for path in folder.iterdir()}
    events = sorted(name for name in names if name.endswith(".inter"))
    if not events:
        return ()
    if len(events) > 1:
        raise UserError(
            f"{folder} holds several .inter files ({', '.join(events)}); "
            "give each data set its own folder"
        )
    stem = events[0].removesuffix(".inter")
    found = tuple(find_one(folder, (stem + end,)) for end in (".inter", ".item"))
    if None in found:
        raise UserError(
            f"{folder} holds {events[0]} but no {stem}.item (or .gz), where the items' titles "
            "are read; put it beside"
        )
    return tuple(path for path in found if path is not None)


def _read(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, fields: Mapping[str, str]
) -> RawLog:
    """Reads both files."""
    events, items = paths
    again = functools.partial(_open_events, events, renamed(_EVENT_COLUMNS, fields))
    builder.add_events(again(damage), again=again, damage=damage)
    _read_items(items, builder, damage, fields)
    return builder.build()


def _open_events(path: Path, columns: Sequence[Column], damage: Damage) -> RowEvents:
    """Begins a pass over the interactions."""
    rows = tsv_rows(path, columns, damage, typed_header=True)
    return RowEvents(path=path, rows=rows, damage=damage)


def _read_items(path: Path, builder: LogBuilder, damage: Damage, fields: Mapping[str, str]) -> None:
    """Adds the catalogue; genres become a category path."""
    has_path = any(name in _PATHS for name in header_names(path, damage))
    category_column = Column(_PATHS if has_path else _GENRES, is_required=False)
    brand_column = Column(("brand",), is_required=False)
    own = (Column(("item_id",)), Column(_TITLES), category_column, brand_column)
    columns = renamed(own, fields)

    def parse(line: int, row: list[Any]) -> RawItem:
        item, title, category, brand = row
        is_path = has_path or is_null(category or "") or listed(category) is not None
        return RawItem(
            raw_id=as_id(item, path, line, "item_id"),
            title=as_text(title, path, line, "title"),
            category=as_path(category, path, line, "category")
            if is_path
            else genres_path(category),
            brand=as_path(brand, path, line, "brand"),
        )

    for item in damage.parsed(tsv_rows(path, columns, damage, typed_header=True), parse):
        builder.add_item(item)


FORMAT = Format(
    name="recbole",
    understood=(
        "RecBole's NAME.inter (user_id, item_id, optionally timestamp) "
        "with NAME.item (item_id, title or movie_title, optionally category or class)"
    ),
    find=_find,
    read=_read,
    fields=("user_id", "item_id", "timestamp", "title"),
)
