"""A SQLite file that loses nothing: written whole, safe on disk, with one message per trouble."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from instructrec_jax import files
from instructrec_jax.errors import UserError

FORMAT = 1
_RESERVE = 8 << 20  # bytes, given up so that what is in flight finds room on a full disk
_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE"}
_META = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_Made = TypeVar("_Made")


class Database:
    """One file, opened by one run; calls from several threads take turns.

    Attributes:
      path: of the file.
      kind: what it is, for messages.
      holds: what would be lost with it, for messages.
      is_full: whether the disk was full; what is in flight is still written, nothing more begins.
    """

    def __init__(self, path: Path, *, fingerprint: str, tables: str, kind: str, holds: str) -> None:
        """Opens the file, or begins it.

        Args:
          path: of the file; its log and a reserve of 8 MB stand beside it.
          fingerprint: of the data set that it serves, and no other.
          tables: statements that make the tables of a new file, each ended by ";" and a new line.
          kind: what it is, such as "ledger".
          holds: what would be lost with it, such as "what was paid for".

        Raises:
          UserError: if it is damaged, belongs to another data set, or cannot be written.
        """
        self.path, self.kind, self.holds, self.is_full = path, kind, holds, False
        self._lock = threading.RLock()
        self._reserve = path.with_name(f"{path.name}.reserve")
        with files.named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._reserve.exists():
                with files.atomic_file(self._reserve) as temporary:
                    temporary.write_bytes(bytes(_RESERVE))
        with self._named_errors():
            self._connection = sqlite3.connect(
                path, timeout=60.0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._named_errors():
                self._check_file()
                self.write(lambda: self._check_meta(fingerprint, tables))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def write(self, work: Callable[[], _Made]) -> _Made:
        """Does work that writes, whole or not at all, and safe on disk when it returns.

        Args:
          work: calls `run`; it is called twice where the disk is full.

        Raises:
          UserError: if the file cannot be written.
        """
        with self._lock, self._named_errors():
            try:
                return self._transaction(work)
            except sqlite3.OperationalError as error:
                if not _says_full(error) or self.is_full:
                    raise
                self.is_full = True
                self._reserve.unlink(missing_ok=True)
                return self._transaction(work)

    def run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Runs one statement."""
        return self._connection.execute(statement, values)

    def one(self, statement: str, *values: Any) -> Any:
        """Returns the first value of the first row."""
        with self._lock, self._named_errors():
            return self.run(statement, *values).fetchone()[0]

    def rows(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """Returns all rows."""
        with self._lock, self._named_errors():
            return self.run(statement, *values).fetchall()

    def full(self) -> UserError:
        """Returns the error for a disk that was full, where all in flight found room."""
        return UserError(
            f"cannot write {self.path}: the disk is full; make room and run the same command "
            f"again: {self.holds} is safe in it"
        )

    def _check_file(self) -> None:
        """Sets how the file is written, and checks its structure."""
        if self.one("PRAGMA journal_mode = WAL") != "wal":
            raise UserError(f"{self.path} is not on a local disk; name a {self.kind} on one")
        self.run("PRAGMA synchronous = FULL")
        if (found := self.one("PRAGMA quick_check(1)")) != "ok":
            raise self._damaged(found)

    def _check_meta(self, fingerprint: str, tables: str) -> None:
        """Makes the tables of a new file; checks that another is ours."""
        if not self.one("SELECT count(*) FROM sqlite_master"):
            for statement in [_META, *tables.strip().split(";\n")]:
                self.run(statement)
            for name, value in {"format": FORMAT, "fingerprint": fingerprint}.items():
                self.run("INSERT INTO meta VALUES (?, ?)", name, json.dumps(value))
        if not self.one("SELECT count(*) FROM sqlite_master WHERE name = 'meta'"):
            raise UserError(
                f"{self.path} is a database of another program; name another {self.kind}"
            )
        meta = {name: json.loads(value) for name, value in self.rows("SELECT * FROM meta")}
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{self.path} is a {self.kind} of format {meta.get('format')!r}, expected "
                f"{FORMAT}; use the version that wrote it, or name another {self.kind}"
            )
        if meta["fingerprint"] != fingerprint:
            raise UserError(
                f"{self.path} is the {self.kind} of another data set ({meta['fingerprint'][:12]}, "
                f"expected {fingerprint[:12]}); name the {self.kind} of this one, or a new one"
            )

    def _transaction(self, work: Callable[[], _Made]) -> _Made:
        if self._connection.in_transaction:
            return work()
        self.run("BEGIN IMMEDIATE")
        try:
            made = work()
            self.run("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.run("ROLLBACK")
            raise
        return made

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turns errors of SQLite into messages for the user, but for those inside `write`."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if self._connection_is_writing():
                raise
            if "locked" in str(error):
                problem = "another program holds it; end that one"
                raise UserError(f"cannot write {self.path}: {problem}") from None
            if _says_full(error):
                raise UserError(
                    f"cannot write {self.path}: the disk is full; make room and run the same "
                    "command again: what was entered is safe in it, and answers that found no "
                    "room count as lost"
                ) from None
            raise UserError(f"cannot use {self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def _connection_is_writing(self) -> bool:
        connection = getattr(self, "_connection", None)
        return connection is not None and connection.in_transaction

    def _damaged(self, problem: str) -> UserError:
        # The first line of a check only says of which database it is.
        lines = [line for line in problem.splitlines() if not line.startswith("***")]
        return UserError(
            f"{self.path} is damaged ({(lines or [problem])[0]}); put a copy of it back, or save "
            f"what can be read with `sqlite3 {self.path} .recover`, and do not delete it: it "
            f"holds {self.holds}"
        )


def _says_full(error: sqlite3.Error) -> bool:
    return error.sqlite_errorname in _FULL
