"""Persona shift: the same text in the user's own voice and seen from outside (paper section 2.3).

The user becomes "they", which takes the verb that "I" takes ("I like" -> "they like"), so that only
the forms of "to be" must agree. Where a sentence starts with the user, "I" becomes "The user" and
the verb after it takes its ending.
"""

import re

from instructrec_jax.teacher.words import words

_WORDS = {
    "i": "they",
    "me": "them",
    "my": "their",
    "mine": "theirs",
    "myself": "themselves",
    "we": "they",
    "us": "them",
    "our": "their",
    "ours": "theirs",
    "ourselves": "themselves",
}
_VERBS = {"am": "are", "'m": "are", "was": "were", "wasn't": "weren't"}
_SHORT = {"'ve": "have", "'d": "would", "'ll": "will", "'re": "are"}
# "I" with the verb right after it, then every other word that speaks of the user. "US", "MY" and
# the like are left: in capitals they are a country or part of a name.
_FIRST = re.compile(
    r"\b(?:I(?:(?P<short>'(?:m|ve|d|ll))|(?P<verb>\s+(?:am|was|wasn't))\b)?"
    r"|(?P<us>^We|we|us)(?P<plural>'(?:re|ve|d|ll))?"
    r"|(?P<word>(?:^M|m)(?:e|y|yself)|mine|(?:^O|o)ur|ours|ourselves))(?![\w\u2019'])"
)
_AM_I = re.compile(r"\b(am|was) I\b")
# Verbs that people begin a wish or a liking with; the others keep away from the ending below.
_IRREGULAR = {
    "am": "is",
    "have": "has",
    "do": "does",
    "don't": "doesn't",
    "haven't": "hasn't",
    "'m": "is",
    "'ve": "has",
    "'d": "would",
    "'ll": "will",
}
_REGULAR = frozenset(
    words("""adore appreciate buy collect dig enjoy feel find get give go grow hate hear hope keep
    know like listen look love make need own play prefer recommend remember see send shop start
    think treasure use want wish work""")
)
_UNCHANGED = frozenset(
    words("""was had did could would will should can must may might bought got gave went found heard
    saw thought felt knew grew kept sent made wanted needed loved liked enjoyed ordered purchased
    used received listened played owned discovered remembered""")
)
_ADVERBS = r"(?:really|also|just|always|still|absolutely|truly|only|often|usually|never|ever|\w+ly)"
_SUBJECT = re.compile(
    rf"I(?P<short>'(?:m|ve|d|ll))?(?P<adverbs>(?:\s+{_ADVERBS})*)"
    r"(?:\s+(?P<verb>[a-z]+(?:n't)?))?(?P<rest>(?:[^\w'].*)?)$",
    re.DOTALL,
)


def third_person(text: str) -> str:
    """Returns a phrase with the user as "they".

    Example:
      "my son and I'm sure I was right" -> "their son and they are sure they were right".
    """
    text = _AM_I.sub(lambda found: _VERBS[found[1]] + " they", text.replace("\u2019", "'"))
    parts = text.split('"')
    parts[::2] = [_FIRST.sub(_shifted, part) for part in parts[::2]]
    return '"'.join(parts)


def user_sentence(text: str) -> str:
    """Returns a sentence seen from outside.

    Example:
      "I love my new harp" -> "The user loves their new harp";
      "My son adores it" -> "Their son adores it".
    """
    match = _SUBJECT.fullmatch(text.replace("\u2019", "'"))
    if match is None:
        return capitalised(third_person(text))
    verb = _IRREGULAR.get(match["short"] or "", "") or _agreeing(match["verb"] or "")
    rest = third_person(match["rest"])
    if not verb:
        return f"The user says {third_person(text)}"
    word = match["verb"] or ""
    following = f" {word}" if match["short"] and word else ""
    adverbs = match["adverbs"]
    if match["short"]:
        return f"The user {verb}{adverbs}{following}{rest}"
    return f"The user{adverbs} {verb}{rest}"


def capitalised(text: str) -> str:
    """Returns the text with a capital first letter and all else as it is."""
    return text[:1].upper() + text[1:]


def _agreeing(verb: str) -> str:
    """Returns the form of a verb that goes with "the user"; "" where it is not known."""
    if verb in _IRREGULAR:
        return _IRREGULAR[verb]
    if verb in _UNCHANGED:
        return verb
    if verb not in _REGULAR:
        return ""
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "o")) else "s")


def _shifted(match: re.Match[str]) -> str:
    """Returns what one word on the user becomes, its verb included."""
    if match["word"]:
        shifted = _WORDS[match["word"].lower()]
        return capitalised(shifted) if match["word"][0].isupper() else shifted
    if match["us"]:
        shifted = _WORDS[match["us"].lower()]
        shifted = capitalised(shifted) if match["us"][0].isupper() else shifted
        return shifted + (f" {_SHORT[match['plural']]}" if match["plural"] else "")
    if match["short"]:
        return "they " + (_VERBS.get(match["short"]) or _SHORT[match["short"]])
    return "they" + (f" {_VERBS[match['verb'].strip()]}" if match["verb"] else "")
