"""Data as a prompt may hold them: without personal details, each block between marks of its own.

Titles and reviews come from strangers. Before a teacher reads them, addresses, numbers and names
that point to a person are replaced by what they were ("[e-mail]"), control characters and line
breaks become blanks, and "<" and ">" become round brackets. A block of data stands between
"<data name=...>" and "</data>": both need a "<", so no text can end its block or begin another.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

# In this order: what an earlier pattern takes, a later one does not see. A bare "Hotels.com" is the
# name of a shop and stays. A card has 13 to 19
# digits, a telephone number 7 to 12 in groups, or ten and more where it begins with "+" or "0".
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "e-mail": re.compile(
        r"[\w.+-]{1,64}\s?(?:@|\(at\)|\[at\])\s?[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", re.IGNORECASE
    ),
    "url": re.compile(
        r"\b(?:https?|ftp)://\S+|\bwww\.\S+|\b[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.[a-z]{2,6}/\S*",
        re.IGNORECASE,
    ),
    "card": re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])"),
    "phone": re.compile(
        r"(?<![\w.-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])"
        r"\d{3,4}[ .-]?\d{3,4}(?![\w-])"
        r"|(?<![\w.-])(?:\+\d|0)\d{8,13}(?![\w-])|(?<![\w.-])\d{3}-\d{4}(?![\w-])"
    ),
    "handle": re.compile(r"(?<![\w@])@\w{2,30}"),
}
_BRACKETS = str.maketrans("<>\u2039\u203a\u27e8\u27e9", "()()()")


def scrub(text: str, counts: Counter[str] | None = None) -> str:
    """Returns a text in one line, without personal details, control characters and "<", ">".

    Args:
      text: a title or a review.
      counts: where what was replaced is counted, by the name of its pattern.

    Example:
      "Mail me: ada@example.com <b>" -> "Mail me: [e-mail] (b)".
    """
    text = unicodedata.normalize("NFKC", text).translate(_BRACKETS)
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    text = " ".join(text.split())
    for name in _patterns_that_may_match(text):
        text, number = PATTERNS[name].subn(f"[{name}]", text)
        if number and counts is not None:
            counts[name] += number
    return text


def personal_pattern(text: str) -> str:
    """Returns the name of the first pattern of a personal detail in a text, "" for none.

    Example:
      "Call 555-0123" -> "phone".
    """
    plain = unicodedata.normalize("NFKC", text)
    found = (name for name in _patterns_that_may_match(plain) if PATTERNS[name].search(plain))
    return next(found, "")


def data_block(name: str, lines: Iterable[str]) -> str:
    """Returns scrubbed texts, one a line, between the marks of a block.

    Args:
      name: what the data are, such as "titles"; ours, never a stranger's.
      lines: texts as `scrub` returns them.

    Raises:
      ValueError: if a text could end the block.
    """
    lines = list(lines)
    if any(sign in line for line in lines for sign in "<>\n"):
        raise ValueError("a text of a data block is not scrubbed")
    return "\n".join([f'<data name="{name}">', *lines, "</data>"])


def _patterns_that_may_match(text: str) -> Sequence[str]:
    """Returns the names of the patterns that are worth a try; for most texts there is none."""
    has_digits = sum(sign.isdigit() for sign in text) >= 7
    names = []
    if "." in text:
        if "@" in text or "at" in text.lower():
            names.append("e-mail")
        names.append("url")
    if has_digits:
        names += ["card", "phone"]
    return [*names, "handle"] if "@" in text else names
