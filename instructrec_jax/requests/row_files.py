"""Rows of a file of requests, in any form that one is kept in, as values by name.

JSONL holds one object a line. CSV and TSV have a header; their lists are JSON arrays in a cell,
every other cell is its text, and an empty cell is no value. Parquet holds a column a field. JSONL,
CSV and TSV may be gzipped. "-" is JSONL from the standard input.
"""

import contextlib
import csv
import functools
import gzip
import io
import itertools
import json
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.damage import DamagedLineError
from instructrec_jax.data.readers.rows import MAX_LINE_BYTES, open_plain_or_gzip
from instructrec_jax.errors import UserError

# All fields of a request; see `request_files`. In a cell of CSV or TSV these are JSON arrays, ...
LISTS = ("candidates", "history", "candidate_ids", "exclude")
NUMBER = "target_index"  # ... this one is a number, ...
TEXTS = ("id", "instruction", "preference", "intention", "context")  # ... and these are texts
FIELDS = (*LISTS, NUMBER, *TEXTS)
STDIN = "-"
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_PARQUET_ROWS = 256  # read at once
_PARQUET_BUFFER = 1 << 20  # bytes

Values = Mapping[str, Any]
Row = tuple[int, bytes | list[str] | Values]  # number of its line or row, from 1, and its content


class Rows(Protocol):
    """Where the rows of requests come from."""

    name: str
    unit: str

    @property
    def first(self) -> str:
        """The first request, for messages."""

    @property
    def names(self) -> list[str]:
        """Names of the fields."""

    def filled(self) -> set[str]:
        """Returns the names of the fields that have a value in the first row."""

    def rows(self) -> Iterator[Row]:
        """Yields the rows, not yet parsed."""

    def values(self, row: Row) -> Values:
        """Returns the values of a row by name."""

    def damaged(self, number: int, reason: str, problem: str) -> DamagedLineError:
        """Returns the error that says what is wrong with the row of that number."""


class SingleRow:
    """The one request that a program holds, in place of a file of them.

    Attributes:
      name: for messages.
      unit: likewise.
      first: likewise.
    """

    name, unit, first = "the request", "request", "the request"

    def __init__(self, values: Values) -> None:
        """Takes the values of the request by the names of its fields."""
        self._values = values

    @property
    def names(self) -> list[str]:
        """Names of its fields."""
        return list(self._values)

    def filled(self) -> set[str]:
        """Returns the names of the fields that have a value."""
        return {name for name, value in self._values.items() if value}

    def rows(self) -> Iterator[Row]:
        """Yields the request."""
        yield 1, self._values

    def values(self, row: Row) -> Values:
        """Returns the values of the request."""
        return self._values

    def damaged(self, number: int, reason: str, problem: str) -> DamagedLineError:
        """Returns the error that says what is wrong with the request."""
        return DamagedLineError(problem, reason=reason, place=self.name)


