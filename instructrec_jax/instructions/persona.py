"""Persona shift: what a person writes of themselves, seen from outside (paper section 2.3).

"I want a kite for my son" becomes "The user wants a kite for their son": the voice of half of the
texts that models are trained on. The words are in `persona.json`. Text in quotes stays as it is,
and so does what looks like a title: "My", "We" or "Our" with a capital inside a sentence, and an
"I" beside a capitalised word ("I Am Legend", "World War I").
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

_QUOTED = re.compile(
    r"(\"[^\"]*\"|\u201c[^\u201d]*\u201d|\u00ab[^\u00bb]*\u00bb|\u2018[^\u2018]*?\u2019(?!\w)"
    r"|(?<!\w)'(?:[^']|(?<=\w)'(?=\w))+'(?!\w))"
)
_WORD = re.compile(r"([^\W_]+(?:['\u2019][^\W_]+)*)")
_SENTENCE_END = re.compile(r"[.!?\n]")
_IS_PAST = re.compile("(?:[^e]|agre|fre)ed$")  # and not "need"
_TAKES_ES, _TAKES_IES = re.compile("(?:s|x|z|ch|sh|o)$"), re.compile("[^aeiou]y$")
_SHOUTED_SHARE, _MIN_LETTERS = 0.6, 6
_SUBJECTS = frozenset({"i", "we"})
_WORDS = {
    name: [each.split(" ", 1) for each in text.split(", ")]
    for name, text in json.loads(
        Path(__file__).with_name("persona.json").read_text(encoding="utf-8")
    ).items()
}


def _mapping(name: str) -> dict[str, str]:
    return {each[0]: each[-1] for each in _WORDS[name]}


_PRONOUNS, _FIRST_PRONOUNS = _mapping("pronouns"), _mapping("first_pronouns")
_CONTRACTIONS, _INVERTED = _mapping("contractions"), _mapping("inverted")
_VERBS, _PLURAL_VERBS = _mapping("verbs"), _mapping("plural_verbs")
_SAME_VERBS, _AUXILIARIES = _mapping("same_verbs").keys(), _mapping("auxiliaries").keys()
_ADVERBS, _JOINING, _ASKING = (_mapping(name).keys() for name in ("adverbs", "joining", "asking"))
_JOINED_VERBS, _BEFORE_MINE = _mapping("joined_verbs").keys(), _mapping("before_mine").keys()


def third_person(text: str) -> str:
    """Returns a text in the third person; one that is in it already stays as it is.

    A shouted text (more than 60 % capitals of 6 letters or more) is put into small letters first,
    but for what is in quotes.

    Example:
      'I want a kite for my son, like "My Kite"' ->
      'The user wants a kite for their son, like "My Kite"'.
    """
    parts = _QUOTED.split(text)
    letters = [sign for part in parts[::2] for sign in part if sign.isalpha()]
    is_shouted = sum(map(str.isupper, letters)) > _SHOUTED_SHARE * len(letters)
    if is_shouted and len(letters) >= _MIN_LETTERS:
        parts[::2] = map(str.lower, parts[::2])
    shift = _Shift()
    parts[::2] = [shift.shifted(part) for part in parts[::2]]
    return "".join(parts)


class _Shift:
    """The shift of one text, part by part between quotes."""

    def __init__(self) -> None:
        self._is_start = True  # of a sentence, the next word is
        self._is_named = False  # the user, in what was read so far
        self._subject = ""  # of the sentence, as it was written
        self._waits_for_verb = False

    def shifted(self, part: str) -> str:
        """Returns a part in the third person."""
        pieces = _WORD.split(part)  # blanks and marks, with a word between each two
        first = 1  # word of the sentence
        for at in range(1, len(pieces), 2):
            before, after = pieces[at - 1], pieces[at + 1]
            if _SENTENCE_END.search(before):
                self._is_start, self._subject, first = True, "", at
            if before.strip():
                self._waits_for_verb = False
            if not (before.endswith("-") or after.startswith("-")):
                self._shift_word(pieces, at, first)
            self._is_start = False
        if _SENTENCE_END.search(pieces[-1]):
            self._is_start, self._subject = True, ""
        self._waits_for_verb = False
        return "".join(pieces)

    def _shift_word(self, pieces: list[str], at: int, first: int) -> None:
        """Puts the word at an index into the third person, in place."""
        word = pieces[at]
        lower = _plain(word)
        is_proper = word[0].isupper() and not self._is_start
        previous = pieces[at - 2].split()[-1].lower() if at > first else ""
        if lower in _SUBJECTS or lower in _CONTRACTIONS:
            is_i = lower[0] == "i"
            if not (_is_name(pieces, at, first) if is_i else is_proper):
                self._put_subject(pieces, at, first)
        elif lower in _PRONOUNS:
            if not is_proper and (lower != "mine" or previous in _BEFORE_MINE):
                shown = (_PRONOUNS if self._is_named else _FIRST_PRONOUNS)[lower]
                pieces[at] = _capitalised(shown) if word[0].isupper() else shown
                self._is_named = True
            self._waits_for_verb = False
        elif self._waits_for_verb:
            if not (lower in _ADVERBS or lower.endswith("ly")):
                self._waits_for_verb = False
                pieces[at] = self._said(word, lower)
        elif lower in _JOINED_VERBS and previous in _JOINING and self._subject:
            pieces[at] = self._said(word, lower)
        self._is_named |= lower == "user"

    def _put_subject(self, pieces: list[str], at: int, first: int) -> None:
        """Writes the subject, and the verb that is within the word or right before it."""
        verb = _CONTRACTIONS.get(_plain(pieces[at]), "")
        self._subject = "they" if self._is_named else "the user"
        pieces[at] = _capitalised(self._subject) if self._is_start else self._subject
        if verb:
            pieces[at] += f" {self._said(verb, verb)}"
        self._is_named, self._waits_for_verb = True, not verb
        if at == first or pieces[at - 1] != " ":
            return
        before = pieces[at - 2].lower()
        if before in _AUXILIARIES:
            self._waits_for_verb = False
        elif before in _INVERTED and (at - 2 == first or pieces[at - 4].lower() in _ASKING):
            asked = _PLURAL_VERBS.get(before, before)
            asked = _INVERTED[before] if self._subject == "the user" else asked
            pieces[at - 2] = _capitalised(asked) if pieces[at - 2][0].isupper() else asked
            self._waits_for_verb = False

    def _said(self, word: str, lower: str) -> str:
        """Returns a verb of the first person as the subject takes it."""
        if self._subject == "they":
            return _PLURAL_VERBS.get(lower, word)
        if lower in _VERBS:
            return _VERBS[lower]
        if lower in _SAME_VERBS or _IS_PAST.search(lower):
            return word
        if _TAKES_ES.search(lower):
            return f"{word}es"
        return f"{word[:-1]}ies" if _TAKES_IES.search(lower) else f"{word}s"


def _is_name(pieces: Sequence[str], at: int, first: int) -> bool:
    """Returns whether an "I" belongs to a name: "I Am Legend", "I, Robot", "Part I", "i.e."."""
    following = pieces[at + 2] if at + 2 < len(pieces) else ""
    if pieces[at] == "i":
        return pieces[at + 1] == "." and following != ""
    if pieces[at] != "I":
        return False
    is_after_name = at - 2 > first and pieces[at - 1] == " " and _is_proper(pieces[at - 2])
    is_before_name = _is_proper(following) and _plain(following) not in _CONTRACTIONS
    return is_after_name or (is_before_name and pieces[at + 1] in (" ", ", "))


def _is_proper(word: str) -> bool:
    return word[:1].isupper() and word[1:].islower()


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _plain(word: str) -> str:
    return word.lower().replace("\u2019", "'")
