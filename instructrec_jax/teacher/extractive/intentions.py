"""Intentions: the few sentences of a review that tell surely what somebody wanted.

A rule finds a phrase in a sentence ("bought this for *my son's birthday*") and says it in a frame
("I want something for my son's birthday"). Nearly all rules know every word of their phrase, so
that what they say is said rightly; the few that do not take a need that is spelt out ("I was
looking for ..."), up to the end of the thought, and drop it where it holds a name, a verb, the shop
or a word that only points. A sentence that complains, denies or doubts gives nothing, and neither
does one on a gift that was received. The rules are in `rules.txt`, the words in `words.json`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from instructrec_jax.data.titles import clean_text
from instructrec_jax.instructions.leaks import content_words
from instructrec_jax.instructions.persona import third_person
from instructrec_jax.teacher.extractive.word_lists import WORDS, one_of, trimmed

MAX_CHARS = 160  # two lines of a prompt, twice the mean of the paper's texts
_MAX_OPEN_WORDS, _MIN_OPEN_CONTENT = 9, 2
_ROOM = 20  # characters that the view from outside may take more
# Bound the time that one review can take.
_MAX_REVIEW_CHARS, _MAX_SENTENCES, _MAX_SENTENCE_CHARS = 4000, 40, 400

_MARKUP = re.compile(r"<[^<>]{1,80}>|\[\[[^\[\]]*\]\]|(?:https?://|www\.)\S+|\S{1,64}@\S{1,64}")
_SIGNS = re.compile(
    "[=*_~#^|`]+|-{2,}|[:;8]['-]?[)(DPp](?!\\w)|<3|[\u2190-\u2bff\U0001f000-\U0001faff]"
)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bJr)(?<!\b[A-Z])[.!?]+[\"')\]]*"
    r"(?:\s+|(?=[A-Z]))|[.!?]{2,}|\u2026"
)
_LONE_I = re.compile(r"\bi(?=$|[\s,']|'(?:m|ve|d|ll)\b)")
_COMPLAINT = re.compile(rf"\b(?:{one_of('complaints')}|\w+n't)\b", re.IGNORECASE)
_DOUBT = re.compile(rf"\b(?:{one_of('doubts')}|(?:some|half|few) of)\b", re.IGNORECASE)
_RECEIVED = re.compile(
    r"\b(?:received|(?:was|were|been) (?:given|gifted)|(?:gave|given to|got|bought|sent|gifted)"
    rf" (?:me|us)|from (?:my|our|a friend)|for (?:me|us) as|(?:he|she|{one_of('relations')})"
    r" (?:bought|got|gave|purchased|sent))\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"\s(?!I\b|Christmas|Easter|Valentine|Mother's|Father's|R&B)[\"']?[A-Z]")
# Where an open phrase ends: at a mark, or where a new clause starts.
_END = re.compile(
    rf"[,:()\[\]\"\u2013\u2014/].*|\s-+\s.*|\s(?:{one_of('clause_starts')})\b.*", re.IGNORECASE
)
_LOOSE_END = re.compile(rf"(?:\s{one_of('loose_ends')})+$", re.IGNORECASE)
_UNCLEAR = re.compile(
    rf"\b{one_of('pointers', 'verbs', 'shop_words')}\b|\b{one_of('vague_nouns')}$|[$\d]",
    re.IGNORECASE,
)
_CAPITALS = {word.lower(): word for word in WORDS["capitals"]}
_CAPITAL = re.compile(rf"(?<!\w){one_of('capitals')}(?!\w)", re.IGNORECASE)
_ADVERB = re.compile(rf"\b{one_of('adverbs')} ")
# As an intention says it of the item: "smell good" and "smelled good" both become "smells good".
_VERBS = {"was": "is", "were": "are", "made": "makes", "left": "leaves", "kept": "keeps"}
_VERBS |= {v: f"{v}s" for v in ("smell", "fit", "taste", "feel", "lather", "leave", "make", "keep")}
_COUNTED = re.compile(
    rf"\b(?:{one_of('counted', 'counted_aspects')}|gift idea|gift|present|stuffer)(?: for .*)?$"
)


@dataclasses.dataclass(frozen=True)
class Intention:
    """One intention in both voices.

    Attributes:
      first: as the user says it.
      third: seen from outside.
      rank: of its rule, 0 for the surest.
    """

    first: str
    third: str
    rank: int


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A rule of `rules.txt`."""

    is_open: bool
    frame: str
    pattern: re.Pattern[str]


