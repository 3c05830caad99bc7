"""Wishes that the sentences of a review tell of, put as one would say them when asking."""

import dataclasses
import re
from collections.abc import Iterator

from instructrec_jax.teacher.persona import user_sentence
from instructrec_jax.teacher.phrases import (
    MAX_CHARS,
    complains,
    cut,
    tidied,
    trimmed,
    without_asides,
)
from instructrec_jax.teacher.wish_rules import GOOD_WORDS, MIN_CONTENT, RULES, Rule
from instructrec_jax.teacher.words import STOP_WORDS, content_words, words

# Plain sentences among themselves; whatever a rule finds stands above 1.5.
_THING_WEIGHT, _BEING_WEIGHT, _PLAIN_WEIGHT, _PRAISE_BONUS = 1.4, 1.4, 0.8, 0.1
# A plain sentence is said whole or not at all; the view from outside needs some room more.
_ROOM = 10
_PLAIN_FRAME = 'I want something of which people say "{x}"'
# A name in a phrase makes it less of a wish: each counts this much.
_NAME_PENALTY = 0.1
MAX_NAMES = 2
# Up to this weight a rule has found a description, of which examples and names are no part.
_DESCRIPTION = 5.0


@dataclasses.dataclass(frozen=True)
class Wish:
    """One wish in both voices.

    Attributes:
      first: as the user says it.
      third: seen from outside.
      weight: how surely it is a need, 1 to 9.
    """

    first: str
    third: str
    weight: float


def wishes(sentence: str) -> Iterator[Wish]:
    """Yields the wishes that the rules find in a sentence, the most need-like first.

    A phrase is passed over where it tells too little (fewer content words than its rule asks for)
    or complains.

    Args:
      sentence: as `sentences.sentences` gives it.
    """
    small = f" {sentence.lower()}"
    for rule in RULES:
        if not any(cue in small for cue in rule.cues):
            continue
        match = rule.pattern.search(sentence)
        if match is None or not _is_meant(sentence, match):
            continue
        phrase = tidied(match["x"])
        max_names = MAX_NAMES
        if rule.weight <= _DESCRIPTION:
            phrase, max_names = trimmed(_EXAMPLES.sub("", phrase)), 1
        if not rule.is_liking and len(_NAME.findall(phrase)) > max_names:
            continue
        phrase = trimmed(_HERE.sub("", phrase))
        if (
            len(content_words(phrase)) < rule.min_content
            or complains(phrase)
            or _SAYS_NOTHING.fullmatch(phrase)
        ):
            continue
        if rule.is_common and lowered(phrase)[:1].isupper():
            continue
        yield _said(rule, match, phrase)


def plain_wish(sentence: str) -> Wish | None:
    """Returns a plain sentence as a wish: what it praises is what the user would like.

    Three shapes are said in frames of their own: a thing without a verb ("great soul music"), one
    that is something ("the beats are raw"), and any other short sentence.

    Returns:
      None where fewer than `MIN_CONTENT` content words tell something, no word praises, the
      sentence complains, tells a story of the user, speaks of the review or the order, or has
      more than `MAX_NAMES` names or one at its head (it is then on songs or people), or where it is
      longer than a text may be.
    """
    if _STORY.search(sentence) or complains(sentence):
        return None
    text = without_asides(sentence)
    telling = content_words(text)
    if len(telling) < MIN_CONTENT or GOOD_WORDS.isdisjoint(telling):
        return None
    text = lowered(text)
    if _THING.match(text) and not _VERB.search(text) and not _ONE_SONG.search(text):
        return _wish(f"I am looking for {with_article(text)}", _THING_WEIGHT)
    if match := _BEING.match(text):
        text = tidied(f"the {match['x']}")
        if len(content_words(text)) >= MIN_CONTENT and _BEING.match(text):
            return _wish(f"I would like something where {_in_present(text)}", _BEING_WEIGHT)
    if len(_NAME.findall(text)) > MAX_NAMES or not text[:1].islower() or _TALE.search(text):
        return None
    text = text.replace('"', "'")
    if _ONE_SONG.search(text) or len(text) > MAX_CHARS - len(_PLAIN_FRAME) - _ROOM:
        return None
    praise = sum(word in GOOD_WORDS for word in telling)
    weight = _PLAIN_WEIGHT + _PRAISE_BONUS * praise - _NAME_PENALTY * len(_NAME.findall(text))
    return _wish(_PLAIN_FRAME.format(x=text), weight)


