"""Values that people write, checked against the types that the code states.

Gin files and JSON hand over anything: a float or True for a count, a text for a list, NaN. Fields
of dataclasses and arguments state their range as well: `batch_size: Annotated[int, Range(1)]`.
"""

import collections.abc
import dataclasses
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, or the lengths of a list.

    Attributes:
      least: the smallest.
      most: the greatest; None: any.
      is_open: the smallest itself is not taken.
    """

    least: float
    most: float | None = None
    is_open: bool = False

    def holds(self, number: float) -> bool:
        """Returns whether a number is one of them."""
        above = number > self.least if self.is_open else number >= self.least
        return above and (self.most is None or number <= self.most)

    def __str__(self) -> str:
        if self.is_open:
            return f"above {self.least}" + ("" if self.most is None else f", at most {self.most}")
        return f"at least {self.least}" if self.most is None else f"{self.least} to {self.most}"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The names that a setting may have."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.names))


@dataclasses.dataclass(frozen=True)
class Web:
    """Marks the setting that is the address of a server; others are paths on this machine."""

    def __str__(self) -> str:
        return 'the address of a server, such as "http://127.0.0.1:8000/v1"'


@dataclasses.dataclass(frozen=True)
class FileOrDatabase:
    """Marks the setting that is a path or the address of a PostgreSQL database."""

    def __str__(self) -> str:
        return 'a path, or a database such as "postgresql://USER@HOST/DATABASE"'


MAX_CANDIDATES = 100_000  # of one list: every example holds one
MAX_ROWS = 65_536  # of a batch
Rows = Annotated[int, Range(1, MAX_ROWS)]
Workers = Annotated[int, Range(1, 1024)]
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, is_open=True)]
NotNegative = Annotated[float, Range(0)]
Names = Annotated[collections.abc.Sequence[str], Range(1)]
WebAddress = Annotated[str, Web()]
Place = Annotated[str, FileOrDatabase()]


# `Path` leaves one slash of two. A single letter before the colon is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_DATABASE = re.compile(r"postgresql(\+psycopg)?://")
_PASSWORD = re.compile(r"(://[^:/@\s]*):[^\s]*@|([?&]password=)[^\s&]*")
_REMEDIES = {
    "gs": "mount the bucket (gcsfuse), or copy it (gcloud storage rsync)",
    "s3": "mount the bucket (mount-s3), or copy it (aws s3 sync)",
    "hdfs": "copy it (hdfs dfs -get)",
    "http": "download it first",
    "https": "download it first",
    "file": "write the path without the scheme",
}


class SettingError(UserError):
    """A setting of a wrong type or out of range.

    Attributes:
      owner: the dataclass or function that takes it.
      name: its field or argument there.
      problem: the value and what was expected.
    """

    def __init__(self, owner: str, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.owner, self.name, self.problem = owner, name, problem


def check_fields(settings: Any) -> None:
    """Checks every field of a dataclass against its annotation; call it in `__post_init__`.

    Raises:
      SettingError: for the first field of another type or out of range.
    """
    _check(
        type(settings), {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    )


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Checks the arguments of a function as `check_fields` does fields.

    Args:
      function: its annotations say what is expected.
      given: the arguments by name, `locals()` at its first line.

    Raises:
      SettingError: as `check_fields`.
    """
    _check(function, {name: given[name] for name in inspect.signature(function).parameters})


def address_problem(value: Any) -> str:
    """Returns why a setting is not taken that is an address or holds one, "" where none is.

    Nothing here reads or writes anything but files, and "gs://..." would be a folder named "gs:".
    """
    for text in _texts_in(value):
        if found := _ADDRESS.match(text):
            remedy = _REMEDIES.get(found[1].lower(), "mount it, or copy it")
            return f"is {shown(text)}; expected a path on this machine: {remedy}"
    return ""


def check_addresses(owner: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Checks that no value is an address but those that may be, and these of a kind that is read.

    Args:
      owner: the dataclass or function that takes the values.
      values: by name.

    Raises:
      SettingError: for the first that is one.
    """
    hints = _hints(owner)
    for name, value in values.items():
        hint = hints.get(name)
        if not _is_address(hint):
            problem = address_problem(value)
        elif isinstance(value, str) and (expected := misfit(value, hint)):
            problem = f"is {shown(value)}; expected {expected}"
        else:
            problem = ""
        if problem:
            raise SettingError(owner.__qualname__, name, problem)


def refuse(settings: Any, name: str, expected: str) -> SettingError:
    """Returns the error for a field that its annotation cannot describe."""
    problem = f"is {shown(getattr(settings, name))}; expected {expected}"
    return SettingError(type(settings).__qualname__, name, problem)


def is_database(place: str) -> bool:
    """Returns whether a place is the address of a database, not a path."""
    return _DATABASE.match(place) is not None


def masked(text: str) -> str:
    """Returns a text whose addresses show no password."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}***", text)


