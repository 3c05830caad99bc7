"""Intentions: the few sentences of a review that tell surely what somebody wanted.

A rule finds a phrase in a sentence ("bought this for *my son's birthday*") and says it in a frame
("I want something for my son's birthday"). A sentence that complains or denies gives nothing, and
neither does a phrase that speaks of the shop, of the item itself or, outside "I like ..." and "I am
a fan of ...", of a name: such texts are wrong too often. What was bought is left open. The rules
are in `rules.txt`, the words in `words.json`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from instructrec_jax.data.titles import clean_text
from instructrec_jax.instructions.leaks import content_words
from instructrec_jax.teacher.extractive.word_lists import WORDS, one_of, trimmed

MAX_CHARS = 160  # two lines of a prompt, twice the mean of the paper's texts
_MAX_PHRASE_WORDS = 12
_BEFORE = 25  # characters before a match in which a denial counts
_ROOM = 20  # characters that the view from outside may take more
_THING_FRAMES = ("looking for {x}", "something with {x}")
# Bound the time that one review can take.
_MAX_REVIEW_CHARS, _MAX_SENTENCES = 4000, 40

_MARKUP = re.compile(r"<[^<>]{1,80}>|\[\[[^\[\]]*\]\]|(?:https?://|www\.)\S+|\S{1,64}@\S{1,64}")
_SIGNS = re.compile(
    "[=*_~#^|`]+|-{2,}|[:;8]['-]?[)(DPp](?!\\w)|<3|[\u2190-\u2bff\U0001f000-\U0001faff]"
)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bJr)(?<!\b[A-Z])[.!?]+[\"')\]]*"
    r"(?:\s+|(?=[A-Z]))|[.!?]{2,}|\u2026"
)
_WORD = re.compile(r"\b")
_LONE_I = re.compile(r"\bi(?=$|[\s,']|'(?:m|ve|d|ll)\b)")
_COMPLAINT = re.compile(rf"\b(?:{one_of('complaints')}|\w+n't)\b", re.IGNORECASE)
_NAME = re.compile(r"(?<=\s)(?!I\b|Christmas|Easter|Valentine|Mother's|Father's|R&B)[\"']?[A-Z]")
# Where a phrase ends: at a mark, or where a new clause starts.
_END = re.compile(
    r"[,:()\[\]\"\u2013\u2014].*|\s-+\s.*"
    rf"|\s(?:{one_of('clause_starts')}|and {one_of('starts_after_and')})\b.*",
    re.IGNORECASE,
)
_LOOSE_END = re.compile(rf"(?:\s{one_of('loose_ends')})+$", re.IGNORECASE)
# A phrase with one of these is on the shop, on the item itself or on what happened.
_UNCLEAR = re.compile(
    rf"\b{one_of('pointers', 'verbs', 'vague_nouns')}\b|\b(?:{one_of('praise')}|product|item)$",
    re.IGNORECASE,
)
_SHOP = re.compile(rf"\b(?:{one_of('shop_words')}|other|rest|first|last)\b|[$\d]", re.IGNORECASE)
_VERB = re.compile(rf"\b(?:{one_of('description_verbs')}|\w+'s)\b")
_DETERMINER = re.compile(r"(?:an?|the|my|some|something|more|new|many|all|any)\b", re.IGNORECASE)
_AFTER_NOUN = re.compile(r" (?:for|to|of|in|on|with|from|by|that|who|at|and)\b")
_FEASTS = re.compile(r"\b(?:christmas|easter|valentine's|mother's|father's)\b", re.IGNORECASE)
_EVERYDAY = re.compile(rf"\b{one_of('praise', 'occasions')}\b", re.IGNORECASE)
_THIRD = {"my": "their", "our": "their", "me": "them", "us": "them", "mine": "theirs"}


@dataclasses.dataclass(frozen=True)
class Intention:
    """One intention in both voices.

    Attributes:
      first: as the user says it.
      third: seen from outside.
      weight: how surely it is a need.
      may_name: whether it may name what is liked.
    """

    first: str
    third: str
    weight: float
    may_name: bool


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A rule of `rules.txt`."""

    weight: float
    min_content: int
    flags: str
    frame: str
    pattern: re.Pattern[str]


