"""Whether a text gives an item's title away.

The paper takes an intention from the review of the very item that is to be found, so the text may
name the answer (docs: ambiguity 24). The rule, on words as `teacher.words` spells them:

1. Stop words, single letters, numbers and words of the trade ("gift", "card", "edition", "xbox":
   `GENERIC_WORDS`) are counted out of text and title; what is left are the telling words.
2. A text quotes a title if `LONG_RUN` = 3 telling words in a row of the title stand in a row in the
   text. Two in a row occur by chance ("red box", "love song"); three hardly ever do.
3. It also does if all telling words of the title, be it one alone, stand in a row in the text:
   "Starbucks Gift Card" is given away by "starbucks", and so is the album "Octave" by "octave".
4. The same holds for each part of the title between dashes, colons, brackets, commas or bars
   that has two telling words or more: the name of an artist or of a series before its subtitle.
   Parts of one telling word are left out, else "Story: Deluxe" would forbid the word "story".
5. A title of stop words alone, two or more, is quoted where they stand in the text in a row ("So
   What" by "so what"). Other titles without a telling word ("Gift Card", "Best Of", "1984") are
   never quoted: that would forbid all speech of the trade.

Rule 3 is strict on titles of one everyday word, on purpose: a text rejected in vain costs one
sentence of a review, a title let through gives the answer away.
"""

import functools
import re
from collections.abc import Sequence

from instructrec_jax.teacher.words import GENERIC_WORDS, is_content, words

LONG_RUN = 3
_PARTS = re.compile(r"\s[-\u2013\u2014]+\s|[:;,()\[\]{}/|~\u2013\u2014]")
_NUMBER = re.compile(r"\d+(?:gb|oz|ml|in|ct|pk|pack|k)?")


def quotes_title(text: str, title: str) -> bool:
    """Tells whether a text gives a title away, by the rule at the head of this module.

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
    """Tells whether a word says which item is meant."""
    return is_content(word) and word not in GENERIC_WORDS and not _NUMBER.fullmatch(word)


def _holds(spoken: Sequence[str], phrase: tuple[str, ...]) -> bool:
    """Tells whether a phrase stands in a row in what was spoken."""
    size = len(phrase)
    return any(
        spoken[i] == phrase[0] and tuple(spoken[i : i + size]) == phrase
        for i in range(len(spoken) - size + 1)
    )
