"""Titles, category paths and brands: cleaned, cut, and compared as a model reads them."""

import html
import re
import unicodedata
from collections.abc import Sequence
from html.entities import html5

import numpy as np
import numpy.typing as npt

LIST_SEPARATOR = "; "
# Replaces the separator inside a title, so that the items of a list stay separable.
SEPARATOR_STAND_IN = ", "

# SentencePiece's normalisation (nmt_nfkc, which T5 uses too) makes these a blank.
_BLANK_TO_MODELS = re.compile("[\u200b-\u200f\u2581\ufeff\ufffd\\s]+")
# Letters and symbols by their category that have no shape of their own.
_UNSEEN = frozenset("\u115f\u1160\u2581\u2800\u3164\uffa0\ufffd")

# A semicolon is asked for except after the commonest names: the prefixes that HTML tolerates
# without one (&not, &para, &sect ...) would eat into words such as "pen&notebook".
_ENTITY = re.compile(r"&(?:#[0-9]+;|#[xX][0-9a-fA-F]+;|[A-Za-z][A-Za-z0-9]*;|(?:amp|quot|lt|gt)\b)")
_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")

# Shop pages that were scraped badly leave markup or script where the title should be. Inline marks
# that a shop may really print in a title (<b>, <i>, <br>) do not make it junk.
_MARKUP = re.compile(
    r"""<\s*(?:span|div|img|script|style|link|meta|table|t[dr]|ul|li|input|iframe|form)\b
    | <\s*a\s+[a-z-]+\s*= | </\s*(?:span|div|a|script|style|table|t[dr]|ul|li|form)\s*>
    | <!--""",
    re.IGNORECASE | re.VERBOSE,
)
_SCRIPT = re.compile(
    r"""\bvar\s+\w+\s*= | \bfunction\s*\w*\s*\( | \.getTime\(\) | \b(?:document|window)\.\w+\s*[=(]
    | ^\s*[.#@]?[\w.# -]+\s*\{[^}]*:[^}]*[;}]""",
    re.VERBOSE,
)
_LABEL_END, _COMMA_IN_LABEL = ", ", ",\u00a0"
_NULLS = frozenset({"", "none", "null", "nan", "n/a", "[]", "{}", "()", "set()"})
# What shops wrap around a maker's or an author's name.
_BRAND_PAGE = re.compile(r"^Visit (?:Amazon's (?P<author>.+) Page|the (?P<shop>.+) Store)$")
_BRAND_FORMAT = re.compile(r"\s+Format: [\w ,/-]+$")


def clean_text(text: str) -> str:
    """Returns the text with HTML entities resolved and every run of blanks made one blank.

    Entities that were escaped twice are resolved too; control characters, line ends and tabs
    count as blanks. A text in which nothing can be seen, such as zero-width spaces, becomes "".

    Example:
      " Tom &amp;amp; Jerry\\t&quot;Gold&quot; " -> 'Tom & Jerry "Gold"'.
    """
    while (plain := _ENTITY.sub(_resolve, text)) != text:
        text = plain
    text = " ".join(_NO_TEXT.sub(" ", text).split())
    return text if is_seen(text) else ""


def is_seen(text: str) -> bool:
    """Whether a text holds a letter, digit, sign or symbol that a reader sees.

    Example:
      "!!!" -> True; "\\u200b" (zero-width space) or "\\u3164" (Hangul filler) -> False.
    """
    return any(unicodedata.category(c)[0] in "LNPS" and c not in _UNSEEN for c in text)


def model_title(title: str) -> str:
    """Returns what a title is to a model: a model cannot tell titles of equal result apart.

    Tokenizers read text after NFKC, without most characters of no width, and prompts spell the
    list separator inside a title otherwise. Characters that only steer the layout (category Cf)
    go too: a reader cannot see them.

    Example:
      "Ｈａｌｏ;  Reach" -> "Halo, Reach".
    """
    if not title.isascii():
        title = _BLANK_TO_MODELS.sub(" ", unicodedata.normalize("NFKC", title))
        title = "".join(c for c in title if unicodedata.category(c) != "Cf")
    return " ".join(title.split()).replace(LIST_SEPARATOR, SEPARATOR_STAND_IN)


def junk_kind(title: str) -> str:
    """Tells why a cleaned title names nothing: "empty", "markup" or "script"; "" where it does.

    Example:
      '<span class="price">' -> "markup"; "var aPageStart = 1;" -> "script"; "Halo" -> "".
    """
    if not title:
        return "empty"
    if _MARKUP.search(title):
        return "markup"
    return "script" if _SCRIPT.search(title) else ""


def is_null(text: str) -> bool:
    """Whether a text is empty, or the word of Python, JSON or pandas for nothing."""
    return text.strip().casefold() in _NULLS


def category_path(parts: Sequence[str]) -> str:
    """Joins a path from broad to narrow with ", ", as the specific intention (I2) has it.

    A comma inside a label is followed by a no-break blank, which prompts spell as a plain one, so
    that `path_labels` finds the labels whole.

    Parts that are empty or a word for nothing go, a part that repeats the one before goes, and a
    path ends where a part holds markup: from there shops that were scraped badly go on with a
    product's features.

    Example:
      ["Gift Cards", "Gift Cards", "Food &amp; Drink", "</span>", "100% cotton"] ->
      "Gift Cards, Food & Drink".
    """
    path: list[str] = []
    for part in map(clean_text, parts):
        if junk_kind(part) in ("markup", "script"):
            break
        if not is_null(part) and part not in path[-1:]:
            path.append(part)
    return _LABEL_END.join(part.replace(_LABEL_END, _COMMA_IN_LABEL) for part in path)


def path_labels(path: str) -> list[str]:
    """Returns the labels of a path that `category_path` joined, from broad to narrow."""
    return [label.replace("\u00a0", " ") for label in path.split(_LABEL_END) if label]


def clean_brand(text: str) -> str:
    """Returns a brand's bare name; "" where the text is markup or script.

    Example:
      "Visit Amazon's Ada Fenwick Page" -> "Ada Fenwick".
    """
    brand = clean_text(text)
    if junk_kind(brand):
        return ""
    page = _BRAND_PAGE.match(brand)
    if page:
        brand = page["author"] or page["shop"]
    return _BRAND_FORMAT.sub("", brand)


def cut_title(title: str, max_chars: int) -> str:
    """Returns at most `max_chars` characters, cut between words where there is a blank.

    Example:
      ("Sea Chart Deluxe", 12) -> "Sea Chart".
    """
    if len(title) <= max_chars:
        return title
    head, blank, _ = title[: max_chars + 1].rpartition(" ")
    return head.rstrip() if blank else title[:max_chars]


def title_ids(titles: Sequence[str]) -> npt.NDArray[np.int32]:
    """Numbers the titles so that those equal to a model, whatever their case, share a number.

    Args:
      titles: [items].

    Returns:
      [items] int32, numbers from 0 in order of appearance.

    Example:
      ["Halo", "Chess", "HALO"] -> [0, 1, 0].
    """
    numbers: dict[str, int] = {}
    keys = (model_title(title).casefold() for title in titles)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)


def _resolve(match: re.Match[str]) -> str:
    """Resolves one entity; an unknown name stays as it is."""
    entity = match.group()
    if entity.startswith("&#"):
        return html.unescape(entity)
    return html5.get(entity[1:].removesuffix(";") + ";", entity)