def _read_rules() -> list[_Rule]:
    """Reads the rules, the surest first."""
    named = {name: one_of(name) for name in WORDS}
    rules = []
    lines = Path(__file__).with_name("rules.txt").read_text(encoding="utf-8").splitlines()
    remaining = (line for line in lines if line and not line.startswith("#"))
    for line in remaining:
        if line[0].isdigit():
            weight, min_content, flags, frame = line.split(" ", 3)
            pattern = re.compile(_expanded(next(remaining), named), re.IGNORECASE)
            rules.append(_Rule(float(weight), int(min_content), flags, frame, pattern))
        else:
            name, _, pattern_text = line.partition(" = ")
            named[name] = _expanded(pattern_text, named)
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
    """Returns whether a text denies or blames: what somebody did not get is no intention."""
    return _COMPLAINT.search(text) is not None


def intentions_in(sentence: str) -> Iterator[Intention]:
    """Yields the intentions that the rules find in a sentence, the surest first."""
    for rule in _RULES:
        match = rule.pattern.search(sentence)
        if match is None or sentence.count('"', 0, match.start()) % 2:
            continue
        phrase = match["x"] if "p" in rule.flags else _phrase(match["x"])
        said = sentence[max(0, match.start() - _BEFORE) : match.start("x") + len(phrase)]
        if complains(said) or not _is_clear(phrase, rule):
            continue
        first = rule.frame.format(x=_in_general(phrase, rule))
        if len(first) + _ROOM <= MAX_CHARS:
            yield Intention(first, third_person(first), rule.weight, "n" in rule.flags)


def third_person(text: str) -> str:
    """Returns a text that begins with "I" seen from outside.

    Example: "I want something for my son" -> "The user wants something for their son".
    """
    _, verb, rest = text.split(" ", 2)
    said = {"am": "is", "would": "would"}.get(verb, f"{verb}s")
    return f"The user {said} {''.join(_THIRD.get(word, word) for word in re.split(_WORD, rest))}"


def _phrase(text: str) -> str:
    """Returns a phrase up to where its thought ends."""
    text = trimmed(_END.sub("", text, count=1))
    while (shorter := trimmed(_LOOSE_END.sub("", text))) != text:
        text = shorter
    return text


def _is_clear(phrase: str, rule: _Rule) -> bool:
    """Returns whether a phrase tells something, in few words, and nothing of shop, item or past."""
    telling = content_words(phrase)
    is_short = len(telling) >= rule.min_content and phrase.count(" ") < _MAX_PHRASE_WORDS
    max_names = 2 if "n" in rule.flags else 0
    if not is_short or _SHOP.search(phrase) or len(_NAME.findall(phrase)) > max_names:
        return False
    if "d" in rule.flags and _VERB.search(phrase):
        return False
    return "p" in rule.flags or not _UNCLEAR.search(phrase)


def _in_general(phrase: str, rule: _Rule) -> str:
    """Returns a phrase said of any item: in the present, with the article it lacks."""
    head, blank, rest = phrase.partition(" ")
    if "n" not in rule.flags and not rest[:1].isupper():
        phrase = head.lower() + blank + rest
    phrase = _EVERYDAY.sub(lambda found: found[0].lower(), phrase)
    phrase = _FEASTS.sub(lambda found: found[0].capitalize(), phrase)
    phrase = re.sub(r"^(?:his|her|their)\b", "the", phrase)
    phrase = re.sub(r"\bwas\b", "is", re.sub(r"\bwere\b", "are", phrase))
    if rule.frame.endswith(_THING_FRAMES) and not _DETERMINER.match(phrase):
        noun = _AFTER_NOUN.split(phrase, maxsplit=1)[0].rpartition(" ")[2]
        if not noun.endswith("s") and noun not in WORDS["uncounted"]:
            phrase = f"a {phrase}"
    return re.sub(r"^a (?=[aeio]|un(?!i))", "an ", phrase)
