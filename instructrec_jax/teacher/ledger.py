"""The ledger: which questions a teacher LLM was asked, what it answered, and what that cost.

A SQLite file. Every request has a row before it is sent, with the most that it can cost, and keeps
it for good, so that nothing is paid for twice and the sum never hides what was spent:

    in_flight   sent or about to be, by a run that lives or in a batch
    answered    the answer of this question; at most one row of a key is answered or in flight
    extra       a second answer: two runs asked, since one of them was taken for dead
    broken      billed, and no answer: half of one, or none that can be read
    lost        perhaps billed: its run was killed, or the connection ended; counts at its most

Several runs may share a ledger, on one host: SQLite's log in WAL mode needs a local disk.
"""

import contextlib
import dataclasses
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

from instructrec_jax import files, processes
from instructrec_jax.errors import UserError
from instructrec_jax.teacher.questions import Answer, Question

STALE_SECONDS = 120.0
FORMAT = 1
_RENEWALS = 6  # of a run, in the time after which it is taken for dead
_KEYS_AT_A_TIME = 500  # a statement takes 999 values in old versions of SQLite
_RESERVE = 8 << 20  # bytes, given up so that answers in flight find room on a full disk
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
  run INTEGER PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, renewed REAL NOT NULL
);
CREATE TABLE requests (
  request INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  run INTEGER NOT NULL,
  part TEXT,
  state TEXT NOT NULL CHECK (state IN ('in_flight', 'answered', 'extra', 'broken', 'lost')),
  usd REAL NOT NULL,
  value TEXT NOT NULL
);
CREATE UNIQUE INDEX one_answer ON requests (key) WHERE state IN ('in_flight', 'answered');
CREATE INDEX in_flight ON requests (run, part) WHERE state = 'in_flight';
CREATE TABLE batches (
  part TEXT PRIMARY KEY, run INTEGER NOT NULL, is_done INTEGER NOT NULL, value TEXT NOT NULL
);
CREATE TABLE spend (usd REAL NOT NULL);
INSERT INTO spend VALUES (0);
"""
_OPEN: set[tuple[Path, int]] = set()  # ledgers and runs of this process
_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_TRUNCATE"}
_Made = TypeVar("_Made")


class Verdict(Enum):
    """What came of a claim."""

    CLAIMED = "claimed"  # ask it
    ANSWERED = "answered"  # by an earlier run, or another one
    ELSEWHERE = "elsewhere"  # another run that lives is asking it
    IN_BATCH = "in_batch"  # a batch holds it
    TOO_DEAR = "too_dear"  # it could cost more than is left
    DISK_FULL = "disk_full"  # its answer might find no room


class Ledger:
    """One ledger, opened by one run. A context."""

    def __init__(self, path: Path | str, *, fingerprint: str) -> None:
        """Opens a ledger, or begins one.

        Args:
          path: of the SQLite file.
          fingerprint: of the data set that the questions are about, such as the sha256 of its
            manifest; a ledger serves one alone.

        Raises:
          UserError: if it is damaged, belongs to another data set, or cannot be written.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._is_full = False
        self._reserve = self.path.with_name(self.path.name + ".reserve")
        with files.named_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._reserve.exists():
                self._reserve.write_bytes(bytes(_RESERVE))
        with self._named_errors():
            self._database = sqlite3.connect(
                self.path, timeout=60.0, isolation_level=None, check_same_thread=False
            )
        try:
            with self._named_errors():
                self._open(fingerprint)
        except BaseException:
            self.close()
            raise

    def _open(self, fingerprint: str) -> None:
        """Checks the file, makes its tables if it is new, and enters this run."""
        if self._one("PRAGMA journal_mode = WAL") != "wal":
            raise UserError(f"{self.path} is not on a local disk; name a ledger on one")
        self._database.execute("PRAGMA synchronous = FULL")
        if (found := self._one("PRAGMA quick_check(1)")) != "ok":
            raise self._damaged(found)
        self._renewed = time.time()
        self.run = self.write(lambda: self._enter(fingerprint))
        _OPEN.add((self.path.resolve(), self.run))
        self.write(self._close_dead_runs)

    def _enter(self, fingerprint: str) -> int:
        """Returns the number of this run, new in a ledger that is ours."""
        if not self._one("SELECT count(*) FROM sqlite_master"):
            for statement in _TABLES.split(";\n"):
                self._database.execute(statement)
            made = {"format": FORMAT, "fingerprint": fingerprint}
            rows = [(name, json.dumps(value)) for name, value in made.items()]
            self._database.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        try:
            rows = self._database.execute("SELECT name, value FROM meta").fetchall()
        except sqlite3.OperationalError:
            raise UserError(
                f"{self.path} is a database of another program; name another ledger"
            ) from None
        meta = {name: json.loads(value) for name, value in rows}
        if meta.get("format") != FORMAT:
            raise UserError(
                f"{self.path} is a ledger of format {meta.get('format')!r}, expected {FORMAT}; "
                "use the version that wrote it, or name another ledger"
            )
        if meta["fingerprint"] != fingerprint:
            raise UserError(
                f"{self.path} is the ledger of another data set ({meta['fingerprint'][:12]}, "
                f"expected {fingerprint[:12]}); name the ledger of this one, or a new one"
            )
        statement = "INSERT INTO runs (host, pid, renewed) VALUES (?, ?, ?)"
        entered = self._database.execute(
            statement, (processes.host_id(), os.getpid(), self._renewed)
        )
        return int(entered.lastrowid or 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; requests still in flight count as lost from now on."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            if hasattr(self, "run"):
                with contextlib.suppress(UserError):
                    self.write(self._leave)
                _OPEN.discard((self.path.resolve(), self.run))
            self._database.close()

    # Answers

    def answer(self, key: str) -> Answer | None:
        """Returns the answer to the question of a key; None where there is none."""
        return self.answers([key]).get(key)

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Returns the answers to those questions that have one, by key."""
        found, wanted = {}, list(keys)
        for begin in range(0, len(wanted), _KEYS_AT_A_TIME):
            some = wanted[begin : begin + _KEYS_AT_A_TIME]
            places = ", ".join("?" * len(some))
            statement = (
                "SELECT key, usd, value FROM requests "
                f"WHERE state = 'answered' AND key IN ({places})"
            )
            for key, usd, value in self._rows(statement, some):
                stored = json.loads(value)["answer"]
                found[key] = Answer(key=key, **{"usd": usd, **stored})
        return found

    def counts(self) -> dict[str, int]:
        """Returns how many requests there are in each state."""
        return dict(self._rows("SELECT state, count(*) FROM requests GROUP BY state"))

    def spent(self) -> float:
        """Returns USD spent so far, what is in flight or lost at the most it can have cost."""
        with self._named_errors():
            return float(self._one("SELECT usd FROM spend"))

    # Requests; the following run inside `write`

    def write(self, work: Callable[[], _Made]) -> _Made:
        """Does work that writes, whole or not at all, and safe on disk when it returns.

        Args:
          work: calls methods of this ledger; it may be called twice, where the disk is full.

        Raises:
          UserError: if the file cannot be written.
        """
        with self._lock, self._named_errors():
            try:
                return self._transaction(work)
            except sqlite3.OperationalError as error:
                if not _says_full(error) or self._is_full:
                    raise
                self._is_full = True
                self._make_room()
                return self._transaction(work)

    def claim(self, question: Question, *, worst_usd: float, max_usd: float | None) -> Verdict:
        """Enters a request that is about to be sent, if it may be.

        Args:
          question: what is asked.
          worst_usd: the most that it can cost.
          max_usd: what all requests of the ledger may cost together; None: no limit.
        """
        if self._is_full:
            return Verdict.DISK_FULL
        statement = (
            "SELECT state, run, part FROM requests "
            "WHERE key = ? AND state IN ('in_flight', 'answered')"
        )
        if row := self._database.execute(statement, (question.key,)).fetchone():
            state, run, part = row
            if state == "answered":
                return Verdict.ANSWERED
            if part is not None:
                return Verdict.IN_BATCH
            if run == self.run or self._lives(run):
                return Verdict.ELSEWHERE
            self._lose(run)
        if max_usd is not None and self._one("SELECT usd FROM spend") + worst_usd > max_usd:
            return Verdict.TOO_DEAR
        about = {
            name: getattr(question, name) for name in ("kind", "prompt_version", "model", "attempt")
        }
        self._database.execute(
            "INSERT INTO requests (key, run, state, usd, value) VALUES (?, ?, 'in_flight', ?, ?)",
            (question.key, self.run, worst_usd, json.dumps(about)),
        )
        self._spend(worst_usd)
        return Verdict.CLAIMED

    def record(self, answer: Answer) -> None:
        """Enters the answer to a request; one without a price costs the most that it can."""
        row = self._newest(answer.key)
        state = "answered"
        if row.state != "in_flight":  # taken for dead meanwhile
            others = "SELECT count(*) FROM requests WHERE key = ? AND state IN (?, ?)"
            if self._one(others, answer.key, "in_flight", "answered"):
                state = "extra"
        value = dataclasses.asdict(answer)
        del value["key"], value["usd"]
        usd = row.usd if answer.usd is None else answer.usd
        self._close(row, state=state, usd=usd, answer=value)

    def fail(self, key: str, *, state: str, raw: str) -> None:
        """Enters that a request brought no answer.

        Args:
          key: of the question.
          state: "broken" or "lost".
          raw: what came in place of an answer, or the error.
        """
        row = self._newest(key)
        self._close(row, state=state, usd=row.usd, answer={"raw": raw})

    def give_back(self, key: str) -> None:
        """Takes back a claim that was not billed for certain: not sent, or refused."""
        row = self._newest(key)
        if row.state == "in_flight":
            self._database.execute("DELETE FROM requests WHERE request = ?", (row.request,))
            self._spend(-row.usd)

    def renew(self) -> None:
        """Says that this run lives; to be called every few seconds, takes no time."""
        if time.time() - self._renewed > STALE_SECONDS / _RENEWALS:
            self._renewed = time.time()
            statement = "UPDATE runs SET renewed = ? WHERE run = ?"
            self.write(lambda: self._database.execute(statement, (self._renewed, self.run)))

    # The file

    def _newest(self, key: str) -> "_Request":
        """Returns the last request of this run with a key."""
        statement = (
            "SELECT request, state, usd, value FROM requests "
            "WHERE key = ? AND run = ? ORDER BY request DESC LIMIT 1"
        )
        request, state, usd, value = self._database.execute(statement, (key, self.run)).fetchone()
        return _Request(request, state, usd, json.loads(value))

    def _close(self, row: "_Request", *, state: str, usd: float, answer: Any) -> None:
        """Gives a request its last state."""
        self._database.execute(
            "UPDATE requests SET state = ?, usd = ?, value = ? WHERE request = ?",
            (state, usd, json.dumps({**row.value, "answer": answer}), row.request),
        )
        self._spend(usd - row.usd)

    def _spend(self, usd: float) -> None:
        if usd:
            self._database.execute("UPDATE spend SET usd = usd + ?", (usd,))

    def _lives(self, run: int) -> bool:
        """Returns whether a run is going on."""
        statement = "SELECT host, pid, renewed FROM runs WHERE run = ?"
        row = self._database.execute(statement, (run,)).fetchone()
        if row is None:
            return False
        host, pid, renewed = row
        if host == processes.host_id():
            if pid == os.getpid():  # perhaps of an earlier process, as containers count from 1
                return (self.path.resolve(), run) in _OPEN
            if not processes.is_alive(pid):
                return False
        return time.time() - renewed < STALE_SECONDS

    def _close_dead_runs(self) -> None:
        """Enters what dead runs had in flight as lost; what batches hold is theirs."""
        for (run,) in self._database.execute("SELECT run FROM runs").fetchall():
            if not self._lives(run):
                self._lose(run)
                self._database.execute("DELETE FROM runs WHERE run = ?", (run,))

    def _leave(self) -> None:
        self._lose(self.run)
        self._database.execute("DELETE FROM runs WHERE run = ?", (self.run,))

    def _lose(self, run: int) -> None:
        self._database.execute(
            "UPDATE requests SET state = 'lost' "
            "WHERE state = 'in_flight' AND run = ? AND part IS NULL",
            (run,),
        )

    def _transaction(self, work: Callable[[], _Made]) -> _Made:
        if self._database.in_transaction:
            return work()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            made = work()
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise
        return made

    def _make_room(self) -> None:
        """Gives up the reserve."""
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def _one(self, statement: str, *values: Any) -> Any:
        return self._database.execute(statement, values).fetchone()[0]

    def _rows(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock, self._named_errors():
            return self._database.execute(statement, tuple(values)).fetchall()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turns errors of SQLite into messages for the user."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(
                    f"cannot write {self.path}: another program holds it; end that one"
                ) from None
            if _says_full(error):
                raise self.disk_full() from None
            raise UserError(f"cannot use {self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None

    def disk_full(self) -> UserError:
        """Returns the error for a disk without room."""
        return UserError(
            f"cannot write {self.path}: the disk is full; make room and run the same command "
            "again: what was paid for is safe in it"
        )

    def _damaged(self, problem: str) -> UserError:
        return UserError(
            f"{self.path} is damaged ({problem.splitlines()[0]}); put a copy of it back, or save "
            f"what can be read with `sqlite3 {self.path} .recover`, and do not delete it: it "
            "holds what was paid for"
        )


@dataclasses.dataclass(frozen=True)
class _Request:
    """A row of the table of requests."""

    request: int
    state: str
    usd: float
    value: dict[str, Any]


def _says_full(error: sqlite3.Error) -> bool:
    return error.sqlite_errorname in _FULL