def with_article(phrase: str) -> str:
    """Returns a phrase with "a" where its noun, the last word before a preposition, asks for it.

    Example: "great gift for a boss" -> "a great gift for a boss"; "great songs" stays.
    """
    first = phrase.split(" ", 1)[0].lower()
    noun = _AFTER_NOUN.split(phrase, maxsplit=1)[0].rstrip(" ,").rpartition(" ")[2].lower()
    if first in _DETERMINERS or noun.endswith("s") or noun in _UNCOUNTED or noun.endswith("ing"):
        return phrase
    return f"a {phrase}"


def lowered(phrase: str) -> str:
    """Returns a phrase with its first word in small letters, if that word is an everyday one."""
    head, blank, rest = phrase.partition(" ")
    spelt = words(head)
    if not spelt or head == "I" or head.startswith("I'"):
        return phrase
    is_everyday = len(spelt[0]) == 1 or spelt[0] in _EVERYDAY
    return head.lower() + blank + rest if is_everyday else phrase


def _is_meant(sentence: str, match: re.Match[str]) -> bool:
    """Tells whether what a rule found is neither denied nor part of a quoted title."""
    start = match.start()
    before = sentence[max(0, start - 15) : match.start("x")]
    return sentence.count('"', 0, start) % 2 == 0 and not complains(before)


def _said(rule: Rule, match: re.Match[str], phrase: str) -> Wish:
    """Says what a rule has found."""
    phrase = lowered(phrase)
    if all(name in _EVERYDAY for word in _CAPITALS.findall(phrase) for name in words(word)):
        phrase = _CAPITALS.sub(lambda found: found[0].lower(), phrase)
    if rule.is_present:
        phrase = _in_present(_HIS_HEAD.sub("the", phrase))
    if rule.is_thing:
        phrase = with_article(phrase)
    if "someone" in rule.frame:
        phrase = _HIS.sub("their", phrase)
    verb = match.groupdict().get("verb") or ""
    weight = rule.weight - _NAME_PENALTY * len(_NAME.findall(phrase))
    return _wish(rule.frame.format(x=phrase, verb=verb.lower()), weight)


def _wish(text: str, weight: float) -> Wish:
    """Makes a wish of the user's words."""
    first = cut(_ARTICLE.sub(r"\1n ", text))
    return Wish(first, cut(user_sentence(first)), weight)


def _in_present(phrase: str) -> str:
    """Returns a phrase in which the first "was" or "were" is "is" or "are"."""
    return _PAST.sub(lambda found: _PRESENT[found[0].lower()], phrase, count=1)


