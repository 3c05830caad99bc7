"""One record a line, as JSON or as a Python dict literal; nothing is ever executed."""

import ast
import json
import warnings
from pathlib import Path
from typing import Any

from instructrec_jax.damage import damaged


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
