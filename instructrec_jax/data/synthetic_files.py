"""How invented logs are written down: the formats that the readers of `prepare` understand."""

import contextlib
import gzip
import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

_DAY = 86_400


class ItemRow(NamedTuple):
    """One item of an invented catalogue: `path` runs from broad to narrow."""

    number: int
    title: str
    path: tuple[str, ...]
    brand: str


class EventRow(NamedTuple):
    """One event: numbers of user and item, seconds since 1970, a review or ""."""

    user: int
    item: int
    time: int
    text: str


_EVENT_NAMES = ("user_id", "item_id", "timestamp")
_ITEM_NAMES = ("item_id", "title", "category", "brand")


class _Table(NamedTuple):
    """How a format writes its events and its items: file names, headers, lines."""

    event_file: str
    item_file: str
    event_header: str
    item_header: str
    event_line: Callable[[EventRow], str]
    item_line: Callable[[ItemRow], str]


def _tsv_event(row: EventRow) -> str:
    return f"u{row.user}\ti{row.item}\t{row.time}\n"


def _tsv_item(row: ItemRow) -> str:
    return f"i{row.number}\t{row.title}\t{', '.join(row.path)}\t{row.brand}\n"


def _json_line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _json_event(row: EventRow) -> str:
    values = (f"u{row.user}", f"i{row.item}", row.time)
    return _json_line(dict(zip(_EVENT_NAMES, values, strict=True)))


def _json_item(row: ItemRow) -> str:
    values = (f"i{row.number}", row.title, ", ".join(row.path), row.brand)
    return _json_line(dict(zip(_ITEM_NAMES, values, strict=True)))


def _amazon_event(row: EventRow) -> str:
    day = row.time // _DAY * _DAY  # this edition knows days only, so times tie
    record = {
        "overall": 5.0,
        "verified": True,
        "reviewTime": time.strftime("%m %d, %Y", time.gmtime(day)),
        "reviewerID": f"A{row.user:09d}",
        "asin": f"B{row.item:09d}",
        "unixReviewTime": day,
    }
    if row.text:
        record |= {"reviewText": row.text, "summary": "Five Stars"}
    return _json_line(record)


def _amazon_item(row: ItemRow) -> str:
    return _json_line(
        {
            "asin": f"B{row.number:09d}",
            "title": row.title,
            "category": list(row.path),
            "brand": row.brand,
        }
    )


_TABLES = {
    "plain": _Table(
        "interactions.tsv",
        "items.tsv",
        "\t".join(_EVENT_NAMES) + "\n",
        "\t".join(_ITEM_NAMES) + "\n",
        _tsv_event,
        _tsv_item,
    ),
    "jsonl": _Table("interactions.jsonl", "items.jsonl", "", "", _json_event, _json_item),
    "recbole": _Table(
        "toy.inter",
        "toy.item",
        "user_id:token\titem_id:token\ttimestamp:float\n",
        "item_id:token\ttitle:token_seq\tcategory:token_seq\tbrand:token\n",
        _tsv_event,
        _tsv_item,
    ),
    "amazon_2018": _Table("Bazaar.json", "meta_Bazaar.json", "", "", _amazon_event, _amazon_item),
}
FORMATS = tuple(_TABLES)


def write_items(
    folder: Path | str, form: str, rows: Iterable[ItemRow], *, is_gzip: bool = False
) -> None:
    """Writes the catalogue into a folder that exists, in one of `FORMATS`."""
    table = _TABLES[form]
    _write(Path(folder) / table.item_file, table.item_header, map(table.item_line, rows), is_gzip)


def write_events(
    folder: Path | str, form: str, rows: Iterable[EventRow], *, is_gzip: bool = False
) -> None:
    """Writes the events into a folder that exists, in one of `FORMATS`."""
    table = _TABLES[form]
    lines = map(table.event_line, rows)
    _write(Path(folder) / table.event_file, table.event_header, lines, is_gzip)


def _write(path: Path, header: str, lines: Iterable[str], is_gzip: bool) -> None:
    """Writes a file; gzip holds no name and no time, so that equal logs are equal bytes."""
    path = path.with_name(path.name + ".gz" * is_gzip)
    with path.open("wb") as raw, contextlib.ExitStack() as stack:
        target: Any = raw
        if is_gzip:
            target = gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0)
            stack.enter_context(target)
        stream = stack.enter_context(io.TextIOWrapper(target, encoding="utf-8", newline="\n"))
        stream.write(header)
        stream.writelines(lines)
