"""Who may use the service: bearer tokens, of which only hashes are kept.

A token is 256 random bits, so that its plain SHA-256 cannot be turned back; whoever reads the file
cannot use the service.
"""

import dataclasses
import hashlib
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from instructrec_jax.database import Database
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.settings import Count, Range, check_arguments

FILE_NAME = "tokens.sqlite"
RANK, FEEDBACK, METRICS = "rank", "feedback", "metrics"
SCOPES = (RANK, FEEDBACK, METRICS)
_PREFIX = "irk_"  # so that scanners of code find a token that was published by mistake
_BYTES = 32
_DAY = 24 * 3600
_TABLES = """
CREATE TABLE tokens (
  name TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL,
  requests_per_minute INTEGER NOT NULL, made REAL NOT NULL, expires REAL NOT NULL
)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Token:
    """What is known of a token; the token itself is not.

    Attributes:
      name: whose it is.
      scopes: what it allows, of `SCOPES`.
      requests_per_minute: how often it may be used.
      expires: seconds since 1970.
    """

    name: str
    scopes: frozenset[str]
    requests_per_minute: int
    expires: float


class TokenStore:
    """The tokens of a service, in a file that other processes may change meanwhile."""

    def __init__(self, state_dir: Path | str) -> None:
        """Opens the file, or begins it."""
        self._database = Database(
            Path(state_dir) / FILE_NAME,
            fingerprint="tokens",
            tables=_TABLES,
            kind="file of tokens",
            holds="who may use the service",
        )

    def add(self, token: Token) -> str:
        """Makes a token, and returns it: it is told this once.

        Raises:
          UserError: if there is one of that name.
        """
        secret = _PREFIX + secrets.token_urlsafe(_BYTES)
        known = [row[0] for row in self._database.rows("SELECT name FROM tokens")]
        if token.name in known:
            raise UserError(
                f"there is a token named {token.name!r}; `instructrec token revoke` removes it, or "
                "take another --name"
            )
        self._database.write(
            lambda: self._database.run(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)",
                *(token.name, _hash(secret), " ".join(sorted(token.scopes))),
                *(token.requests_per_minute, time.time(), token.expires),
            )
        )
        return secret

    def find(self, secret: str) -> Token | None:
        """Returns what is known of a token, None where it is nobody's."""
        found = self._database.rows(
            "SELECT name, scopes, requests_per_minute, expires FROM tokens WHERE hash = ?",
            (_hash(secret),),
        )
        return _token(*found[0]) if found else None

    def all(self) -> list[Token]:
        """Returns all tokens by name."""
        statement = "SELECT name, scopes, requests_per_minute, expires FROM tokens ORDER BY name"
        return [_token(*row) for row in self._database.rows(statement)]

    def remove(self, name: str) -> None:
        """Removes a token; a running service refuses it from then on.

        Raises:
          UserError: if there is none of that name.
        """
        if name not in (known := [token.name for token in self.all()]):
            raise unknown_name("token", name, known)
        self._database.write(lambda: self._database.run("DELETE FROM tokens WHERE name = ?", name))

    def close(self) -> None:
        """Closes the file."""
        self._database.close()


class RateLimiter:
    """How often each token may still be used: a bucket that fills with time, up to a minute's."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # requests, and when that was

    def seconds_to_wait(self, token: Token, now: float) -> float:
        """Takes a request of a token; returns 0, or how long to wait where none is left.

        Args:
          token: whose request it is.
          now: seconds of any clock.
        """
        most = float(token.requests_per_minute)
        left, since = self._left.get(token.name, (most, now))
        left = min(most, left + (now - since) * most / 60)
        has_room = left >= 1
        self._left[token.name] = (left - has_room, now)
        return 0.0 if has_room else (1 - left) * 60 / most


def make_token(
    *,
    state_dir: str,
    name: str,
    scopes: Sequence[str] = (RANK, FEEDBACK),
    days: Annotated[int, Range(1, 3650)] = 90,
    requests_per_minute: Count = 600,
) -> str:
    """Makes a token and returns it; only its hash is kept.

    Args:
      state_dir: folder of the service's tokens and feedback; it is made if it is new.
      name: whose the token is, for the audit log.
      scopes: what it allows: rank, feedback, metrics.
      days: after which it is refused.
      requests_per_minute: how often it may be used.

    Raises:
      UserError: if there is one of that name, or a scope is unknown.
    """
    check_arguments(make_token, locals())
    for scope in scopes:
        if scope not in SCOPES:
            raise unknown_name("scope", scope, SCOPES)
    store = TokenStore(state_dir)
    try:
        return store.add(
            Token(
                name=name,
                scopes=frozenset(scopes),
                requests_per_minute=requests_per_minute,
                expires=time.time() + days * _DAY,
            )
        )
    finally:
        store.close()


def list_tokens(*, state_dir: str) -> list[str]:
    """Returns a line for each token: name, scopes, rate, last day.

    Args:
      state_dir: folder of the service's tokens and feedback.
    """
    store = TokenStore(existing(state_dir))
    try:
        return [
            f"{token.name}\t{','.join(sorted(token.scopes))}\t{token.requests_per_minute}/min\t"
            f"until {time.strftime('%Y-%m-%d', time.gmtime(token.expires))}"
            for token in store.all()
        ]
    finally:
        store.close()


def revoke_token(*, state_dir: str, name: str) -> str:
    """Removes a token and returns its name; a running service refuses it from then on.

    Args:
      state_dir: folder of the service's tokens and feedback.
      name: whose the token is.

    Raises:
      UserError: if there is none of that name.
    """
    store = TokenStore(existing(state_dir))
    try:
        store.remove(name)
    finally:
        store.close()
    return name


def existing(state_dir: str) -> Path:
    """Returns the folder of a service.

    Raises:
      UserError: if it holds no tokens.
    """
    if not (Path(state_dir) / FILE_NAME).is_file():
        raise UserError(
            f"{state_dir} holds no tokens; `instructrec token make --state_dir={state_dir} "
            "--name=NAME` makes the first one"
        )
    return Path(state_dir)


def _token(name: str, scopes: str, requests_per_minute: int, expires: float) -> Token:
    return Token(
        name=name,
        scopes=frozenset(scopes.split()),
        requests_per_minute=requests_per_minute,
        expires=expires,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
