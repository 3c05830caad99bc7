"""Values of a raw log: ids, times, texts, category paths, whole records.

Everything is checked, and nothing that a file holds is ever executed.
"""

import ast
import contextlib
import json
import math
import warnings
from pathlib import Path
from typing import Any

from instructrec_jax.damage import damaged
from instructrec_jax.data.titles import category_path, is_null

UNIX_TIMES = (788_918_400, 4_000_000_000)  # seconds since 1970: from 1995 to 2096


def as_id(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a user's or item's id as text; whole numbers are taken as they are written.

    Raises:
      DamagedLineError: if it is empty or neither text nor a whole number.
    """
    if isinstance(value, str) and (text := value.strip()):
        if not text.isascii():
            _check_encodable(text, path, line, column)
        return text
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        problem = f"{column} is {value!r}, expected text or a whole number"
        damaged(path, line, "bad_id", problem)
    damaged(path, line, "bad_id", f"{column} is empty; the line is half-written or damaged")


def as_time(value: Any, path: Path, line: int) -> float:
    """Returns a time as a number of any unit; only its order matters.

    Raises:
      DamagedLineError: if it is not a finite number.
    """
    try:
        time = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        time = math.nan
    if not math.isfinite(time):
        problem = f"timestamp is {value!r}, expected a number such as 881250949"
        damaged(path, line, "bad_time", problem)
    return time


def as_seconds(value: Any, path: Path, line: int, *, column: str, per_second: int = 1) -> float:
    """Returns a time in seconds since 1970.

    Args:
      value: a number of units since 1970.
      path: its file.
      line: its line.
      column: its name, for the message.
      per_second: units in a second: 1, or 1000 for milliseconds.

    Raises:
      DamagedLineError: if it is no number, or a time before 1995 or after 2096.
    """
    seconds = as_time(value, path, line) / per_second
    first, end = UNIX_TIMES
    if not first <= seconds < end:
        unit, other, factor = "seconds", "milliseconds", 1e-3
        if per_second != 1:
            unit, other, factor = other, unit, 1e3
        is_other = first <= seconds * factor < end
        hint = f"; it seems to be in {other}" if is_other else ""
        problem = (
            f"{column} is {value!r}, expected {unit} since 1970 from {first * per_second} (1995) "
            f"to {end * per_second} (2096){hint}"
        )
        damaged(path, line, "bad_time", problem)
    return seconds


def as_text(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a title as text, "" where it is absent.

    Raises:
      DamagedLineError: if it is neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        damaged(path, line, "bad_text", f"{column} is {value!r}, expected text")
    return "" if value != value else str(value)  # not a number: pandas' word for nothing


def as_path(value: Any, path: Path, line: int, column: str) -> str:
    """Returns a category path as text: a list from broad to narrow is cleaned and joined.

    Of several paths the first is taken. A text that is written as a list of Python or JSON, as
    pandas and RecSysDatasets write them, is read as that list; words for nothing become "".

    Raises:
      DamagedLineError: if it is neither text nor a list of text.

    Example:
      ["Games", "PC", "PC", ""] -> "Games, PC"; "'Kitchen & Dining', 'Home'" ->
      "Kitchen & Dining, Home"; "[]" or "None" -> "".
    """
    if isinstance(value, str):
        value = value if (parts := listed(value)) is None else parts
    if not isinstance(value, list):
        text = as_text(value, path, line, column)
        return "" if is_null(text) else text
    if value and isinstance(value[0], list):
        value = value[0]
    return category_path([as_text(part, path, line, column) for part in value])


def listed(text: str) -> list[Any] | None:
    """Returns the list that a text is written as, in its order; None if it is none.

    Example:
      "{'b', 'a'}", "['b', 'a']" or "'b', 'a'" -> ["b", "a"].
    """
    text = text.strip()
    if not text or text[0] not in "[({'\"" or text[-1] not in "])}'\"":
        return None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        return found if isinstance(found, list) else [found] if isinstance(found, str) else None
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return [ast.literal_eval(element) for element in node.elts]
        found = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return [found] if isinstance(found, str) else None


def parse_record(text: str, path: Path, line: int) -> dict[str, Any]:
    """Returns the record of a line.

    Args:
      text: the line, a JSON object or a Python dict of texts, numbers, lists and dicts.
      path: its file, for the message.
      line: its number, for the message.

    Raises:
      DamagedLineError: if it is neither.

    Example:
      "{'asin': 'B01', 'brand': None}" -> {"asin": "B01", "brand": None}.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        record = _literal(text)
        if record is None:
            problem = (
                f"neither JSON ({error}) nor a Python dict; the line is half-written or damaged"
            )
            damaged(path, line, "not_a_record", problem)
    if not isinstance(record, dict):
        damaged(path, line, "not_a_record", f"expected a record in braces, got {text[:40]!r}")
    return record


def _literal(text: str) -> Any:
    """Returns the value of a Python literal; None if the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stray backslashes in texts are kept as they are
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _check_encodable(value: str, path: Path, line: int, column: str) -> None:
    """Refuses the halves of surrogate pairs that a JSON escape may hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        problem = f"{column} {value!r} holds half a surrogate pair, which is no text"
        damaged(path, line, "bad_id", problem)