_PAST = re.compile(r"\b(?:was|were)\b", re.IGNORECASE)
_PRESENT = {"was": "is", "were": "are"}
_ARTICLE = re.compile(r"\b(a) (?=[aeioAEIO]\w)(?!one\b|once\b|[Ee]u)")
# The item itself, to which a reviewer points and which a wish must not.
_HERE = re.compile(
    r",? (?:(?:on|of|in|throughout|from|to|at|about|with) )?th(?:is|ese) (?:whole |entire "
    r"|particular )?(?:album|cd|disc|record|set|collection|one|card|cards|gift card|release"
    r"|compilation|lp|song|track|recording|product|book|game)s?\b",
    re.IGNORECASE,
)
_SAYS_NOTHING = re.compile(
    r"(?:good |great |real |all |the |any |his |her |their )*(?:music|songs?|albums?|cds?|items?"
    r"|products?|cards?|gift cards?|guys?|artists?|bands?)",
    re.IGNORECASE,
)
_CAPITALS = re.compile(r"(?<=\s)(?!I\b)[A-Z][a-z]+\b")
_EXAMPLES = re.compile(
    r",? (?:such as|like|including|e\.g\.|as in|on songs|especially|particularly) [\"'A-Z].*"
    r"|,? (?:such as|including|on songs like|with songs like)\b.*|,? [\"].*|,? '[A-Z].*"
)
_HIS_HEAD = re.compile(r"^(?:his|her|their|its)\b")
_THING = re.compile(
    rf"(?:an? |some |the most |one of |very |truly )*(?:{'|'.join(sorted(GOOD_WORDS))}),? [^\"]+$"
)
_ONE_SONG = re.compile(r"\b(?:track|song|tune|single|ballad|review)\b")
_HIS = re.compile(r"\b(?:his|her)\b")
_NAME = re.compile(r"(?<=\s)(?!I\b|Christmas|R&B)\"?[A-Z]")
_AFTER_NOUN = re.compile(r" (?:for|to|of|in|on|with|from|by|that|who|if|when|at|as|and)\b|[,:]")
_DETERMINERS = frozenset(
    words("""a an the some my our his her their these those this that one two three all any every
    each many most such what no more""")
)
_UNCOUNTED = frozenset(
    words("""music food service delivery quality packaging stuff fun value sound production soul
    rock pop jazz rap funk work taste bread value people shipping material entertainment poetry""")
)
_EVERYDAY = (
    STOP_WORDS
    | GOOD_WORDS
    | frozenset(
        words("""gift present stocking birthday family kid album music song card food delivery beat
        vocal lyric sound voice love thing idea way choice option stuffer son daughter grandson
        granddaughter grandmother grandchildren grandkid parent friend kid mom dad husband wife
        nephew niece sister brother need people party movie every one two three""")
    )
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|am|has|have|had|do|does|did|can|could|will|would|should|may"
    r"|might|must|make[sd]?|made|get|gets|got|go|goes|went|come[s]?|came|give[s]?|gave|take[s]?"
    r"|took|love[sd]?|like[sd]?|works?|worked|know|knows|see|seems?|sounds? \w+|stands?|plays?"
    r"|sings?|features?|brings?|shows?|keeps?|delivers?|contains?|includes?|gave|fits?|says?|said"
    r"|want\w*|need\w*|\w+'s (?:a|the|not|all|just)|it's|that's|there's|\w+ed (?:the|a|an|it|this"
    r"|my))\b"
)
_BEING = re.compile(
    r"(?:the|this|these|those|her|his|their) (?P<x>(?:[\w'-]+ ){1,3}(?:is|are|was|were) (?!the\b"
    r"|not\b|a\b|an\b|that\b|what\b|to\b|on\b|in\b|by\b|\d).+)"
)
_TALE = re.compile(
    r"\b(?:was|were|had|did)\b|^(?:while|although|though|despite|after|before|since|there|as|he|she"
    r"|you|gets?|gives?|makes?|takes?)\b"
)
_STORY = re.compile(
    r"\b(?:I|me|we|my|i'm|i've)\b|\b(?:reviews?|reviewers?|stars?|rating|arrived|advertised"
    r"|described|seller|happy with|pleased|satisfied|purchased?|shipper|thanks?|recommend\w*"
    r"|what can|thumbs|probably|seem\w*|could have|would have|supposed|could've|deal|worth"
    r"|received?|came|worked|buy|same|another|again|anyway|here)\b|\d[/.]\d"
    r"|(?-i:[a-z]{3}[A-Z][a-z])|^(?:and|but|so|or|if|when|because|also|then|which) ",
    re.IGNORECASE,
)
