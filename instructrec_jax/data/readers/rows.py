"""Rows of raw logs: lines of a file, plain or gzip; fields of a TSV with a header, or of JSONL.

Every kind of damage is named by file and line.
"""

import dataclasses
import gzip
import json
import logging
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from instructrec_jax.damage import Damage, DamagedLineError, damaged
from instructrec_jax.data.settings import FIELDS
from instructrec_jax.errors import UserError
from instructrec_jax.files import check_is_file

_LOGGER = logging.getLogger(__name__)
_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
MAX_LINE_BYTES = 64 << 20
_MAX_EXPANSION, _MIN_EXPANDED = 200, 256 << 20  # logs shrink to a twentieth, seldom a fiftieth
_LEAST_LINE = 64  # what an empty line counts: a file may be made of them
_REPEATED = "item_id_list"


def read_lines(
    path: Path, damage: Damage | None = None, *, fallback: str | None = None
) -> Iterator[tuple[int, str]]:
    r"""Yields (line number from 1, line without its end) for every line that is not empty.

    The first bytes of the file, not its name, decide whether it is gzip. Only "\n" and "\r\n"
    end a line: other separators may be part of a title. Of a gzip file that was cut, the whole
    lines before the cut can be used; the cut itself counts as one damaged line.

    Args:
      path: the file.
      damage: what happens to lines that are not UTF-8 and to a cut; by default they are errors.
      fallback: encoding of the lines that are not UTF-8; None where all have to be.

    Raises:
      UserError: if the file is missing, a folder, empty, or damaged beyond what `damage` allows.

    Example:
      A file "a\tb\n\nc\td\n" yields (1, "a\tb") and (3, "c\td").
    """
    damage = damage or Damage()
    number = 0
    try:
        check_is_file(path)
        with open_plain_or_gzip(path) as stream:
            most = max(_MAX_EXPANSION * path.stat().st_size, _MIN_EXPANDED)
            while raw := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                most -= max(len(raw), _LEAST_LINE)
                if len(raw) > MAX_LINE_BYTES or most < 0:
                    raise UserError(
                        f"{path} line {number}: lines of at most {MAX_LINE_BYTES >> 20} MiB and "
                        f"gzip files of {_MAX_EXPANSION} times their size are read; it is no log"
                    )
                try:
                    line = _decode(raw, path, number, fallback)
                except DamagedLineError as error:
                    damage.handle(error)
                    continue
                if line:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        cut = DamagedLineError(
            f"{path} is damaged after line {number} ({error}): the gzip file was cut or changed; "
            "obtain it again",
            reason="cut_gzip",
            place=f"{path.name} line {number + 1}",
        )
        damage.handle(cut)
        if number == 0:
            raise UserError(str(cut)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if number == 0:
        raise UserError(f"{path} is empty; expected a header or one record per line")


def fail(path: Path, line: int, problem: str) -> NoReturn:
    """Raises the error for a line without which the file means nothing, such as its header."""
    raise UserError(f"{path} line {line}: {problem}")


def open_plain_or_gzip(path: Path) -> BinaryIO:
    """Opens a file for its decompressed bytes; its first ones, not its name, say if it is gzip."""
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip else path.open("rb")


def _decode(raw: bytes, path: Path, number: int, fallback: str | None) -> str:
    """Returns the line as text, without its end."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if fallback:
            return raw.decode(fallback).removesuffix("\n").removesuffix("\r")
        problem = f"not UTF-8 ({error.reason} at byte {error.start}); convert the file"
        damaged(path, number, "not_utf8", problem)
    line = line.removesuffix("\n").removesuffix("\r")
    if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
        if "\r" in line:
            fail(
                path,
                number,
                "carriage returns (CR) without line feeds: these are line ends of old Macs; "
                "convert them to \\n",
            )
    return line


@dataclasses.dataclass(frozen=True)
class Column:
    """A wanted column: its possible names (the first one present is read), and if it must exist."""

    names: tuple[str, ...]
    is_required: bool = True


def renamed(columns: Sequence[Column], fields: Mapping[str, str]) -> tuple[Column, ...]:
    """Returns columns as the user calls them: what the user names must exist.

    Args:
      columns: the format's own.
      fields: the user's name of a column, by the first of the names that it has in the format.
    """
    return tuple(
        Column((fields[column.names[0]],)) if column.names[0] in fields else column
        for column in columns
    )


def read_rows(
    path: Path, columns: Sequence[Column], damage: Damage
) -> Iterator[tuple[int, list[Any]]]:
    r"""Yields (line number, values in the order of `columns`); None where a value is absent.

    Quotes in titles are kept as they are. Only fields that CSV quoting alone explains lose their
    quotes: those with doubled quotes inside, or all where the header is quoted. A warning says so.

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
    is_quoted = header.startswith('"') and header.endswith('"')
    found_at = indices(path, names, columns)
    num_rows = num_quoted = 0
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            damage.handle(_wrong_fields(path, number, fields, len(names)))
            continue
        if '"' in line:
            fields, written = [_unquoted(field, is_quoted) for field in fields], fields
            num_quoted += fields != written
        num_rows += 1
        yield number, [None if index is None else fields[index] for index in found_at]
    if not num_rows:
        raise UserError(f"{path} holds a header and no rows that can be used")
    if num_quoted:
        _LOGGER.warning(
            "%s: %d lines hold fields quoted as CSV, read without those quotes",
            path.name,
            num_quoted,
        )


def header_names(path: Path, damage: Damage) -> list[str]:
    """Returns the names in the header of a RecBole atomic file, without their types."""
    number, header = next(read_lines(path, damage.afresh()), (1, ""))
    return _names(path, number, header, typed_header=True)


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
        _refuse_repeated(record, path, number)
        return number, [_value(record, column, path, number) for column in columns]

    yield from damage.parsed(read_lines(path, damage), parse)


def _value(record: dict[str, Any], column: Column, path: Path, number: int) -> Any:
    """Returns the first of the column's names that the record holds."""
    for name in column.names:
        if name in record:
            return record[name]
    if column.is_required:
        problem = f"no field {_either(column)}; the record has {_listed(list(record))}"
        damaged(path, number, "missing_field", problem + _hint(column))
    return None


def _unquoted(field: str, is_quoted: bool) -> str:
    """Returns a field without the quotes of CSV, if it has them."""
    inner = field[1:-1]
    if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner.replace('""', ""):
        return field
    return inner.replace('""', '"') if is_quoted or '""' in inner else field


def _wrong_fields(path: Path, line: int, fields: list[str], expected: int) -> DamagedLineError:
    """Returns the error of a line with more or fewer fields than the header."""
    cause = "the line is half-written or holds a stray tab"
    if any(field.startswith('"') != field.endswith('"') for field in fields):
        cause = (
            "a field that is quoted as CSV holds a tab or a line end, or the line is half-written: "
            "take them out and write with quoting=csv.QUOTE_NONE, or write JSONL"
        )
    return DamagedLineError(
        f"{path} line {line}: {len(fields)} tab-separated fields, expected {expected} as in the "
        f"header; {cause}",
        reason="wrong_fields",
        place=f"{path.name} line {line}",
    )


def _names(path: Path, number: int, header: str, typed_header: bool) -> list[str]:
    """Returns the header's names, unique and not empty."""
    names = [_unquoted(name, True) for name in header.split("\t")]
    if typed_header:
        bare = [name for name in names if ":" not in name]
        if bare:
            fail(path, number, f"header field {bare[0]!r} is not `name:type`, as in user_id:token")
        names = [name.rsplit(":", 1)[0] for name in names]
    _refuse_repeated(names, path, number)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(path, number, f"the header names {twice[0]!r} twice")
    return names


def _refuse_repeated(names: Container[str], path: Path, number: int) -> None:
    """Refuses RecBole's sequential benchmark files, whose lines hold the events before, too."""
    if _REPEATED in names:
        fail(
            path,
            number,
            f"the field {_REPEATED!r} repeats the same events in many lines (RecBole's sequential "
            "benchmark files); give the events themselves (user_id, item_id, timestamp), or a "
            "sequences.tsv (user_id, item_ids) of each user's longest list with its target",
        )


def indices(path: Path, names: Sequence[str], columns: Sequence[Column]) -> list[int | None]:
    """Returns the index of each wanted column in the header; UserError where one is missing."""
    found_at: list[int | None] = []
    for column in columns:
        found = next((names.index(name) for name in column.names if name in names), None)
        if found is None and column.is_required:
            problem = f"no column {_either(column)}; the header has {_listed(names)}"
            fail(path, 1, problem + _hint(column))
        found_at.append(found)
    return found_at


def _either(column: Column) -> str:
    """Names a column and its other accepted names."""
    return " or ".join(repr(name) for name in column.names)


def _hint(column: Column) -> str:
    """Says how to name a column that is there under another name."""
    flag = FIELDS.get(column.names[0])
    return f"; if one of them is meant, name it with --{flag}" if flag else ""


def _listed(names: Sequence[str]) -> str:
    """Lists names for a message."""
    return ", ".join(repr(name) for name in names[:12]) or "none"