class RowFile:
    """A file of rows, read as a stream as often as is asked for.

    Attributes:
      name: for messages: its path, or "stdin".
      unit: what it is numbered by, "line" or "row".
    """

    def __init__(self, path: Path | str) -> None:
        """Names the file, and reads nothing of it; the standard input is copied to a scratch file.

        Args:
          path: a file with one of `ENDINGS`, but for Parquet also with ".gz" after it; "-" for
            JSONL from the standard input.

        Raises:
          UserError: if there is no such file, or it has another ending.
        """
        self.name, self._path = str(path), Path(path)
        if self.name == STDIN:
            self.name, self._ending = "stdin", ".jsonl"
            self._scratch = _copied(sys.stdin.buffer)
            self._path = Path(self._scratch.name)
        else:
            self._ending = ending_of(path, ENDINGS, "a file of requests")
            if not self._path.is_file():
                raise UserError(f"requests are to be read from {path}, and there is no such file")
        self.unit = "row" if self._ending == ".parquet" else "line"

    @property
    def first(self) -> str:
        """The first request, for messages."""
        return f"the first request of {self.name}"

    def fingerprint(self) -> str:
        """Returns the sha256 of the file's bytes."""
        return files.sha256(self._path)

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of its fields: of the header, the columns, or the first line that is an object."""
        if self._ending == ".jsonl":
            return list(next(self._readable(), {}))
        is_table = self._ending == ".parquet"
        first = self._guarded(self._columns() if is_table else self._cells())
        names = next(first, (1, []))[1]
        assert isinstance(names, list)
        return names if is_table else self._checked(names)

    def filled(self) -> set[str]:
        """Returns the names of the fields that have a value in the first row that can be read."""
        return {name for name, value in next(self._readable(), {}).items() if value}

    def num_filled(self, names: Collection[str]) -> Counter[str]:
        """Returns in how many rows each of these fields has a value, of those that have any."""
        found = Counter[str]()
        for values in self._readable():
            found.update(name for name in names if values.get(name))
        return found

    def rows(self) -> Iterator[Row]:
        """Yields the rows, not yet parsed; empty lines are none.

        Raises:
          UserError: if the file cannot be read beyond some row.
        """
        if self._ending == ".parquet":
            return self._guarded(self._parquet_rows())
        if self._ending in _DELIMITERS:
            return self._guarded(itertools.islice(self._cells(), 1, None))
        return self._guarded(self._lines())

    def values(self, row: Row) -> Values:
        """Returns the values of a row by name; None, or none, where it has no value.

        Raises:
          DamagedLineError: if it cannot be read.
        """
        number, content = row
        if isinstance(content, bytes):
            return self._object(number, content)
        return self._of_cells(number, content) if isinstance(content, list) else content

    def damaged(self, number: int, reason: str, problem: str) -> DamagedLineError:
        """Returns the error that says what is wrong with the row of that number."""
        place = f"{self.unit} {number}"
        return DamagedLineError(
            f"{self.name} {place}: {problem}",
            reason=reason,
            place=f"{Path(self.name).name} {place}",
        )

    def _readable(self) -> Iterator[Values]:
        """Yields the values of the rows that can be read."""
        for row in self.rows():
            with contextlib.suppress(DamagedLineError):
                yield self.values(row)

    def _guarded(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yields rows; an error of the file itself is said with the place where it was met."""
        number = 0
        try:
            for number, content in rows:
                yield number, content
        except (pa.ArrowException, csv.Error, EOFError, zlib.error, OSError) as error:
            what = self._ending[1:].upper().replace("PARQUET", "Parquet")
            if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
                what, remedy = "gzip", "it was cut or changed: obtain it again"
            elif isinstance(error, csv.Error):
                remedy = "a line is half-written, or a quote in a text is not doubled"
            else:
                remedy = "write it again"
            raise UserError(
                f"{self.name} is not a readable {what} file after {self.unit} {number} ({error}); "
                f"{remedy}"
            ) from None

    def _lines(self) -> Iterator[Row]:
        with open_plain_or_gzip(self._path) as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"{self.name} line {number}: lines of at most {MAX_LINE_BYTES >> 20} MiB "
                        "are read; it is no file of requests"
                    )
                if not line:
                    return
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line

    def _cells(self) -> Iterator[Row]:
        """Yields the number of the first line, and the cells, of the header and of each row."""
        csv.field_size_limit(MAX_LINE_BYTES)  # a list of candidates may be long
        with open_plain_or_gzip(self._path) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text, delimiter=_DELIMITERS[self._ending], strict=True)
            number = 1
            for cells in reader:
                if cells:
                    yield number, cells
                number = reader.line_num + 1

    def _parquet_rows(self) -> Iterator[Row]:
        columns = [name for name in self.names if name in FIELDS]
        numbers = itertools.count(1)
        with _parquet(self._path) as stream:
            for batch in stream.iter_batches(_PARQUET_ROWS, columns=columns):
                yield from zip(numbers, batch.to_pylist(), strict=False)

    def _columns(self) -> Iterator[Row]:
        """Yields the names of the columns."""
        with _parquet(self._path) as stream:
            yield 0, list(stream.schema_arrow.names)

    def _checked(self, names: list[str]) -> list[str]:
        """Returns the names in a header if it is one."""
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{self.name} line 1: the header names {twice[0]!r} twice")
        if names and not set(FIELDS) & set(names):
            raise UserError(
                f"{self.name} line 1: the header names {_listed(names)}, none of which is a field "
                f"of a request ({', '.join(FIELDS)}); expected a header whose names are parted by "
                f"{_DELIMITERS[self._ending]!r}"
            )
        return names

    def _of_cells(self, number: int, cells: list[str]) -> Values:
        """Returns the values that the cells of a row say."""
        if len(cells) != len(self.names):
            raise self.damaged(
                number,
                "wrong_fields",
                f"{len(cells)} fields, expected {len(self.names)} as in the header; the line is "
                "half-written, or a text in it is not quoted",
            )
        found: dict[str, Any] = {}
        for name, cell in zip(self.names, cells, strict=True):
            if not cell or name not in FIELDS:
                continue
            if not cell.isascii() and _is_no_text(cell):
                raise self.damaged(number, "not_utf8", f"{name} is not UTF-8; convert the file")
            found[name] = cell if name in TEXTS else self._json_cell(number, name, cell)
        return found

    def _json_cell(self, number: int, name: str, cell: str) -> Any:
        """Returns what a cell says that is JSON."""
        try:
            found = json.loads(cell)
        except (ValueError, RecursionError):
            found = None
        if name != NUMBER and not isinstance(found, list):
            example = "[3, 9]" if name == "candidate_ids" else '["Braid", "Ico"]'
            raise self.damaged(
                number,
                f"bad_{name}",
                f"{name} is {cell[:60]!r}; expected a list as a JSON array, such as {example} "
                "(pandas: column.map(json.dumps))",
            )
        return cell if found is None else found

    def _object(self, number: int, line: bytes) -> Values:
        """Returns the object of a line of JSON."""
        try:
            found = json.loads(line)
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 ({error.reason}); convert the file"
            raise self.damaged(number, "not_utf8", problem) from None
        except (ValueError, RecursionError) as error:
            problem = f"not JSON ({error}); the line is half-written or damaged"
            raise self.damaged(number, "not_json", problem) from None
        if not isinstance(found, dict):
            problem = f"holds {type(found).__name__}, expected an object with names"
            raise self.damaged(number, "not_json", problem)
        return found


def ending_of(path: Path | str, endings: tuple[str, ...], what: str) -> str:
    """Returns the ending that says in which form a file is, that of gzip not counted.

    Args:
      path: the file.
      endings: those that are known.
      what: the file, for the message.

    Raises:
      UserError: if it has none of them, or is a gzipped Parquet file.
    """
    name = Path(path).name
    ending = Path(name.removesuffix(".gz")).suffix
    if ending not in endings or (name.endswith(".gz") and ending == ".parquet"):
        known = ", ".join(f"*{each}" for each in endings)
        raise UserError(
            f"{what} is named {path}; expected {known} (all but *.parquet also with .gz after "
            "it), or - for JSONL through a pipe"
        )
    return ending


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, buffer_size=_PARQUET_BUFFER)


def _copied(stream: BinaryIO) -> Any:
    """Returns a scratch file with all that a stream says: requests are read more than once."""
    scratch = tempfile.NamedTemporaryFile()  # noqa: SIM115, it ends with the object that holds it
    shutil.copyfileobj(stream, cast(BinaryIO, scratch))
    scratch.flush()
    return scratch


def _is_no_text(text: str) -> bool:
    """Returns whether a text holds bytes that are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12]))
