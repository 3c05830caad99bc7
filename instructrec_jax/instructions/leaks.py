"""What gives the title of an item away.

The paper takes an intention from the review of the very item that is to be found, so the text may
name the answer (PAPER.md, ambiguity 24). The rule, on words as `words` spells them:

1. Stop words, single letters, numbers and words of the trade ("gift", "card", "edition", "xbox":
   `GENERIC_WORDS`) are left out of text and title; what is left are the telling words.
2. A text quotes a title if `LONG_RUN` = 3 telling words in a row of the title stand in a row in the
   text. Two in a row occur by chance ("red box", "love song"); three hardly ever do.
3. It also does if all telling words of the title, be it one alone, stand in a row in the text:
   "Starbucks Gift Card" is given away by "starbucks", and so is the album "Octave" by "octave".
4. The same holds for each part of the title between dashes, colons, brackets, commas or bars
   that has two telling words or more: the name of an artist or of a series before its subtitle.
   Parts of one telling word are left out, else "Story: Deluxe" would forbid the word "story".
5. A title of stop words alone, two or more, is quoted where they stand in the text in a row ("So
   What" by "so what"). Other titles without a telling word ("Gift Card", "Best Of", "1984") are
   never quoted: that would forbid all words of the trade.

Rule 3 is strict on titles of one everyday word, on purpose: a text rejected in vain costs one
sentence of a review, a title let through gives the answer away.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

LONG_RUN = 3
_PARTS = re.compile(r"\s[-\u2013\u2014]+\s|[:;,()\[\]{}/|~\u2013\u2014]")
_NUMBER = re.compile(r"\d+(?:gb|oz|ml|in|ct|pk|pack|k)?")
# A word may hold apostrophes, and dots between its letters ("o'clock", "T.G.I."); all else parts.
_WORD = re.compile(r"[^\W_]+(?:['\u2019.][^\W_]+)*")
_ENDING = re.compile(r"['\u2019]s\b|\.com\b")
_MARKS = str.maketrans("", "", ".'\u2019")


def words(text: str) -> list[str]:
    """Returns the words of a text, spelt so that the spellings of one word agree.

    Small letters; a possessive "'s", a plural "s" (of words longer than three letters), ".com",
    apostrophes and dots inside initials are dropped.

    Example:
      "T.G.I. Friday's Gift-Cards" -> ["tgi", "friday", "gift", "card"].
    """
    return [
        _singular(word.translate(_MARKS)) for word in _WORD.findall(_ENDING.sub("", text.lower()))
    ]


def _singular(word: str) -> str:
    """Returns a word without the "s" of a plural; words of up to three letters stay."""
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        return word[:-1]
    return word


def word_list(path: Path) -> frozenset[str]:
    """Returns the words of a text file, spelt as `words` does."""
    return frozenset(words(path.read_text(encoding="utf-8")))


STOP_WORDS = word_list(Path(__file__).with_name("stop_words.txt"))
# Words of the trade say of what kind an item is, and platforms what it runs on: neither says which
# item it is. A text may use them freely, so they are left out before it is compared with a title.
PLATFORM_WORDS = word_list(Path(__file__).with_name("platform_words.txt"))
GENERIC_WORDS = PLATFORM_WORDS | word_list(Path(__file__).with_name("trade_words.txt"))


def is_content(word: str) -> bool:
    """Returns whether a word, spelt as `words` does, is neither a stop word nor one letter."""
    return len(word) > 1 and word not in STOP_WORDS


def content_words(text: str) -> list[str]:
    """Returns the words of a text that tell what it is about.

    Example:
      "A card for the boss" -> ["card", "boss"].
    """
    return [word for word in words(text) if is_content(word)]


def quotes_title(text: str, title: str) -> bool:
    """Returns whether a text gives a title away, by the rule at the head of this module.

    Args:
      text: what a teacher wrote.
      title: title of the item that the text must not name.

    Example:
      ("any panda express is fine", "Panda Express Gift Card, Pack of 3") -> True.
      ("a gift card for lunch", "Panda Express Gift Card, Pack of 3") -> False.
    """
    found, phrases = _title_phrases(title)
    if not phrases:
        return False
    spoken = words(text)
    if found:
        spoken = [word for word in spoken if _is_telling(word)]
    return any(_holds(spoken, phrase) for phrase in phrases)


def gives_away(text: str, title: str, brand: str) -> bool:
    """Returns whether a text says which item was chosen, or who makes it.

    Args:
      text: an intention.
      title: of the item.
      brand: its maker, "" where unknown; a telling word of it is enough.
    """
    if any(name and quotes_title(text, name) for name in (title, brand)):
        return True
    return not (set(content_words(brand)) - GENERIC_WORDS).isdisjoint(content_words(text))


def quoting(texts: Iterable[str], title: str) -> list[str]:
    """Returns those texts that give a title away."""
    texts = list(texts)
    if not quotes_title("\n".join(texts), title):  # so quickly for nearly all of them
        return []
    return [text for text in texts if quotes_title(text, title)]


def is_foreign(text: str, title: str, history: Sequence[str]) -> bool:
    """Returns whether a text that quotes a title cannot have its words from the history.

    A preference names what a user chose before, and the next item may be more of the same. One
    word alone may be the teacher's own.

    Args:
      text: a preference.
      title: of the target.
      history: titles before it.
    """
    if any(quotes_title(item, title) for item in history):
        return False
    shared = set(content_words(text)) & set(content_words(title)) - GENERIC_WORDS
    return len(shared.difference(*map(words, history))) > 1


@functools.lru_cache(maxsize=1 << 16)
def _title_phrases(title: str) -> tuple[bool, tuple[tuple[str, ...], ...]]:
    """Returns whether a title has telling words, and the runs of words that give it away."""
    spelt = words(title)
    telling = [word for word in spelt if _is_telling(word)]
    if not telling:
        is_name = len(spelt) >= 2 and GENERIC_WORDS.isdisjoint(spelt)
        is_name = is_name and not any(_NUMBER.fullmatch(word) for word in spelt)
        return False, (tuple(spelt),) if is_name else ()
    phrases = {tuple(telling)}
    phrases.update(tuple(telling[i : i + LONG_RUN]) for i in range(len(telling) - LONG_RUN + 1))
    for part in _PARTS.split(title):
        inside = [word for word in words(part) if _is_telling(word)]
        if len(inside) >= 2:
            phrases.add(tuple(inside))
    return True, tuple(sorted(phrases))


def _is_telling(word: str) -> bool:
    """Returns whether a word says which item is meant."""
    return is_content(word) and word not in GENERIC_WORDS and not _NUMBER.fullmatch(word)


def _holds(spoken: Sequence[str], phrase: tuple[str, ...]) -> bool:
    """Returns whether a phrase stands in a row among spoken words."""
    size = len(phrase)
    return any(
        spoken[i] == phrase[0] and tuple(spoken[i : i + size]) == phrase
        for i in range(len(spoken) - size + 1)
    )
