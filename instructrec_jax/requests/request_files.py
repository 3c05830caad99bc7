"""Ranking requests from a JSONL or Parquet file, read as a stream: see `request_rows` for a row."""

import array
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.damage import Damage, DamagedLineError
from instructrec_jax.errors import UserError
from instructrec_jax.requests.request_rows import FIELDS, FileRequest, Row, RowParser
from instructrec_jax.seeds import stable_seed

_PARQUET_ROWS = 256  # read at once
_PARQUET_BUFFER = 1 << 20  # bytes


class RequestFile:
    """A file of requests. Nothing of it is kept but 8 bytes a row while it is surveyed."""

    def __init__(self, path: Path | str, *, needs: Collection[str] | None) -> None:
        """Names the file, and reads nothing.

        Args:
          path: a file `*.jsonl` or `*.parquet`.
          needs: fields of the file that the templates cannot do without; None where the rows
            hold whole instructions.

        Raises:
          UserError: if there is no such file, or it has another ending.
        """
        self.path = Path(path)
        self._is_parquet = self.path.suffix == ".parquet"
        if not self._is_parquet and self.path.suffix != ".jsonl":
            raise UserError(f"REQUESTS is {path}; expected a file *.jsonl or *.parquet")
        if not self.path.is_file():
            raise UserError(f"REQUESTS is {path}, and there is no such file")
        self._parser = RowParser(
            path=self.path,
            unit="row" if self._is_parquet else "line",
            needs=None if needs is None else frozenset(needs),
        )
        self._repeated: dict[int, int] = {}

    def fingerprint(self) -> str:
        """Returns the sha256 of the file's bytes."""
        return files.sha256(self.path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yields (number of the line or row from 1, row), not yet parsed; empty lines are none."""
        return self._parquet_rows() if self._is_parquet else self._lines()

    def survey(self, damage: Damage) -> int:
        """Parses all rows once, so that a mistake in the last one shows before the first is scored.

        Args:
          damage: what happens to rows that cannot be used, those that repeat an id among them.

        Returns:
          The number of rows, usable or not.

        Raises:
          UserError: if the file is empty or cannot be read, and as `damage` says.
        """
        num_rows, hashes = 0, array.array("Q")
        for number, row in self.rows():
            num_rows += 1
            try:
                hashes.append(stable_seed(self._parser.parse(number, row).record.example_id))
            except DamagedLineError as error:
                damage.handle(error)
        if not num_rows:
            raise UserError(f"{self.path} is empty; expected one request a {self._parser.unit}")
        values, counts = np.unique(np.frombuffer(hashes, np.uint64), return_counts=True)
        if suspects := {int(value) for value in values[counts > 1]}:
            self._find_repeated(suspects, damage)
        return num_rows

    def parse(self, number: int, row: Row) -> FileRequest:
        """Returns the request of a row that `rows` gave.

        Raises:
          DamagedLineError: if it cannot be used.
        """
        found = self._parser.parse(number, row)
        if number in self._repeated:
            raise self._repeats(number, found.record.example_id)
        return found

    def misfit(self, number: int, error: UserError) -> DamagedLineError:
        """Returns what rendering says of a request that is too long, with its place."""
        place = f"{self._parser.unit} {number}"
        return DamagedLineError(
            f"{self.path} {place}: {error}", reason="too_long", place=f"{self.path.name} {place}"
        )

    def _find_repeated(self, suspects: Collection[int], damage: Damage) -> None:
        """Notes which rows repeat the id of an earlier one, of those whose hashes are suspect."""
        first: dict[str, int] = {}
        for number, row in self.rows():
            try:
                name = self._parser.parse(number, row).record.example_id
            except DamagedLineError:
                continue
            if stable_seed(name) in suspects and first.setdefault(name, number) != number:
                self._repeated[number] = first[name]
                damage.handle(self._repeats(number, name))

    def _repeats(self, number: int, name: str) -> DamagedLineError:
        unit = self._parser.unit
        return DamagedLineError(
            f"{self.path} {unit} {number}: request {name!r} has the id of {unit} "
            f"{self._repeated[number]}; give each request an id of its own",
            reason="repeated_id",
            place=f"{self.path.name} {unit} {number}",
        )

    def _lines(self) -> Iterator[tuple[int, Row]]:
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line

    def _parquet_rows(self) -> Iterator[tuple[int, Row]]:
        number = 0
        try:
            with pq.ParquetFile(self.path, buffer_size=_PARQUET_BUFFER) as stream:
                columns = [name for name in stream.schema_arrow.names if name in FIELDS]
                for batch in stream.iter_batches(_PARQUET_ROWS, columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{self.path} is not a readable Parquet file after row {number} ({error}); "
                "write it again"
            ) from None
