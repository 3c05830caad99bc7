"""Scripts that a vocabulary cannot read: letters that are unknown to it, or spelt in bytes.

What a model is told in such letters it cannot know anything of. A language in the letters of the
vocabulary is not noticed: its words become short pieces like any rare word.
"""

import collections
import functools
import re
import unicodedata
from typing import NamedTuple

from instructrec_jax.tokenizer import SentencePieceModel

# First words of the Unicode names of letters, where these are no names of scripts.
_SCRIPTS = {
    "CJK": "Chinese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "FULLWIDTH": "Latin",
    "HALFWIDTH": "Japanese",
}
_WORD = re.compile(r"[^\W\d_]+")
_MOST_UNREAD = 0.5  # of the letters of a text that can still be worked with


class Unread(NamedTuple):
    """What of a text a vocabulary has no pieces for.

    Attributes:
      share: of its letters, those of words that have a letter of the kind.
      message: names their scripts; "" where there are none.
    """

    share: float
    message: str

    @property
    def is_too_much(self) -> bool:
        """Whether the text had better be asked for in other letters."""
        return self.share > _MOST_UNREAD


class ScriptReader:
    """Tells which letters of a text a vocabulary reads; threads may share it."""

    def __init__(self, vocabulary: SentencePieceModel) -> None:
        """Makes a reader; nothing is read yet."""
        self._vocabulary = vocabulary

    def unread(self, text: str) -> Unread:
        """Returns what of a text cannot be read.

        Example:
          "воздушный змей" with a vocabulary of English -> share 1.0, "the text is in Cyrillic
          script, of which this model's vocabulary has none".
        """
        unread = self._unread_places(text)
        if not unread:
            return Unread(0.0, "")
        words = [range(*found.span()) for found in _WORD.finditer(text)]
        torn = [word for word in words if not unread.isdisjoint(word)]
        share = sum(map(len, torn)) / sum(map(len, words))
        scripts = collections.Counter(_script(text[place]) for place in unread)
        most = [name for name, _ in scripts.most_common(3)]
        known = sum(self._letters[name] for name in most)
        part = "the text is" if share > _MOST_UNREAD else f"some letters ({len(unread)}) are"
        has = f"only {known} letters" if known else "none"
        script = f"{' and '.join(most)} script"
        return Unread(share, f"{part} in {script}, of which this model's vocabulary has {has}")

    def _unread_places(self, text: str) -> set[int]:
        """Returns the indices of the letters that the vocabulary has no piece for."""
        vocabulary = self._vocabulary
        return {
            place
            for piece in vocabulary.encode(text, out_type="immutable_proto").pieces
            if vocabulary.is_unknown(piece.id) or vocabulary.is_byte(piece.id)
            for place in range(piece.begin, piece.end)
            if text[place].isalpha()
        }

    @functools.cached_property
    def _letters(self) -> collections.Counter[str]:
        """How many letters of each script the pieces of the vocabulary are made of."""
        vocabulary = self._vocabulary
        letters = {
            sign
            for index in range(vocabulary.get_piece_size())
            if not vocabulary.is_byte(index)
            for sign in vocabulary.id_to_piece(index)
            if sign.isalpha()
        }
        return collections.Counter(map(_script, letters))


def _script(letter: str) -> str:
    """Returns the script of a letter, such as "Cyrillic"."""
    first = unicodedata.name(letter, "unknown").split(" ")[0]
    return _SCRIPTS.get(first, first.capitalize())
