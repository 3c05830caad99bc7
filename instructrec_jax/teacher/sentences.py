"""Sentences of a review, cleaned of what is not speech."""

import re

from instructrec_jax.data.titles import clean_text
from instructrec_jax.teacher.persona import capitalised

_MARKUP = re.compile(
    r"<[^<>]{1,80}>|\[\[[^\[\]]*\]\]|\[\.\.\.\]|(?:https?://|www\.)\S+|[^\s@]{1,64}@[^\s@]{1,64}"
)
# ":)" and its kind end a sentence; runs of signs serve as rulers or emphasis.
_FACES = re.compile(r"(?:^|(?<=\s)|(?<=[.!?]))[:;8]['-]?[)(DPp](?!\w)|<3")
_SIGNS = re.compile(r"(?<!\w)[=*_~#^]+|[=_~^]+|[*#]+(?!\w)|-{3,}")
_PICTURES = re.compile("[\u2190-\u2bff\ufe0f\ufffd\U0001f000-\U0001faff]")
# A sentence ends at its mark before a blank, or where the next one starts without a blank.
_END = re.compile(
    r"(?<=[.!?])[\"')\]]*\s+|(?<=[a-z0-9)\"'][.!?])(?=[\"'(]?[A-Z])|\s\.(?=[A-Z])|(?<=[!?])(?=[A-Za-z])|\s\|\s"
    r"|(?:…|\.{2,})\s*"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|vol|no|feat|ft|etc|approx|e\.g|i\.e|inc|[A-Z])\.)$",
    re.IGNORECASE,
)
_LONE_I = re.compile(r"\bi(?=$|[\s,']|'(?:m|ve|d|ll)\b)")
_FEAST = re.compile(r"\b(?:christmas|xmas|easter|valentine|amazon)\b")
_SHORT_I = re.compile(r"\b[Ii](m|ve)\b(?!')")
MAX_SENTENCES = 40
# Bounds the time that one review can take.
MAX_REVIEW_CHARS = 4000


def sentences(review: str) -> list[str]:
    """Returns the sentences of a review, in order, without their final marks.

    Entities, markup, addresses, emoticons and runs of signs are taken out, shouted sentences (more
    than 60 % capitals of 6 letters or more) put into small letters, a small "i" made "I". Only the
    first `MAX_SENTENCES` of the first `MAX_REVIEW_CHARS` characters are read: what a review is
    about stands early.

    Example:
      "GREAT GIFT FOR MY SON!!! <br />He loves it :)" -> ["Great gift for my son", "He loves it"].
    """
    text = (
        _MARKUP.sub(" ", clean_text(review[:MAX_REVIEW_CHARS]))
        .replace("\u2019", "'")
        .replace("`", "'")
    )
    text = text.translate(_QUOTES)
    text = " ".join(_PICTURES.sub(" ", _SIGNS.sub(" ", _FACES.sub(". ", text))).split())
    found: list[str] = []
    for piece in _END.split(text):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
        if len(found) > MAX_SENTENCES:
            break
    tidied = (_tidied(piece) for piece in found[:MAX_SENTENCES])
    return [sentence for sentence in tidied if sentence]


_QUOTES = {ord("\u201c"): '"', ord("\u201d"): '"', ord("\u2018"): "'", ord(";"): ","}


def _tidied(sentence: str) -> str:
    """Returns a sentence without outer marks, not shouted, with a capital at its head."""
    text = sentence.strip(" .!?,;:-\u2013\u2014*|/\\")
    letters = [sign for sign in text if sign.isalpha()]
    if len(letters) >= 6 and sum(map(str.isupper, letters)) > 0.6 * len(letters):
        text = text.lower()
    text = _SHORT_I.sub(r"I'\1", _LONE_I.sub("I", text))
    return capitalised(_FEAST.sub(lambda found: capitalised(found[0]), text))
