"""The word lists of `words.json`, and regular expressions that match them."""

import json
import re
from pathlib import Path

WORDS: dict[str, list[str]] = {
    name: ", ".join(lines).split(", ")
    for name, lines in json.loads(
        Path(__file__).with_name("words.json").read_text(encoding="utf-8")
    ).items()
}


def one_of(*names: str) -> str:
    """Returns a regular expression of one word of the lists, the longest first."""
    found = sorted({word for name in names for word in WORDS[name]}, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, found))})"


def trimmed(text: str) -> str:
    """Returns a text without marks at its end."""
    return text.rstrip(" .,:;!?-\u2013\u2014/&+*'(")
