"""What was shown to whom, and what they said of it: safe on disk before it is acknowledged."""

import dataclasses
import json
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.database import Database
from instructrec_jax.seeds import stable_seed
from instructrec_jax.serving.postgres import PostgresDatabase
from instructrec_jax.settings import is_database

FILE_NAME = "feedback.sqlite"
UP, DOWN, TAKEN = "up", "down", "taken"
VERDICTS = (UP, DOWN, TAKEN)
REWARDS = {UP: 1.0, DOWN: 0.0, TAKEN: 1.0}
_TABLES = """
CREATE TABLE impressions (
  id TEXT PRIMARY KEY, time REAL NOT NULL, token TEXT NOT NULL, user_id TEXT,
  model TEXT NOT NULL, template TEXT NOT NULL, num_candidates INTEGER NOT NULL,
  explored REAL NOT NULL, request TEXT NOT NULL
);
CREATE TABLE shown (
  impression TEXT NOT NULL REFERENCES impressions (id), position INTEGER NOT NULL,
  candidate INTEGER NOT NULL, item_id TEXT NOT NULL, title TEXT NOT NULL,
  model_position INTEGER NOT NULL, score REAL NOT NULL,
  PRIMARY KEY (impression, position)
);
CREATE TABLE feedback (
  number INTEGER PRIMARY KEY, time REAL NOT NULL, impression TEXT NOT NULL REFERENCES
  impressions (id), candidate INTEGER NOT NULL, verdict TEXT NOT NULL
);
CREATE INDEX feedback_of_impression ON feedback (impression)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownItem:
    """A candidate where it was shown.

    Attributes:
      position: from 1, best first.
      candidate: its index in the request.
      item_id: as the catalogue names it.
      title: its text.
      model_position: where the model would have put it.
      score: what the model ranked it by.
      verdicts: what was said of it, oldest first.
    """

    position: int
    candidate: int
    item_id: str
    title: str
    model_position: int
    score: float
    verdicts: tuple[str, ...] = ()

    @property
    def reward(self) -> float:
        """What it earned: 1 where it was liked or taken last, else 0."""
        return REWARDS[self.verdicts[-1]] if self.verdicts else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Impression:
    """A ranking that was shown.

    Attributes:
      impression_id: its name.
      time: seconds since 1970.
      token: who asked.
      user_id: for whom; None where that was not told.
      model: what ranked.
      template: what wrote the instruction.
      num_candidates: of the request; fewer may have been shown.
      explored: with which probability the order was drawn at random.
      request: its texts, by the fields of a file of requests.
      items: best first.
    """

    impression_id: str
    time: float
    token: str
    user_id: str | None
    model: str
    template: str
    num_candidates: int
    explored: float
    request: Mapping[str, Any]
    items: tuple[ShownItem, ...]

    def propensity(self, item: ShownItem) -> float:
        """Returns the probability with which an item was to stand where it did."""
        by_model = float(item.position == item.model_position)
        return (1 - self.explored) * by_model + self.explored / self.num_candidates


def new_impression_id() -> str:
    """Returns a name that nobody can guess."""
    return secrets.token_hex(16)


def shown_order(number: int, explored: float, impression_id: str) -> list[int]:
    """Returns the order in which candidates are shown, as indices of the model's order.

    Args:
      number: of candidates.
      explored: with which probability all orders are equally likely.
      impression_id: of the ranking, which the draw is for.
    """
    generator = np.random.default_rng(stable_seed("explore", impression_id))
    if generator.random() >= explored:
        return list(range(number))
    return generator.permutation(number).tolist()


class FeedbackStore:
    """The impressions and the feedback of a service.

    Attributes:
      path: where they are, for messages.
    """

    def __init__(self, place: Path | str) -> None:
        """Opens a file or a database, or begins it.

        Args:
          place: a path, for SQLite, or the address of a PostgreSQL database.

        Raises:
          UserError: if it cannot be used.
        """
        told = {"fingerprint": "feedback", "tables": _TABLES, "kind": "file of feedback"}
        self._database: Database | PostgresDatabase
        if is_database(str(place)):
            self._database = PostgresDatabase(str(place), **told)
        else:
            self._database = Database(Path(place), **told, holds="what users said")
        self.path = str(self._database.path)

    def add(self, impression: Impression) -> None:
        """Keeps a ranking that is about to be shown."""

        def write() -> None:
            own = impression
            self._database.run(
                "INSERT INTO impressions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                *(own.impression_id, own.time, own.token, own.user_id, own.model, own.template),
                *(own.num_candidates, own.explored, json.dumps(dict(own.request))),
            )
            for item in own.items:
                self._database.run(
                    "INSERT INTO shown VALUES (?, ?, ?, ?, ?, ?, ?)",
                    *(own.impression_id, item.position, item.candidate, item.item_id),
                    *(item.title, item.model_position, item.score),
                )

        self._database.write(write)

    def say(self, impression_id: str, candidate: int, verdict: str, *, token: str) -> bool:
        """Keeps what was said of a candidate; it is on disk when this returns.

        Args:
          impression_id: the ranking.
          candidate: its index in the request.
          verdict: one of `VERDICTS`.
          token: who says so: that of the ranking.

        Returns:
          Whether the token was shown that candidate in that ranking; nothing is kept else.
        """
        found = self._database.rows(
            "SELECT 1 FROM shown JOIN impressions ON impressions.id = shown.impression "
            "WHERE shown.impression = ? AND shown.candidate = ? AND impressions.token = ?",
            (impression_id, candidate, token),
        )
        if not found:
            return False
        self._database.write(
            lambda: self._database.run(
                "INSERT INTO feedback (time, impression, candidate, verdict) VALUES (?, ?, ?, ?)",
                *(time.time(), impression_id, candidate, verdict),
            )
        )
        return True

    def impressions(self) -> Iterator[Impression]:
        """Yields all rankings with what was said of them, oldest first."""
        names = self._database.rows("SELECT * FROM impressions ORDER BY time, id")
        # Read after the rankings: of each of these, all is there.
        rows: dict[str, list[Any]] = defaultdict(list)
        said: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, *row in self._database.rows(f"SELECT {_SHOWN} FROM shown ORDER BY position"):
            rows[name].append(row)
        for name, candidate, verdict in self._database.rows(_VERDICTS):
            said[name][candidate].append(verdict)
        for name, *fields, request in names:
            yield _impression(name, fields, request, rows.pop(name, []), said[name])

    def counts(self) -> Counter[str]:
        """Returns how many rankings there are, and how many of each verdict."""
        found = Counter(dict(self._database.rows(_VERDICT_COUNTS)))
        found["impressions"] = self._database.one("SELECT count(*) FROM impressions")
        return found

    def close(self) -> None:
        """Closes it."""
        self._database.close()


_VERDICT_COUNTS = "SELECT verdict, count(*) FROM feedback GROUP BY verdict"
_VERDICTS = "SELECT impression, candidate, verdict FROM feedback ORDER BY number"
_SHOWN = "impression, position, candidate, item_id, title, model_position, score"
_ITEM = ("position", "candidate", "item_id", "title", "model_position", "score")
_OF_IMPRESSION = ("time", "token", "user_id", "model", "template", "num_candidates", "explored")


def _impression(
    name: str,
    fields: Sequence[Any],
    request: str,
    rows: Sequence[Sequence[Any]],
    said: Mapping[int, Sequence[str]],
) -> Impression:
    """Returns a ranking as the file holds it."""
    items = tuple(
        ShownItem(**dict(zip(_ITEM, row, strict=True)), verdicts=tuple(said.get(row[1], ())))
        for row in rows
    )
    named = dict(zip(_OF_IMPRESSION, fields, strict=True))
    return Impression(impression_id=name, request=json.loads(request), items=items, **named)
