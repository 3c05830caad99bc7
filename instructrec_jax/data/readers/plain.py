"""Plain logs: `interactions` and `items`, each a TSV with a header or JSONL, plain or gzip."""

from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.data.raw_log import LogBuilder, RawItem, RawLog
from instructrec_jax.data.readers.formats import Format, find_one, need_one
from instructrec_jax.data.readers.rows import Column, as_id, as_path, as_text, as_time, read_rows

ITEM_FILES = ("items.tsv", "items.jsonl")
_INTERACTION_FILES = ("interactions.tsv", "interactions.jsonl")
_INTERACTION_COLUMNS = (
    Column(("user_id",)),
    Column(("item_id",)),
    Column(("timestamp",), is_required=False),
)
_ITEM_COLUMNS = (
    Column(("item_id",)),
    Column(("title",)),
    Column(("category",), is_required=False),
)


def read_items(path: Path, builder: LogBuilder) -> None:
    """Adds the catalogue of an `items` file (columns item_id, title, optionally category)."""
    for line, (item, title, category) in read_rows(path, _ITEM_COLUMNS):
        builder.add_item(
            RawItem(
                raw_id=as_id(item, path, line, "item_id"),
                title=as_text(title, path, line, "title"),
                category=as_path(category, path, line, "category"),
            )
        )


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the two files."""
    interactions = find_one(folder, _INTERACTION_FILES)
    if interactions is None:
        return ()
    return interactions, need_one(folder, ITEM_FILES, interactions)


def _read(paths: Sequence[Path]) -> RawLog:
    """Reads interactions in file order, then the catalogue."""
    interactions, items = paths
    builder = LogBuilder()
    for line, (user, item, time) in read_rows(interactions, _INTERACTION_COLUMNS):
        builder.add_event(
            as_id(user, interactions, line, "user_id"),
            as_id(item, interactions, line, "item_id"),
            None if time is None else as_time(time, interactions, line),
            path=interactions,
            line=line,
        )
    read_items(items, builder)
    return builder.build()


FORMAT = Format(
    name="plain",
    understood=(
        "interactions.tsv or .jsonl (user_id, item_id, optionally timestamp) "
        "with items.tsv or .jsonl (item_id, title, optionally category)"
    ),
    find=_find,
    read=_read,
)
