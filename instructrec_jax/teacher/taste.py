"""What recurs in a history: categories, brands, platforms and words of titles."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from instructrec_jax.data.titles import cut_title
from instructrec_jax.records import Item
from instructrec_jax.teacher.words import (
    EVERYDAY_WORDS,
    GENERIC_WORDS,
    PLATFORM_WORDS,
    is_content,
    words,
)

# What a text may name: more of each and the sentence is a list.
MAX_BRANDS, MAX_PLATFORMS, MAX_TERMS, MAX_TRIED = 2, 1, 2, 3
# What is seen twice recurs. One word that two titles share may be chance, three titles mean it.
MIN_COUNT, MIN_LONE_WORD = 2, 3
# A brand or a platform makes a taste from this share of the history on: two of twenty do not.
MIN_SHARE = 0.2
# Of the words that recur, as many as this are looked at.
MAX_SEEDS = 6
# A word is said with its neighbours where they stand by it in this share of its titles.
MIN_RUN_SHARE = 0.6
MAX_RUN = 4
MAX_HEAD_CHARS = 30
MAX_CACHED_ITEMS = 1 << 18
_NO_BRANDS = frozenset(
    ("", "unknown", "various", "various artists", "n/a", "na", "none", "generic")
)
_MAKERS = frozenset(("microsoft", "sony", "sega", "nintendo"))
_TITLE_WORD = re.compile(r"[^\W_]+(?:['\u2019.&-][^\W_]+)*|&")
_TITLE_END = re.compile(r"\s[-\u2013\u2014|/]\s|[:(\[,;]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taste:
    """What a history shows.

    Attributes:
      num_items: length of the history.
      topic: the category that recurs most, the one that all share left aside if others do; or "".
      num_topic: items of it.
      detail: the category within the topic that recurs most; or "".
      other: the category that recurs most outside the topic; or "".
      brands: brands that recur, the commonest first.
      platforms: platforms that recur in titles, the commonest first.
      terms: words or runs of words that recur in titles, the commonest first.
      latest: category of the last item where none of the above names it, else its brand; or "".
      tried: categories of the last different items, else the starts of their titles, newest first.
    """

    num_items: int
    topic: str
    num_topic: int
    detail: str
    other: str
    brands: tuple[str, ...]
    platforms: tuple[str, ...]
    terms: tuple[str, ...]
    latest: str
    tried: tuple[str, ...]

    @property
    def recurs(self) -> bool:
        """Whether anything was seen twice."""
        return bool(self.topic or self.brands or self.platforms or self.terms)


@dataclasses.dataclass(frozen=True, slots=True)
class _Traits:
    """What one item may add to a taste: worked out once an item."""

    item: Item
    path: tuple[str, ...]
    brand: str
    platforms: tuple[str, ...]
    terms: tuple[str, ...]
    head: str


class TasteReader:
    """Reads tastes out of histories and keeps what it has worked out of each item.

    Up to `MAX_CACHED_ITEMS` items are kept, then all are forgotten: a catalogue has fewer or is
    read in any order, so that nothing cleverer would help.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Traits] = {}

    def read(self, history: Sequence[Item]) -> Taste:
        """Returns what recurs in a history of one item or more, oldest first."""
        traits = [self._traits(item) for item in history]
        paths = [trait.path for trait in traits if trait.path]
        labels = _counts(label for path in paths for label in path)
        topic, detail, other = _topics(labels, paths)
        enough = max(MIN_COUNT, MIN_SHARE * len(history))
        brands = _commonest(_counts(trait.brand for trait in traits if trait.brand), enough)
        names = _counts(name for trait in traits for name in trait.platforms)
        platforms = _commonest(names, enough)
        said = {topic, detail, other, *brands}
        is_bare = not (topic or brands or platforms)
        terms = _terms(traits, " ".join(said), min_lone=MIN_COUNT if is_bare else MIN_LONE_WORD)
        last = traits[-1]
        leaf = last.path[-1] if last.path and len(last.path) > 1 else ""
        return Taste(
            num_items=len(history),
            topic=topic,
            num_topic=labels.get(topic, 0),
            detail=detail,
            other=other,
            brands=brands[:MAX_BRANDS],
            platforms=platforms[:MAX_PLATFORMS],
            terms=terms,
            latest=next(
                (name for name in (leaf, "" if leaf else last.brand) if name not in said), ""
            ),
            tried=tuple(_newest(traits)),
        )

    def _traits(self, item: Item) -> _Traits:
        """Returns what one item may add, worked out once."""
        known = self._known.get(item.item_id)
        if known is None or (known.item is not item and known.item != item):
            if len(self._known) >= MAX_CACHED_ITEMS:
                self._known.clear()
            known = self._known[item.item_id] = _worked_out(item)
        return known


