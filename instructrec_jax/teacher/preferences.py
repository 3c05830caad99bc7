"""Sentences on the taste that a history shows: what recurs in it, and what came last.

Three texts a history, each of which fits after a colon ("Taste: ...", "The user says: ..."):

1. of the user: "The user mostly chooses Rock, especially Glam, often by Fenwick"
2. as the user: "I mostly go for Rock, especially Glam, I like Fenwick"
3. the taste alone: "mostly Rock, Glam in particular, much of it by Fenwick"

Each has at most `MAX_CHARS` characters and, where the names in it are not long by themselves,
`MAX_WORDS` words (the paper's texts have 23.5 on average); parts that do not fit are left out. None
ends in a full stop.
"""

from collections.abc import Sequence

from instructrec_jax.teacher.phrases import cut
from instructrec_jax.teacher.taste import MIN_SHARE, Taste

MAX_CHARS = 200
MAX_WORDS = 26
# A text this short still has room to say on how many choices it rests.
_SHORT_WORDS = 16

Parts = list[str]


def preference_texts(taste: Taste) -> tuple[str, ...]:
    """Returns the three texts on a taste."""
    if not taste.recurs:
        return tuple(_joined(parts, "") for parts in _varied(taste))
    number = f"{taste.num_items} choices so far"
    return (
        _joined(_of_the_user(taste), f"to judge by the {number}"),
        _joined(_as_the_user(taste), f"as my {number} show"),
        _joined(_taste_alone(taste), f"to judge by {number}"),
    )


def enumerated(names: Sequence[str]) -> str:
    """Returns names as a list in prose.

    Example: ("Rock", "Soul", "Pop") -> "Rock, Soul and Pop".
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _often(taste: Taste) -> str:
    """Says how much of the history the topic makes."""
    if taste.num_topic == taste.num_items:
        return "nearly always"
    if 2 * taste.num_topic >= taste.num_items:
        return "mostly"
    return "often" if taste.num_topic >= MIN_SHARE * taste.num_items else "sometimes"


def _of_the_user(taste: Taste) -> Parts:
    """Returns the parts of the text that speaks of the user."""
    parts: Parts = []
    if taste.topic:
        parts.append(f"The user {_often(taste)} chooses {taste.topic}")
        parts += [f"especially {taste.detail}"] if taste.detail else []
        parts += [f"then {taste.other}"] if taste.other else []
    if taste.brands:
        brands = enumerated(taste.brands)
        parts.append(
            f"often by {brands}" if parts else f"The user often chooses things by {brands}"
        )
    if taste.platforms:
        name = enumerated(taste.platforms)
        parts.append(
            f"much of it for {name}" if parts else f"The user keeps choosing things for {name}"
        )
    if taste.terms:
        terms = enumerated(taste.terms)
        start = "with" if parts else "The user shows"
        parts.append(f"{start} a liking for titles with {terms}")
    parts += [f"most recently {taste.latest}"] if taste.latest else []
    return parts


def _as_the_user(taste: Taste) -> Parts:
    """Returns the parts of the text that the user says."""
    parts: Parts = []
    if taste.topic:
        parts.append(f"I {_often(taste)} go for {taste.topic}")
        parts += [f"especially {taste.detail}"] if taste.detail else []
        parts += [f"then {taste.other}"] if taste.other else []
    if taste.brands:
        parts.append(f"I like what comes from {enumerated(taste.brands)}")
    if taste.platforms:
        parts.append(f"I often want something for {enumerated(taste.platforms)}")
    if taste.terms:
        parts.append(f"I look out for {enumerated(taste.terms)}")
    parts += [f"and lately I have turned to {taste.latest}"] if taste.latest else []
    return parts


def _taste_alone(taste: Taste) -> Parts:
    """Returns the parts of the text that names the taste alone."""
    parts: Parts = []
    if taste.topic:
        parts.append(f"{_often(taste)} {taste.topic}")
        parts += [f"{taste.detail} in particular"] if taste.detail else []
        parts += [f"some {taste.other}"] if taste.other else []
    if taste.brands:
        brands = enumerated(taste.brands)
        parts.append(f"much of it by {brands}" if parts else f"a liking for things by {brands}")
    if taste.platforms:
        name = enumerated(taste.platforms)
        parts.append(f"often for {name}" if parts else f"a preference for things for {name}")
    if taste.terms:
        parts.append(f"{enumerated(taste.terms)} again and again")
    parts += [f"most recently {taste.latest}"] if taste.latest else []
    return parts


def _varied(taste: Taste) -> tuple[Parts, Parts, Parts]:
    """Returns the parts of the three texts where nothing recurs."""
    tried = enumerated(taste.tried)
    if taste.num_items == 1:
        return (
            [f"The user has so far shown an interest in {tried}", "and in nothing else yet"],
            [f"I have so far only tried {tried}", "and would like more that goes with it"],
            [f"an interest in {tried}", "the one choice that is known so far"],
        )
    return (
        [f"The user likes variety and has most recently chosen {tried}", "with no favourite yet"],
        [f"I like variety, lately I have tried {tried}", "and I have no favourite yet"],
        [f"a broad taste, most recently {tried}", "without a clear favourite so far"],
    )


def _joined(parts: Parts, tail: str) -> str:
    """Joins the parts of a text, as many as fit, and the tail if the text is short."""
    text = parts[0]
    for part in parts[1:]:
        longer = f"{text} {part}" if part.startswith("and ") else f"{text}, {part}"
        if len(longer) <= MAX_CHARS and longer.count(" ") < MAX_WORDS:
            text = longer
    if tail and text.count(" ") < _SHORT_WORDS and len(text) + len(tail) < MAX_CHARS - 2:
        text = f"{text}, {tail}"
    return cut(text, MAX_CHARS)
