"""A PostgreSQL database with the calls of `database.Database`, which several services may share."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from instructrec_jax.database import FORMAT
from instructrec_jax.errors import UserError

DRIVER = "postgresql+psycopg"
_SCHEMA = "instructrec"
_LOCK = 0x1257EC  # any number that stands for the making of tables
_POOL, _WAIT_SECONDS, _CONNECT_SECONDS = 4, 5, 5
# SQLite's words and PostgreSQL's for them: statements are written in SQLite's.
_TYPES = {
    "INTEGER PRIMARY KEY": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    " REAL": " DOUBLE PRECISION",
}
# What is acknowledged is on the server's disk, even where the server was set to hurry.
_ON_CONNECT = (
    f"SET search_path TO {_SCHEMA}",
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'",
)
_Made = TypeVar("_Made")


class PostgresDatabase:
    """The schema `instructrec` of a database; calls from several threads run beside each other.

    Attributes:
      path: where it is, without a password.
    """

    def __init__(self, url: str, *, fingerprint: str, tables: str, kind: str) -> None:
        """Connects, and makes the tables where there are none.

        Args:
          url: "postgresql://USER:PASSWORD@HOST:PORT/DATABASE". Without a password the driver looks
            into PGPASSWORD and ~/.pgpass.
          fingerprint: of what it holds, and nothing else.
          tables: statements that make the tables, each ended by ";" and a new line.
          kind: what it is, such as "file of feedback".

        Raises:
          UserError: if it cannot be reached, or is of another format.
        """
        try:
            import psycopg  # noqa: F401  # the driver, which SQLAlchemy imports by its name
            import sqlalchemy
        except ImportError:
            raise UserError(
                "a PostgreSQL database needs SQLAlchemy and psycopg; install them: "
                "pip install 'instructrec-jax[postgres]'"
            ) from None
        parsed = _parsed(sqlalchemy, url)
        self._password, self.path = parsed.password, _name(sqlalchemy, parsed)
        self._error: type[Exception] = sqlalchemy.exc.SQLAlchemyError
        self._local = threading.local()
        self._engine = sqlalchemy.create_engine(
            parsed,
            pool_size=_POOL,
            max_overflow=0,
            pool_timeout=_WAIT_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={
                "connect_timeout": _CONNECT_SECONDS,
                "tcp_user_timeout": _WAIT_SECONDS * 1000,
            },
        )
        sqlalchemy.event.listen(self._engine, "connect", _prepared)
        try:
            self.write(lambda: self._check(fingerprint, tables, kind))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def write(self, work: Callable[[], _Made]) -> _Made:
        """Does work that writes, whole or not at all, and safe on the server when it returns.

        Args:
          work: calls `run`.

        Raises:
          UserError: if the server does not answer, or refuses it.
        """
        with self._connected():
            return work()

    def run(self, statement: str, *values: Any) -> Any:
        """Runs one statement inside `write`, its values in place of "?"."""
        # A text of PostgreSQL holds everything but NUL.
        kept = tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in values)
        return self._local.connection.exec_driver_sql(statement.replace("?", "%s"), kept)

    def one(self, statement: str, *values: Any) -> Any:
        """Returns the first value of the first row."""
        return self.rows(statement, values)[0][0]

    def rows(self, statement: str, values: Iterable[Any] = ()) -> list[Any]:
        """Returns all rows."""
        with self._connected():
            return self.run(statement, *values).fetchall()

    def _check(self, fingerprint: str, tables: str, kind: str) -> None:
        """Makes the tables of a new schema; checks that another is ours."""
        self.run("SELECT pg_advisory_xact_lock(?)", _LOCK)  # of services that start together
        if self.one("SELECT to_regnamespace(?) IS NULL", _SCHEMA):
            self.run(f"CREATE SCHEMA {_SCHEMA}")
        if self.one("SELECT to_regclass(?) IS NULL", f"{_SCHEMA}.meta"):
            for ours, theirs in _TYPES.items():
                tables = tables.replace(ours, theirs)
            meta = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
            for statement in [meta, *tables.strip().split(";\n")]:
                self.run(statement)
            for name, value in {"format": FORMAT, "fingerprint": fingerprint}.items():
                self.run("INSERT INTO meta VALUES (?, ?)", name, json.dumps(value))
        found = {name: json.loads(value) for name, value in self.rows("SELECT * FROM meta")}
        if found != {"format": FORMAT, "fingerprint": fingerprint}:
            raise UserError(
                f"the schema {_SCHEMA} of {self.path} is no {kind} of format {FORMAT} but "
                f"{found}; use the version that wrote it, or name another database"
            )

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Gives this thread a connection and a transaction, if it has none; names errors."""
        if getattr(self._local, "connection", None) is not None:
            yield
            return
        try:
            with self._engine.begin() as self._local.connection:
                yield
        except self._error as error:
            told = " ".join(str(getattr(error, "orig", None) or error).split())
            if self._password:
                told = told.replace(str(self._password), "***")
            raise UserError(f"cannot use {self.path}: {told}") from None
        finally:
            self._local.connection = None


def _prepared(connection: Any, _: Any) -> None:
    """Sets up a new connection; outside a transaction, so that no rollback takes it back."""
    connection.autocommit = True
    for statement in _ON_CONNECT:
        connection.execute(statement)
    connection.autocommit = False


def _parsed(sqlalchemy: Any, url: str) -> Any:
    """Returns the parts of an address; no error shows any of them, since one is a password."""
    problem = UserError(
        "the address of the database cannot be read; expected "
        "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ and %2F for a / in a "
        "password, or none: PGPASSWORD and ~/.pgpass are read"
    )
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise problem from None
    if "@" in (parsed.host or "") or not parsed.database:
        raise problem
    return parsed.set(drivername=DRIVER)


def _name(sqlalchemy: Any, parsed: Any) -> str:
    """Returns an address without a password, wherever it stood."""
    bare = sqlalchemy.URL.create(
        "postgresql", parsed.username, None, parsed.host, parsed.port, parsed.database
    )
    return bare.render_as_string()
