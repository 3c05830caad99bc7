"""Amazon product reviews of 2014, 2018 and 2023: a file of reviews, and one named `meta_*`.

Every line holds one record, as JSON or (metadata of 2014) as a Python dict literal. The editions
differ in the names of fields, not in what they mean, so every line is read by the names it has.
Fields that are not needed (price, rank, details ...) are ignored, whatever they hold.
"""

import array
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.damage import SKIP, Damage, damaged
from instructrec_jax.data.readers.raw_log import Event, Format, LogBuilder, RawItem, RawLog
from instructrec_jax.data.readers.rows import read_lines
from instructrec_jax.data.readers.values import as_id, as_path, as_seconds, as_text, parse_record
from instructrec_jax.data.titles import is_null
from instructrec_jax.errors import UserError

_FILE = re.compile(r"(?P<stem>.+?)\.(?:json|jsonl|json\.gz|jsonl\.gz)")
_OTHER_FILES = frozenset({"interactions", "items", "manifest"})  # of plain logs and of stages
_META = "meta_"
_USER = ("reviewerID", "user_id")
# In 2023 the metadata knows a product by its parent, the same for all colours and sizes.
_ITEM = ("parent_asin", "asin")
_TEXT = ("reviewText", "text")
_SUMMARY = ("summary", "title")
_NUM_LINES_TO_LOOK_AT = 20


class ReviewEvents:
    """One pass over a file of reviews: an `EventReader`."""

    has_reviews = True

    def __init__(self, path: Path, damage: Damage, *, compares_lines: bool = False) -> None:
        self.num_without_text = 0
        self.num_repeated_lines: int | None = None
        self.path = path
        self._damage = damage
        self._digests = array.array("q") if compares_lines else None

    def __iter__(self) -> Iterator[Event]:
        """Yields the reviews in file order; afterwards the attributes hold their counts."""
        yield from self._damage.parsed(read_lines(self.path, self._damage), self._parse)
        if self._digests is not None:
            digests = np.frombuffer(self._digests, dtype=np.int64)
            self.num_repeated_lines = len(digests) - len(np.unique(digests))

    def _parse(self, line: int, text: str) -> Event:
        """Reads one review; the summary replaces a text that is empty."""
        path = self.path
        record = parse_record(text, path, line)
        review = as_text(_first(record, _TEXT), path, line, "reviewText")
        event = (
            as_id(_need(record, _USER, path, line), path, line, "reviewerID"),
            as_id(_need(record, _ITEM, path, line), path, line, "asin"),
            _seconds(record, path, line),
            review if review.strip() else as_text(_first(record, _SUMMARY), path, line, "summary"),
        )
        self.num_without_text += not review.strip()
        if self._digests is not None:
            digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
            self._digests.append(int.from_bytes(digest, "little", signed=True))
        return event


def category_of_file(path: Path) -> str:
    """Returns the department that a file of reviews is named after.

    Example:
      "reviews_Digital_Music_5.json.gz" -> "Digital Music"; "All_Beauty.jsonl" -> "All Beauty".
    """
    stem = re.sub(r"_[0-9]+(?:core)?$", "", _stem(path).removeprefix("reviews_"))
    return stem.replace("_", " ").strip()


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the reviews, and the metadata where there is some."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and _stem(path)]
    metas = [path for path in paths if path.name.startswith(_META)]
    others = [path for path in paths if path not in metas and _stem(path) not in _OTHER_FILES]
    reviews = [path for path in others if _holds_reviews(path)]
    if not reviews and metas:
        reviews = others  # damaged from the first line on, as reading them will say
    for found in (reviews, metas):
        if len(found) > 1:
            raise UserError(
                f"{folder} holds {' and '.join(path.name for path in found)}, of which one is "
                "read; give each its own folder"
            )
    if metas and not reviews:
        raise UserError(
            f"{folder} holds {metas[0].name} but no reviews, such as reviews_X_5.json.gz, X.json "
            "or X.jsonl; put them beside"
        )
    return (*reviews, *metas)


def _read(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, _: Mapping[str, str]
) -> RawLog:
    """Reads reviews in file order, then the metadata; without any, items have ids alone."""
    reviews, *metas = paths
    builder.add_events(
        ReviewEvents(reviews, damage, compares_lines=True),
        again=functools.partial(ReviewEvents, reviews),
        damage=damage,
    )
    for path in metas:
        parse = functools.partial(_parse_item, path)
        for item in damage.parsed(read_lines(path, damage), parse):
            builder.add_item(item)
    if not metas:
        for raw_id in builder.items_of_events():
            builder.add_item(RawItem(raw_id=raw_id, title=""))
    return builder.build(
        has_unix_times=True,
        has_item_file=bool(metas),
        default_category=category_of_file(reviews),
    )


def _parse_item(path: Path, line: int, text: str) -> RawItem:
    """Reads one item."""
    record = parse_record(text, path, line)
    return RawItem(
        raw_id=as_id(_need(record, _ITEM, path, line), path, line, "asin"),
        title=as_text(record.get("title"), path, line, "title"),
        category=as_path(
            record.get("categories") or record.get("category"), path, line, "categories"
        ),
        brand=_brand(record),
    )


def _brand(record: dict[str, Any]) -> str:
    """Returns the maker or author, "" where none of the usual fields holds a text."""
    details = record.get("details")
    named = details.get("Brand") if isinstance(details, dict) else None
    texts = (record.get("brand"), record.get("store"), named)
    return next((text for text in texts if isinstance(text, str) and not is_null(text)), "")


def _seconds(record: dict[str, Any], path: Path, line: int) -> float:
    """Returns the time of a review in seconds since 1970; 2023 writes milliseconds."""
    if "unixReviewTime" in record:
        return as_seconds(record["unixReviewTime"], path, line, column="unixReviewTime")
    milliseconds = _need(record, ("timestamp", "sort_timestamp"), path, line)
    return as_seconds(milliseconds, path, line, column="timestamp", per_second=1000)


def _need(record: dict[str, Any], names: tuple[str, ...], path: Path, line: int) -> Any:
    """Returns the first field that is filled; a record without any is damaged."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    problem = f"no field {' or '.join(names)}; the record has {', '.join(list(record)[:12])}"
    damaged(path, line, "missing_field", problem)


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Returns the first field present, None where there is none."""
    return next((record[name] for name in names if name in record), None)


def _stem(path: Path) -> str:
    """Returns the name without its end, "" if it is not the name of a file of records."""
    match = _FILE.fullmatch(path.name)
    return match["stem"] if match else ""


def _holds_reviews(path: Path) -> bool:
    """Tells by its first lines whether a file holds reviews."""
    lines = read_lines(path, Damage(on_damage=SKIP))
    try:
        for _, (line, text) in zip(range(_NUM_LINES_TO_LOOK_AT), lines, strict=False):
            try:
                record = parse_record(text, path, line)
            except UserError:
                continue
            return any(user in record for user in _USER) and any(item in record for item in _ITEM)
    except UserError:
        pass  # empty, or cut before its first line
    return False


FORMAT = Format(
    name="amazon",
    understood=(
        "Amazon reviews of 2014, 2018 or 2023: reviews_X_5.json, X_5.json or X.jsonl "
        "with meta_X.json or .jsonl"
    ),
    find=_find,
    read=_read,
)
