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
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Self, TypeVar

from instructrec_jax import workers
from instructrec_jax.database import Database
from instructrec_jax.errors import UserError
from instructrec_jax.teacher.questions import Answer, Question

STALE_SECONDS = 120.0
_RENEWALS = 6  # of a run, in the time after which it is taken for dead
_KEYS_AT_A_TIME = 500  # a statement takes 999 values in old versions of SQLite
_TABLES = """
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
CREATE INDEX by_key ON requests (key, run);
CREATE INDEX in_flight ON requests (run, part) WHERE state = 'in_flight';
CREATE INDEX by_part ON requests (part) WHERE part IS NOT NULL;
CREATE TABLE batches (
  part TEXT PRIMARY KEY, run INTEGER NOT NULL, is_done INTEGER NOT NULL, value TEXT NOT NULL
);
CREATE TABLE spend (usd REAL NOT NULL);
INSERT INTO spend VALUES (0);
"""
_OPEN: set[tuple[Path, int]] = set()  # ledgers and runs of this process
_Made = TypeVar("_Made")


class Verdict(Enum):
    """What came of a claim."""

    CLAIMED = "claimed"  # ask it
    ANSWERED = "answered"  # by an earlier run, or another one
    REPEATED = "repeated"  # this run is asking it: it comes twice
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
        self._database = Database(
            Path(path),
            fingerprint=fingerprint,
            tables=_TABLES,
            kind="ledger",
            holds="what was paid for",
        )
        self._path = Path(path).resolve()
        self._renewed = time.time()
        self._run = self.write(lambda: self._enter(None))
        _OPEN.add((self._path, self._run))
        self.write(self._close_dead_runs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; requests still in flight count as lost from now on."""
        with contextlib.suppress(UserError):
            self.write(lambda: self._leave(self._run))
        _OPEN.discard((self._path, self._run))
        self._database.close()

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self._database.path

    def answer(self, key: str) -> Answer | None:
        """Returns the answer to the question of a key; None where there is none."""
        return self.answers([key]).get(key)

    def answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Returns the answers to those questions that have one, by key."""
        found = self._answered("key, value", keys)
        return {key: Answer(key=key, **json.loads(value)["answer"]) for key, value in found}

    def answered(self, keys: Iterable[str]) -> set[str]:
        """Returns the keys of those questions that have an answer."""
        return {key for (key,) in self._answered("key", keys)}

    def counts(self) -> dict[str, int]:
        """Returns how many requests there are in each state."""
        return dict(self._database.rows("SELECT state, count(*) FROM requests GROUP BY state"))

    def spent(self) -> float:
        """Returns USD spent so far, what is in flight or lost at the most that it can cost."""
        return float(self._database.one("SELECT usd FROM spend"))

    def write(self, work: Callable[[], _Made]) -> _Made:
        """Does work that writes, whole or not at all, and safe on disk when it returns.

        Args:
          work: calls the methods below; it is called twice where the disk is full.

        Raises:
          UserError: if the file cannot be written.
        """
        return self._database.write(work)

    def claim(
        self,
        question: Question,
        *,
        worst_usd: float,
        max_usd: float | None = None,
        part: str | None = None,
    ) -> Verdict:
        """Enters a request that is about to be sent, if it may be; to be called in `write`.

        Args:
          question: what is asked.
          worst_usd: the most that it can cost.
          max_usd: what all requests of the ledger may cost together; None: no limit.
          part: the batch that will hold it; None: it is sent by itself.
        """
        if self._database.is_full:
            return Verdict.DISK_FULL
        statement = (
            "SELECT state, run, part FROM requests "
            "WHERE key = ? AND state IN ('in_flight', 'answered')"
        )
        if row := self._database.run(statement, question.key).fetchone():
            state, run, held_by = row
            if state == "answered":
                return Verdict.ANSWERED
            if held_by is not None:
                return Verdict.IN_BATCH
            if run == self._run:
                return Verdict.REPEATED
            if self._lives(run):
                return Verdict.ELSEWHERE
            self._leave(run)
        if max_usd is not None and self.spent() + worst_usd > max_usd:
            return Verdict.TOO_DEAR
        about = {
            name: getattr(question, name) for name in ("kind", "prompt_version", "model", "attempt")
        }
        self._database.run(
            "INSERT INTO requests (key, run, part, state, usd, value) "
            "VALUES (?, ?, ?, 'in_flight', ?, ?)",
            *(question.key, self._run, part, worst_usd, json.dumps(about)),
        )
        self._spend(worst_usd)
        return Verdict.CLAIMED

    def record(self, answer: Answer, *, part: str | None = None) -> None:
        """Enters the answer to a request; one without a price costs the most that it can.

        To be called in `write`. A batch's answer that has been entered before changes nothing.
        """
        if (row := self._newest(answer.key, part)) is None or row.state == "answered":
            return
        state = "answered"
        if row.state != "in_flight":  # taken for dead meanwhile
            others = "SELECT count(*) FROM requests WHERE key = ? AND state IN (?, ?)"
            if self._database.one(others, answer.key, "in_flight", "answered"):
                state = "extra"
        usd = row.usd if answer.usd is None else answer.usd
        value = dataclasses.asdict(answer)
        del value["key"]
        self._close(row, state=state, usd=usd, answer=value)

    def fail(self, key: str, *, state: str, raw: str, part: str | None = None) -> None:
        """Enters that a request brought no answer; to be called in `write`.

        Args:
          key: of the question.
          state: "broken" or "lost".
          raw: what came in place of an answer, or the error.
          part: the batch that held it.
        """
        row = self._newest(key, part)
        if row is not None and row.state == "in_flight":
            self._close(row, state=state, usd=row.usd, answer={"raw": raw})

    def give_back(self, key: str, *, part: str | None = None) -> None:
        """Takes back a claim that was not billed for certain; to be called in `write`."""
        row = self._newest(key, part)
        if row is not None and row.state == "in_flight":
            self._database.run("DELETE FROM requests WHERE request = ?", row.request)
            self._spend(-row.usd)

    def renew(self) -> None:
        """Says that this run lives; to be called every few seconds, takes no time."""
        if time.time() - self._renewed > STALE_SECONDS / _RENEWALS:
            self._renewed = time.time()
            self.write(lambda: self._enter(self._run))

    def disk_full(self) -> UserError:
        """Returns the error for a disk without room."""
        return self._database.full()

    # Batches: their rows are written before anything is sent, so that no paid one is forgotten.

    def put_batch(self, part: str, value: dict[str, Any], *, is_done: bool = False) -> None:
        """Enters a batch or changes its entry; to be called in `write`."""
        self._database.run(
            "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)",
            *(part, self._run, is_done, json.dumps(value)),
        )

    def take_batches(self) -> dict[str, dict[str, Any]]:
        """Returns the open batches that no other living run looks after, now ours, by part.

        To be called in `write`.
        """
        found = {}
        statement = "SELECT part, run, value FROM batches WHERE NOT is_done"
        for part, run, value in self._database.rows(statement):
            if run == self._run or not self._lives(run):
                found[part] = json.loads(value)
                self.put_batch(part, found[part])
        return found

    def in_flight(self, part: str) -> dict[str, str]:
        """Returns the keys of the questions whose answers a batch still owes, with their models."""
        statement = "SELECT key, value FROM requests WHERE part = ? AND state = 'in_flight'"
        rows = self._database.rows(statement, [part])
        return {key: json.loads(value)["model"] for key, value in rows}

    # Rows

    def _answered(self, columns: str, keys: Iterable[str]) -> Iterator[Any]:
        """Yields the rows of those questions that have an answer."""
        wanted = list(keys)
        for begin in range(0, len(wanted), _KEYS_AT_A_TIME):
            some = wanted[begin : begin + _KEYS_AT_A_TIME]
            places = ", ".join("?" * len(some))
            yield from self._database.rows(
                f"SELECT {columns} FROM requests "
                f"WHERE state IN ('in_flight', 'answered') AND state = 'answered' "
                f"AND key IN ({places})",  # the index is of both states
                some,
            )

    def _newest(self, key: str, part: str | None) -> "_Request | None":
        """Returns the last request of a key that this run or a batch sent."""
        owner, name = ("run", self._run) if part is None else ("part", part)
        statement = (
            "SELECT request, state, usd, value FROM requests "
            f"WHERE key = ? AND {owner} = ? ORDER BY request DESC LIMIT 1"
        )
        if (row := self._database.run(statement, key, name).fetchone()) is None:
            return None
        request, state, usd, value = row
        return _Request(request, state, usd, json.loads(value))

    def _close(self, row: "_Request", *, state: str, usd: float, answer: Any) -> None:
        """Gives a request its last state."""
        value = json.dumps({**row.value, "answer": answer})
        statement = "UPDATE requests SET state = ?, usd = ?, value = ? WHERE request = ?"
        self._database.run(statement, state, usd, value, row.request)
        self._spend(usd - row.usd)

    def _spend(self, usd: float) -> None:
        if usd:
            self._database.run("UPDATE spend SET usd = usd + ?", usd)

    def _enter(self, run: int | None) -> int:
        """Enters that this run lives, and returns its number."""
        mine = (run, workers.host_id(), os.getpid(), self._renewed)
        entered = self._database.run("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?)", *mine)
        return int(entered.lastrowid or 0)

    def _lives(self, run: int) -> bool:
        """Returns whether a run is going on."""
        rows = self._database.rows("SELECT host, pid, renewed FROM runs WHERE run = ?", [run])
        if not rows:
            return False
        ((host, pid, renewed),) = rows
        if host == workers.host_id():
            if pid == os.getpid():  # perhaps of an earlier process, as containers count from 1
                return (self._path, run) in _OPEN
            if not workers.is_alive(pid):
                return False
        return time.time() - renewed < STALE_SECONDS

    def _close_dead_runs(self) -> None:
        for (run,) in self._database.rows("SELECT run FROM runs"):
            if not self._lives(run):
                self._leave(run)

    def _leave(self, run: int) -> None:
        """Ends a run: what it had in flight is lost; what batches hold is theirs."""
        self._database.run(
            "UPDATE requests SET state = 'lost' "
            "WHERE state = 'in_flight' AND run = ? AND part IS NULL",
            run,
        )
        self._database.run("DELETE FROM runs WHERE run = ?", run)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A row of the table of requests."""

    request: int
    state: str
    usd: float
    value: dict[str, Any]
