"""Preferences: what recurs in a history, as three texts.

1. of the user: "The user mostly chooses Rock, especially Glam, often by Fenwick"
2. as the user: "I mostly go for Rock, especially Glam, I like what comes from Fenwick"
3. the taste alone: "mostly Rock, Glam in particular, much of it by Fenwick"

Each has at most `MAX_CHARS` characters and, where the names in it are not long by themselves,
`MAX_WORDS` words (the paper's have 23.5 on average); parts that do not fit are left out. Where
nothing recurs, the texts say what was chosen, and no more.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence

from instructrec_jax.data.titles import cut_title, path_labels
from instructrec_jax.instructions.leaks import GENERIC_WORDS, is_content, words
from instructrec_jax.records import Item
from instructrec_jax.teacher.extractive.word_lists import WORDS, one_of, trimmed

MAX_CHARS, MAX_WORDS = 200, 26
# What is seen twice recurs. One word that two titles share may be chance, three titles mean it.
MIN_COUNT, MIN_LONE_WORD = 2, 3
# Categories, brands and platforms make a taste from this share of the history on: two of twenty do
# not; a category within another from this share of that one on.
MIN_SHARE, MIN_SHARE_WITHIN = 0.2, 1 / 3
# A word is said with its neighbours where they stand by it in this share of its titles.
MIN_RUN_SHARE = 0.6
_MAX_RUN, _MAX_HEAD_CHARS = 4, 30
_EVERYDAY = frozenset(word for text in WORDS["everyday_title_words"] for word in words(text))
_PLATFORMS = {name.lower(): name for name in WORDS["platforms"]}
_PLATFORM = re.compile(rf"\b{one_of('platforms')}\b", re.IGNORECASE)
_TITLE_WORD = re.compile(r"[^\W_]+(?:['\u2019.&-][^\W_]+)*|&")
_TITLE_END = re.compile(r"\s[-\u2013\u2014|/]\s|[:(\[,;]")
# Each trait as the three texts say it.
_FRAMES = {
    "topic": ("The user {often} chooses {x}", "I {often} go for {x}", "{often} {x}"),
    "count": ("The user has chosen {x} things", "I have chosen {x} things", "{x} choices"),
    "chosen": ("So far the user has chosen {x}", "So far I have chosen {x}", "{x} so far"),
    "detail": ("especially {x}", "especially {x}", "{x} in particular"),
    "other": ("then {x}", "then {x}", "some {x}"),
    "brands": ("often by {x}", "I like what comes from {x}", "much of it by {x}"),
    "platforms": ("often for {x}", "I often want something for {x}", "much of it for {x}"),
    "terms": ("with a liking for titles with {x}", "I look out for {x}", "{x} again and again"),
    "latest": ("most recently {x}", "and last I chose {x}", "most recently {x}"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Traits:
    """What one item may add to a taste."""

    path: tuple[str, ...]
    brand: str
    platforms: tuple[str, ...]
    runs: dict[str, str]  # runs of words of the title as spelt, each as shown
    head: str


def preference_texts(history: Sequence[Item]) -> tuple[str, ...]:
    """Returns three texts on the taste that a history of one item or more shows, oldest first."""
    traits = [_traits(item.title, item.category, item.brand) for item in history]
    taste, often = _taste(traits)
    if not taste.keys() - {"count", "latest"}:
        chosen = dict.fromkeys(t.path[-1] if t.path else t.head for t in reversed(traits))
        taste = {"chosen": tuple(chosen)[:3]}
    found = []
    for voice in range(3):
        text = ""
        for name, names in taste.items():
            text = _joined(text, _FRAMES[name][voice].format(often=often, x=_enumerated(names)))
        found.append(trimmed(cut_title(text, MAX_CHARS)))
    return tuple(found)


def _taste(traits: Sequence[_Traits]) -> tuple[dict[str, tuple[str, ...]], str]:
    """Returns the names of each trait that recurs, and how often the topic was chosen."""
    total = len(traits)
    enough = max(MIN_COUNT, MIN_SHARE * total)
    paths = [each.path for each in traits if each.path]
    labels = Counter(label for path in paths for label in path)
    topic, detail, other = _topics(labels, paths, enough)
    brands = _commonest(Counter(each.brand for each in traits if each.brand), enough)[:2]
    platforms = _commonest(Counter(name for each in traits for name in each.platforms), enough)[:1]
    said = {topic, detail, other, *brands}
    min_lone = MIN_LONE_WORD if topic or brands or platforms else MIN_COUNT
    last = traits[-1]
    latest = last.path[-1] if len(last.path) > 1 else last.brand
    found = {
        "topic": (topic,) if topic else (),
        "count": () if topic else (str(total),),
        "detail": (detail,) if detail else (),
        "other": (other,) if other else (),
        "brands": brands,
        "platforms": platforms,
        "terms": _terms(traits, " ".join(said), min_lone=min_lone),
        "latest": (latest,) if latest and latest not in said else (),
    }
    share = labels.get(topic, 0) / total
    often = "often" if share >= MIN_SHARE else "sometimes"
    often = "mostly" if share >= 0.5 else often
    return {name: x for name, x in found.items() if x}, "nearly always" if share == 1.0 else often


def _topics(
    labels: Counter[str], paths: Sequence[tuple[str, ...]], enough: float
) -> tuple[str, str, str]:
    """Returns the category that recurs most, the most recurrent within it, and that outside it.

    The department that all share is a topic only where there is no other category.
    """
    root = paths[0][0] if paths and all(path[0] == paths[0][0] for path in paths) else ""
    found = [label for label in _commonest(labels) if label != root]
    if not found:
        return (root if labels.get(root, 0) >= MIN_COUNT and len(labels) == 1 else ""), "", ""
    topic = found[0]
    inside = (path[path.index(topic) + 1 :] for path in paths if topic in path)
    enough_within = max(MIN_COUNT, MIN_SHARE_WITHIN * labels[topic])
    within = _commonest(Counter(label for rest in inside for label in rest), enough_within)[:1]
    outside = Counter(label for path in paths if topic not in path for label in path)
    others = [
        label for label in _commonest(outside, enough) if label != root and label not in within
    ]
    return topic, next(iter(within), ""), next(iter(others), "")


def _terms(traits: Sequence[_Traits], named: str, *, min_lone: int) -> tuple[str, ...]:
    """Returns up to two runs of words that recur in titles, the commonest first, unless named."""
    counts = Counter(run for each in traits for run in each.runs)
    shown = {run: text for each in reversed(traits) for run, text in each.runs.items()}
    used = set(words(named))
    found: list[str] = []
    for run in _commonest(counts)[:8]:
        if not used.isdisjoint(run.split()):
            continue
        enough = max(MIN_COUNT, MIN_RUN_SHARE * counts[run])
        longer = (r for r in counts if counts[r] >= enough and f" {run} " in f" {r} ")
        longest = max(longer, key=len)
        is_lone = " " not in longest
        if is_lone and (counts[longest] < min_lone or longest in _EVERYDAY):
            continue
        used.update(longest.split())
        found.append(shown[longest])
        if len(found) == 2:
            break
    return tuple(found)


@functools.lru_cache(maxsize=1 << 18)
def _traits(title: str, category: str, brand: str) -> _Traits:
    """Returns what one item may add, worked out once for each item."""
    labels = (_plain(label) for label in path_labels(category))
    head = _TITLE_END.split(title.strip(), maxsplit=1)[0].strip()
    return _Traits(
        path=tuple(dict.fromkeys(label for label in labels if label)),
        brand=_brand(_plain(brand)),
        platforms=tuple(
            dict.fromkeys(_PLATFORMS[found.lower()] for found in _PLATFORM.findall(title))
        ),
        runs=_runs(title),
        head=_plain(cut_title(head if len(head) > 2 else title, _MAX_HEAD_CHARS)),
    )


def _runs(title: str) -> dict[str, str]:
    """Returns the runs of up to `_MAX_RUN` words of a title: as spelt, as shown.

    A run begins and ends with a word that tells something; it may end with a number.
    """
    shown = _TITLE_WORD.findall(title)
    spelt = ["".join(words(word)) or word for word in shown]
    telling = [
        is_content(word) and word not in GENERIC_WORDS and not word.isdigit() for word in spelt
    ]
    found: dict[str, str] = {}
    for start in range(len(spelt)):
        for end in range(start + 1, min(start + _MAX_RUN, len(spelt)) + 1):
            if telling[start] and (telling[end - 1] or spelt[end - 1].isdigit()):
                found.setdefault(" ".join(spelt[start:end]), " ".join(shown[start:end]))
    return found


def _commonest(counts: Counter[str], enough: float = MIN_COUNT) -> tuple[str, ...]:
    """Returns what was counted often enough, the commonest and then the first seen first."""
    return tuple(name for name, count in counts.most_common() if count >= enough)


def _brand(brand: str) -> str:
    """Returns a brand as one writes it; "" for one that is none.

    Example: "HARP,ANNA" -> "Anna Harp"; "Various" -> "".
    """
    if brand.lower() in WORDS["no_brands"]:
        return ""
    last, comma, first = brand.partition(",")
    if comma and brand.isupper() and "," not in first:
        return f"{first.strip()} {last.strip()}".title()
    return brand


def _plain(text: str) -> str:
    """Returns a text without semicolons, which part the items of lists in prompts."""
    return text.replace(";", ",").strip(" ,.")


def _enumerated(names: Sequence[str]) -> str:
    """Returns names as a list in prose: ("Rock", "Soul", "Pop") -> "Rock, Soul and Pop"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _joined(text: str, part: str) -> str:
    """Returns a text with a further part, if that fits."""
    longer = f"{text} {part}" if part.startswith("and ") else f"{text}, {part}"
    fits = len(longer) <= MAX_CHARS and longer.count(" ") < MAX_WORDS
    return part if not text else longer if fits else text