def _counts(names: Iterable[str]) -> dict[str, int]:
    """Counts names, in order of appearance."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _commonest(counts: dict[str, int], enough: float = MIN_COUNT) -> tuple[str, ...]:
    """Returns what was counted often enough, the commonest and then the first seen first."""
    found = [(-count, name) for name, count in counts.items() if count >= enough]
    return tuple(name for _, name in sorted(found, key=lambda entry: entry[0]))


def _topics(labels: dict[str, int], paths: list[tuple[str, ...]]) -> tuple[str, str, str]:
    """Returns the category that recurs most, the most recurrent within it, and that outside it."""
    root = paths[0][0] if paths else ""
    if any(path[0] != root for path in paths):
        root = ""
    found = [label for label in _commonest(labels) if label != root]
    if not found:
        # A shop's one department is a topic; that all of many departments share their root is not.
        is_flat = bool(root) and labels[root] >= MIN_COUNT and len(labels) == 1
        return (root if is_flat else ""), "", ""
    topic = found[0]
    inside = [path[path.index(topic) + 1 :] for path in paths if topic in path]
    within = _commonest(_counts(label for rest in inside for label in rest))
    outside = _counts(label for path in paths if topic not in path for label in path)
    others = [label for label in _commonest(outside) if label != root and label not in within[:1]]
    return topic, next(iter(within), ""), next(iter(others), "")


def _terms(traits: list[_Traits], named: str, *, min_lone: int) -> tuple[str, ...]:
    """Returns the words that recur in different titles, with their neighbours, unless named."""
    titles = {trait.item.title: trait for trait in traits}.values()
    recurring = _counts(word for trait in titles for word in trait.terms)
    used = set(words(named))
    found: list[str] = []
    for word in _commonest(recurring)[:MAX_SEEDS]:
        if word in used:
            continue
        count = recurring[word]
        run = _grown(word, count, [trait.item.title for trait in titles if word in trait.terms])
        spelt = words(run)
        used.update(spelt)
        if len(spelt) > 1 or count >= min_lone:
            found.append(run)
        if len(found) == MAX_TERMS:
            break
    return tuple(found)


def _grown(word: str, count: int, titles: list[str]) -> str:
    """Returns the longest run of words around one that recurs nearly as often, as first shown."""
    shown = {spelt: run for title in reversed(titles) for spelt, run in _runs(title, word)}
    counts = _counts(spelt for title in titles for spelt, _ in _runs(title, word))
    enough = max(MIN_COUNT, MIN_RUN_SHARE * count)
    return shown[max((run for run in counts if counts[run] >= enough), key=len)]


@functools.lru_cache(maxsize=1 << 16)
def _runs(title: str, word: str) -> tuple[tuple[str, str], ...]:
    """Returns the runs of up to `MAX_RUN` words around one of a title: as spelt, as shown."""
    shown = _TITLE_WORD.findall(title)
    spelt = [_spelt(part) for part in shown]
    place = spelt.index(word)
    found: dict[str, str] = {}
    for start in range(max(0, place - MAX_RUN + 1), place + 1):
        for end in range(place + 1, min(start + MAX_RUN, len(spelt)) + 1):
            if _is_edge(spelt[start]) and (_is_edge(spelt[end - 1]) or spelt[end - 1].isdigit()):
                found.setdefault(" ".join(spelt[start:end]), " ".join(shown[start:end]))
    return tuple(found.items())


def _spelt(shown: str) -> str:
    """Spells one word of a title as `words` does."""
    return "".join(words(shown)) or shown


def _is_edge(word: str) -> bool:
    """Tells whether a run of words may start with a word."""
    return is_content(word) and word not in GENERIC_WORDS and not word.isdigit()


def _platforms(shown: Sequence[str]) -> Iterable[str]:
    """Yields the platforms that the words of a title name, with the number after the name."""
    name: list[str] = []
    for word in (*shown, ""):
        spelt = _spelt(word)
        if spelt in PLATFORM_WORDS or (name and (spelt == "one" or spelt.isdigit())):
            name.append(word)
        elif name:
            is_maker = len(name) > 1 and name[0].lower() in _MAKERS
            yield " ".join(name[1:] if is_maker else name)
            name = []


def _newest(traits: Sequence[_Traits]) -> list[str]:
    """Returns the names of the last different items."""
    names = (trait.path[-1] if trait.path else trait.head for trait in reversed(traits))
    return list(dict.fromkeys(names))[:MAX_TRIED]


def _worked_out(item: Item) -> _Traits:
    """Works out what one item may add to a taste."""
    shown = _TITLE_WORD.findall(item.title)
    spelt = dict.fromkeys(_spelt(word) for word in shown)
    labels = (_plain(label) for label in item.category.split(", "))
    return _Traits(
        item=item,
        path=tuple(dict.fromkeys(label for label in labels if label)),
        brand=_brand(_plain(item.brand)),
        platforms=tuple(dict.fromkeys(_platforms(shown))),
        terms=tuple(word for word in spelt if _is_edge(word) and word not in EVERYDAY_WORDS),
        head=_plain(_head(item.title)),
    )


def _head(title: str) -> str:
    """Returns the start of a title, up to its first mark that parts it."""
    head = _TITLE_END.split(title.strip(), maxsplit=1)[0].strip()
    return cut_title(head if len(head) > 2 else title, MAX_HEAD_CHARS)


def _brand(brand: str) -> str:
    """Returns a brand as one would write it; "" for one that is none.

    Example: "HARP,ANNA" -> "Anna Harp"; "Various" -> "".
    """
    if brand.lower() in _NO_BRANDS:
        return ""
    last, comma, first = brand.partition(",")
    if comma and brand.isupper() and "," not in first:
        return f"{first.strip()} {last.strip()}".title()
    return brand


def _plain(text: str) -> str:
    """Returns a text without semicolons, which part the items of lists in prompts."""
    return text.replace(";", ",").strip(" ,.")