def shown(value: Any) -> str:
    """Returns a value as a message shows it: in one line, not without end, with no password."""
    text = masked(repr(value))
    return text if len(text) <= 120 else f"{text[:120]}..."


def misfit(value: Any, hint: Any) -> str:
    """Returns what was expected of a value in place of it, "" where it fits its type.

    Args:
      value: anything.
      hint: a type, `Annotated` with ranges, or None, unions, sequences and mappings of such.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _annotated_misfit(value, inner[0], inner[1:])
    if origin in (typing.Union, types.UnionType):
        expected = [misfit(value, part) for part in inner]
        return " or ".join(expected) if all(expected) else ""
    if origin in (collections.abc.Sequence, list, tuple):
        return _list_misfit(value, inner[0])
    if origin in (collections.abc.Mapping, dict):
        return _mapping_misfit(value, *inner)
    return _plain_misfit(value, origin or hint)


def _texts_in(value: Any) -> Iterator[str]:
    """Yields the texts and paths in a value, at any depth."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_in(part)
    elif isinstance(value, Mapping):
        yield from _texts_in([*value.values()])


def _check(owner: Callable[..., Any], values: Mapping[str, Any]) -> None:
    check_addresses(owner, values)
    hints = _hints(owner)
    for name, value in values.items():
        if expected := misfit(value, hints[name]) or ("a text that is not empty" * (value == "")):
            problem = f"is {shown(value)}; expected {expected}"
            raise SettingError(owner.__qualname__, name, problem)


def _is_address(hint: Any) -> bool:
    """Returns whether a type is that of addresses, or of addresses or None."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return any(isinstance(each, Web | FileOrDatabase) for each in parts)
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and any(
        map(_is_address, parts)
    )


@functools.cache
def _hints(owner: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(owner, include_extras=True)


def _annotated_misfit(value: Any, hint: Any, limits: tuple[Any, ...]) -> str:
    """Returns what was expected of a number within a range, a list of some length or a name."""
    expected, words = misfit(value, hint), ", ".join(map(str, limits))
    if expected:
        return f"{expected}, {words}"
    for limit in limits:
        if isinstance(limit, OneOf) and value not in limit.names:
            return words
        if isinstance(limit, Web) and not re.match(r"https?://[^/@?#]+(/[^@?#]*)?$", value):
            return words
        if isinstance(limit, FileOrDatabase) and _ADDRESS.match(value) and not is_database(value):
            return words
        is_sized = isinstance(value, collections.abc.Sized)
        if isinstance(limit, Range) and not limit.holds(len(value) if is_sized else value):
            return f"{misfit(object(), hint)}, {words}"
    return ""


def _list_misfit(value: Any, inner: Any) -> str:
    """Returns what was expected of a list, a text being none."""
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple):
        return f"a list, each {misfit(object(), inner)}"
    wrong = next((problem for part in value if (problem := misfit(part, inner))), "")
    return wrong and f"a list, each {wrong}"


def _mapping_misfit(value: Any, key: Any, inner: Any) -> str:
    """Returns what was expected of a mapping."""
    if not isinstance(value, Mapping):
        return "a mapping" if inner is Any else f"a mapping, each value {misfit(object(), inner)}"
    wrong = (f"{k!r} to be {p}" for k, v in value.items() if (p := misfit(v, inner)))
    return next((f"names, not {shown(k)}" for k in value if misfit(k, key)), next(wrong, ""))


def _plain_misfit(value: Any, kind: Any) -> str:
    """Returns what was expected of a value of one plain type, or of a class of ours."""
    if kind is Any or kind is object:
        return ""
    if kind is type(None) or kind is None:
        return "" if value is None else "None"
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind is int:
        return "" if type(value) is int else "a whole number"
    if kind is float:
        is_number = type(value) in (int, float) and math.isfinite(value)
        return "" if is_number else "a finite number"
    if kind is str:
        return "" if isinstance(value, str) else "a text"
    if kind is collections.abc.Callable:
        return "" if callable(value) else "a function"
    if getattr(kind, "_is_protocol", False):
        needed = [name for name in vars(kind) if not name.startswith("_")]
        return "" if all(hasattr(value, name) for name in needed) else f"a {kind.__name__}"
    return "" if isinstance(value, kind) else f"a {kind.__name__}"