def _read_rules() -> list[_Rule]:
    """Reads the rules, the surest first."""
    named = {name: one_of(name) for name in WORDS}
    rules = []
    lines = Path(__file__).with_name("rules.txt").read_text(encoding="utf-8").splitlines()
    remaining = (line for line in lines if line and not line.startswith("#"))
    for line in remaining:
        name, is_definition, text = line.partition(" = ")
        if is_definition:
            named[name] = _expanded(text, named)
        else:
            flag, frame = line.split(" ", 1)
            pattern = re.compile(_expanded(next(remaining), named), re.IGNORECASE)
            rules.append(_Rule(flag == "open", frame, pattern))
    return rules


def _expanded(pattern: str, named: Mapping[str, str]) -> str:
    return re.sub(r"%(\w+)%", lambda found: named[found[1]], pattern)


_RULES = _read_rules()


def sentences(review: str) -> list[str]:
    """Returns the first sentences of a review without markup, emoticons and final marks.

    Shouted sentences (more than 60 % capitals of 6 letters or more) are put into small letters.

    Example:
      "GREAT GIFT FOR MY SON!!! <br />He loves it :)" -> ["great gift for my son", "He loves it"].
    """
    text = clean_text(review[:_MAX_REVIEW_CHARS]).translate({0x2019: "'", ord(";"): ","})
    text = " ".join(_SIGNS.sub(". ", _MARKUP.sub(" ", text)).split())
    found = []
    for part in _SENTENCE_END.split(text)[:_MAX_SENTENCES]:
        sentence = part.strip(" .!?,;:-\u2013\u2014/\\\"'")
        letters = [sign for sign in sentence if sign.isalpha()]
        if len(letters) >= 6 and sum(map(str.isupper, letters)) > 0.6 * len(letters):
            sentence = sentence.lower()
        if letters:
            found.append(_LONE_I.sub("I", sentence))
    return found


def complains(text: str) -> bool:
    """Returns whether a text denies, blames or doubts: what it tells of is not surely wanted."""
    return _COMPLAINT.search(text) is not None


def intentions_in(sentence: str) -> Iterator[Intention]:
    """Yields the intentions that the rules find in a sentence, the surest first."""
    if complains(sentence) or _RECEIVED.search(sentence) or len(sentence) > _MAX_SENTENCE_CHARS:
        return
    for rank, rule in enumerate(_RULES):
        match = rule.pattern.search(sentence)
        if match is None or sentence.count('"', 0, match.start()) % 2:
            continue
        if _DOUBT.search(sentence, 0, match.end("x")):
            continue
        phrase = _open_phrase(match["x"]) if rule.is_open else _known_phrase(match["x"], rule)
        first = rule.frame.format(x=phrase)
        if phrase and len(first) + _ROOM <= MAX_CHARS:
            yield Intention(first, third_person(first), rank)


def _open_phrase(text: str) -> str:
    """Returns a phrase up to where its thought ends; "" where it is not surely a thing to want."""
    text = trimmed(_END.sub("", text, count=1))
    while (shorter := trimmed(_LOOSE_END.sub("", text))) != text:
        text = shorter
    is_short = text.count(" ") < _MAX_OPEN_WORDS
    if not is_short or len(content_words(text)) < _MIN_OPEN_CONTENT:
        return ""
    return "" if _UNCLEAR.search(text) or _NAME.search(text) else _with_capitals(text)


def _known_phrase(text: str, rule: _Rule) -> str:
    """Returns a phrase of known words in the present, with its article and capitals."""
    phrase = re.sub(r",(?= \S+$)", "", _ADVERB.sub("", text.lower()))
    phrase = re.sub(r"(?<=[st]) to (?=my|our)", " for ", phrase)  # "a gift to my son"
    phrase = re.sub(r"\b(?:was|were)\b", lambda found: _VERBS[found[0]], phrase)
    if rule.frame.endswith(" that {x}"):
        verb, _, rest = phrase.partition(" ")
        phrase = f"{_VERBS.get(verb, verb)} {re.sub('^(?:your|the) ', 'my ', rest)}"
    if _COUNTED.search(phrase) and not re.match(r"(?:an?|the|some) ", phrase):
        phrase = f"a {phrase}"
    phrase = re.sub(r"\ban (?=\w)", "a ", _with_capitals(phrase))
    return re.sub(r"\ba (?=[aeioE]|un(?!i)|u[^ns]|R&B)", "an ", phrase)


def _with_capitals(text: str) -> str:
    return _CAPITAL.sub(lambda found: _CAPITALS[found[0].lower()], text)
