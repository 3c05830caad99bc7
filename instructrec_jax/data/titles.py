"""Titles and category paths as the model will see them: clean, one line, of bounded length."""

import html
import re
from collections.abc import Sequence
from html.entities import html5

import numpy as np
import numpy.typing as npt

# A semicolon is asked for except after the commonest names: the prefixes that HTML tolerates
# without one (&not, &para, &sect ...) would eat into words such as "pen&notebook".
_ENTITY = re.compile(r"&(?:#[0-9]+;|#[xX][0-9a-fA-F]+;|[A-Za-z][A-Za-z0-9]*;|(?:amp|quot|lt|gt)\b)")
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


def clean_text(text: str) -> str:
    """Returns the text with HTML entities resolved and every run of blanks made one blank.

    Entities that were escaped twice are resolved too; control characters, line ends and tabs
    count as blanks.

    Example:
      " Tom &amp;amp; Jerry\\t&quot;Gold&quot; " -> 'Tom & Jerry "Gold"'.
    """
    while (plain := _ENTITY.sub(_resolve, text)) != text:
        text = plain
    return " ".join(_NO_TEXT.sub(" ", text).split())


def cut_title(title: str, max_chars: int) -> str:
    """Returns at most `max_chars` characters, cut between words where there is a place to.

    Example:
      ("Sea Chart Deluxe", 12) -> "Sea Chart".
    """
    if len(title) <= max_chars:
        return title
    head, blank, _ = title[: max_chars + 1].rpartition(" ")
    return head.rstrip() if blank else title[:max_chars]


def title_ids(titles: Sequence[str]) -> npt.NDArray[np.int32]:
    """Numbers the titles so that equal ones, whatever their case, share a number.

    Args:
      titles: [items].

    Returns:
      [items] int32, numbers from 0 in order of appearance.

    Example:
      ["Halo", "Chess", "HALO"] -> [0, 1, 0].
    """
    numbers: dict[str, int] = {}
    keys = (title.casefold() for title in titles)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)


def _resolve(match: re.Match[str]) -> str:
    """Resolves one entity; an unknown name stays as it is."""
    entity = match.group()
    if entity.startswith("&#"):
        return html.unescape(entity)
    return html5.get(entity[1:].removesuffix(";") + ";", entity)
