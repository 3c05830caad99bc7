"""Rows of a TSV or JSONL file: chosen columns, checked line by line.

No CSV quote rule is applied anywhere: titles contain quotes.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.damage import Damage, DamagedLineError, damaged
from instructrec_jax.data.readers.lines import fail, read_lines
from instructrec_jax.data.titles import category_path
from instructrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Column:
    """A wanted column: the names it may bear (the first one present is read), needed or not."""

    names: tuple[str, ...]
    is_required: bool = True


def read_rows(
    path: Path, columns: Sequence[Column], damage: Damage
) -> Iterator[tuple[int, list[Any]]]:
    r"""Yields (line number, values in the order of `columns`); None where a value is absent.

    Args:
      path: a `.jsonl` file (values as JSON gives them) or else a TSV with a header (values str),
        either plain or gzip.
      columns: what to read; other columns are ignored.
      damage: what happens to damaged lines.

    Raises:
      UserError: on a required column that is missing, or more damage than `damage` allows.

    Example:
      "item_id\tx\ttitle\n7\t-\tHalo\n" read for item_id and title yields (2, ["7", "Halo"]).
    """
    is_json = ".jsonl" in path.suffixes
    yield from (_json_rows if is_json else tsv_rows)(path, columns, damage)


def tsv_rows(
    path: Path, columns: Sequence[Column], damage: Damage, *, typed_header: bool = False
) -> Iterator[tuple[int, list[Any]]]:
    """Yields the rows of a TSV file as `read_rows` does.

    Args:
      path: the file.
      columns: what to read.
      damage: what happens to damaged lines.
      typed_header: the header's fields are `name:type`, as in RecBole's atomic files.
    """
    lines = read_lines(path, damage)
    number, header = next(lines, (1, ""))
    names = _names(path, number, header, typed_header)
    places = _places(path, names, columns)
    num_rows = 0
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            damage.handle(_wrong_fields(path, number, len(fields), len(names)))
            continue
        num_rows += 1
        yield number, [None if place is None else fields[place] for place in places]
    if not num_rows:
        raise UserError(f"{path} holds a header and no rows that can be used")


def header_names(path: Path, damage: Damage) -> list[str]:
    """Returns the names in the header of a RecBole atomic file, without their types."""
    number, header = next(read_lines(path, damage.afresh()), (1, ""))
    return _names(path, number, header, typed_header=True)


def as_id(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a user's or item's id as text; whole numbers are taken as they are written.

    Raises:
      DamagedLineError: if it is empty or neither text nor a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"{column} is {value!r}, expected text or a whole number"
        damaged(path, line, "bad_id", problem)
    if not value.strip():
        damaged(path, line, "bad_id", f"{column} is empty; the line is half-written or damaged")
    if not value.isascii():
        _check_encodable(value, path, line, column)
    return value


def as_time(value: Any, path: Path, line: int) -> float:
    """Returns a time as a number of any unit; only its order matters.

    Raises:
      DamagedLineError: if it is not a finite number.
    """
    try:
        time = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        time = math.nan
    if not math.isfinite(time):
        problem = f"timestamp is {value!r}, expected a number such as 881250949"
        damaged(path, line, "bad_time", problem)
    return time


def as_text(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a title as text, "" where it is absent.

    Raises:
      DamagedLineError: if it is neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        damaged(path, line, "bad_text", f"{column} is {value!r}, expected text")
    return str(value)


def as_path(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a category path as text: a list from broad to narrow is cleaned and joined.

    Raises:
      DamagedLineError: if it is neither text nor a list of text.

    Example:
      ["Games", "PC", "PC", ""] -> "Games, PC".
    """
    if not isinstance(value, list):
        return as_text(value, path, line, column)
    return category_path([as_text(part, path, line, column) for part in value])


def _json_rows(
    path: Path, columns: Sequence[Column], damage: Damage
) -> Iterator[tuple[int, list[Any]]]:
    """Yields the rows of a JSONL file."""

    def parse(number: int, line: str) -> tuple[int, list[Any]]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"not JSON ({error}); the line is half-written or damaged"
            damaged(path, number, "not_json", problem)
        if not isinstance(record, dict):
            damaged(path, number, "not_json", f"expected a JSON object, got {line[:40]!r}")
        return number, [_value(record, column, path, number) for column in columns]

    yield from damage.parsed(read_lines(path, damage), parse)


def _value(record: dict[str, Any], column: Column, path: Path, number: int) -> Any:
    """Returns the first of the column's names that the record holds."""
    for name in column.names:
        if name in record:
            return record[name]
    if column.is_required:
        problem = f"no field {_either(column)}; the record has {_listed(list(record))}"
        damaged(path, number, "missing_field", problem)
    return None


def _wrong_fields(path: Path, line: int, number: int, expected: int) -> DamagedLineError:
    """Returns the error of a line with more or fewer fields than the header."""
    return DamagedLineError(
        f"{path} line {line}: {number} tab-separated fields, expected {expected} as in the header; "
        "the line is half-written or holds a stray tab",
        reason="wrong_fields",
        place=f"{path.name} line {line}",
    )


def _names(path: Path, number: int, header: str, typed_header: bool) -> list[str]:
    """Returns the header's names, unique and not empty."""
    names = header.split("\t")
    if typed_header:
        bare = [name for name in names if ":" not in name]
        if bare:
            fail(path, number, f"header field {bare[0]!r} is not `name:type`, as in user_id:token")
        names = [name.rsplit(":", 1)[0] for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(path, number, f"the header names {twice[0]!r} twice")
    return names


def _places(path: Path, names: list[str], columns: Sequence[Column]) -> list[int | None]:
    """Returns the index of each wanted column in the header."""
    places: list[int | None] = []
    for column in columns:
        found = next((names.index(name) for name in column.names if name in names), None)
        if found is None and column.is_required:
            fail(path, 1, f"no column {_either(column)}; the header has {_listed(names)}")
        places.append(found)
    return places


def _check_encodable(value: str, path: Path, line: int, column: str) -> None:
    """Refuses the halves of surrogate pairs that a JSON escape may hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problem = f"{column} {value!r} holds half a surrogate pair, which is no text"
        damaged(path, line, "bad_id", problem)


def _either(column: Column) -> str:
    """Names a column and its other accepted names."""
    return " or ".join(repr(name) for name in column.names)


def _listed(names: list[str]) -> str:
    """Lists names for a message."""
    return ", ".join(repr(name) for name in names[:12]) or "none"
