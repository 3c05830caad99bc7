"""Invented logs of any size with a taste planted in them, for tests and for measuring.

Items are chosen by a Zipf law. Each user keeps to a favourite kind of item and a favourite brand,
which titles, categories and brands show, so that a model can learn what a user takes next. All
names are invented. Events are made and written block by block: only numbers per user and per
item stay in memory.
"""

import contextlib
import gzip
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.settings import KINDS, SyntheticSettings
from instructrec_jax.seeds import stable_seed

_STYLES = ("Plain", "Fancy")
_NUM_BRANDS = 8  # of each kind
_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
_SYLLABLES = tuple(onset + vowel for onset in _ONSETS for vowel in "aeiou")
_INTENTIONS = (
    "I was looking for {kind} for my {who}.",
    "Bought these {kind} as a gift for my {who}.",
    "I needed {style} {kind} for {when}.",
    "We wanted {kind} that last longer than {when}.",
)
_OPINIONS = ("Works as it should.", "My {who} loves it.", "Would buy again.", "Arrived in time.")
_PEOPLE = ("sister", "father", "neighbour", "daughter", "uncle", "class")
_OCCASIONS = ("the winter", "our holidays", "a long trip", "the garden", "rainy days")
_FIRST_DAY, _NUM_DAYS, _DAY = 15_000, 2_000, 86_400  # days since 1970, seconds
_MIN_LENGTH = 5  # of a user's sequence, where the average allows it
_BLOCK = 1 << 16  # events made at a time


class ItemRow(NamedTuple):
    """One item of an invented catalogue: `path` runs from broad to narrow."""

    number: int
    title: str
    path: tuple[str, ...]
    brand: str


class EventRow(NamedTuple):
    """One event: numbers of user and item, seconds since 1970, a review or ""."""

    user: int
    item: int
    time: int
    text: str


def write_log(folder: Path | str, settings: SyntheticSettings) -> dict[str, int]:
    """Writes an invented log into a folder, which is made if missing.

    Args:
      folder: where the files go.
      settings: what decides them.

    Returns:
      Counts: users, items, interactions.

    Raises:
      UserError: if a setting is out of range.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    form, is_gzip = settings.format, settings.is_gzip
    _write_items(folder, form, _items(settings), is_gzip=is_gzip)
    _write_events(folder, form, _events(settings), is_gzip=is_gzip)
    return {
        "users": settings.num_users,
        "items": settings.catalogue_size,
        "interactions": settings.num_interactions,
    }


def _rng(settings: SyntheticSettings, *purpose: str | int) -> np.random.Generator:
    """Returns the generator for one purpose."""
    return np.random.default_rng(stable_seed(settings.seed, "synthetic", *purpose))


def _items(settings: SyntheticSettings) -> Iterator[ItemRow]:
    """Yields the catalogue; an item's number decides kind, style and brand."""
    rng = _rng(settings, "items")
    words = [[_word(rng.integers(len(_SYLLABLES), size=3)) for _ in range(6)] for _ in KINDS]
    brands = [
        [_word(rng.integers(len(_SYLLABLES), size=2)).title() for _ in range(_NUM_BRANDS)]
        for _ in KINDS
    ]
    for begin in range(0, settings.catalogue_size, _BLOCK):
        numbers = range(begin, min(begin + _BLOCK, settings.catalogue_size))
        drawn = rng.integers(len(_SYLLABLES), size=(len(numbers), 3))
        first = rng.integers(6, size=len(numbers)).tolist()
        second = rng.integers(1, 6, size=len(numbers)).tolist()
        for index, own, a, step in zip(numbers, drawn, first, second, strict=True):
            kind, rank = index % len(KINDS), index // len(KINDS)
            of_kind = words[kind]
            yield ItemRow(
                number=index,
                title=f"{of_kind[a].title()} {of_kind[(a + step) % 6]} {_word(own)} {index}",
                path=("Bazaar", KINDS[kind], _STYLES[rank % len(_STYLES)]),
                brand=brands[kind][rank % _NUM_BRANDS],
            )


def _word(syllables: npt.NDArray[np.int64]) -> str:
    """Returns an invented word."""
    return "".join(_SYLLABLES[index] for index in syllables)


def _events(settings: SyntheticSettings) -> Iterator[EventRow]:
    """Yields the events; users of one block follow each other in a shuffled order."""
    lengths = _lengths(settings)
    ends = np.cumsum(lengths)
    popularity = _Popularity(settings)
    begin = 0
    while begin < settings.num_users:
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _BLOCK, side="right")))
        rng = _rng(settings, "events", begin)
        user = np.repeat(np.arange(begin, end), lengths[begin:end])
        item = popularity.choose(user - begin, rng)
        time = _times(user, rng)
        texts = _texts(item, rng) if settings.has_reviews else [""] * len(item)
        for index in rng.permutation(len(user)).tolist():
            yield EventRow(int(user[index]), int(item[index]), int(time[index]), texts[index])
        begin = end


def _lengths(settings: SyntheticSettings) -> npt.NDArray[np.int64]:
    """Returns [users] how many events each has: skewed, in sum exactly what is asked for."""
    least = min(_MIN_LENGTH, settings.num_interactions // settings.num_users)
    rest = settings.num_interactions - least * settings.num_users
    shares = np.cumsum(_rng(settings, "lengths").lognormal(sigma=0.8, size=settings.num_users))
    bounds = np.floor(rest * (shares / shares[-1])).astype(np.int64)
    lengths = least + np.diff(bounds, prepend=0)
    average = -(-settings.num_interactions // settings.num_users)
    most = max(settings.catalogue_size // 2, average)  # negatives must be left for every user
    num_over = int(np.maximum(lengths - most, 0).sum())
    lengths = np.minimum(lengths, most)
    while num_over:  # what one user may not take goes to those who may
        room = np.flatnonzero(lengths < most)[:num_over]
        lengths[room] += 1
        num_over -= len(room)
    return lengths


class _Popularity:
    """Draws items: the favourite ones of each kind are anywhere in the catalogue."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self._num_items = settings.catalogue_size
        self._favourite_share = settings.favourite_share
        largest = -(-self._num_items // len(KINDS))
        weights = np.arange(1, largest + 1, dtype=np.float64) ** -settings.zipf_exponent
        self._bounds = np.cumsum(weights)
        rng = _rng(settings, "popularity")
        self._sizes = -(-(self._num_items - np.arange(len(KINDS))) // len(KINDS))
        self._by_rank = np.zeros((len(KINDS), largest), dtype=np.int64)  # number in its kind
        for kind, size in enumerate(self._sizes.tolist()):
            self._by_rank[kind, :size] = rng.permutation(size)

    def choose(
        self, user: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """Returns [events] items, none twice for the same user.

        Args:
          user: [events], numbers from 0, ascending.
          rng: of this block.
        """
        num_users, num_kinds = int(user[-1]) + 1, len(KINDS)
        favourite = rng.integers(num_kinds, size=num_users)[user]
        brand = rng.integers(_NUM_BRANDS, size=num_users)[user]
        is_favourite = rng.random(len(user)) < self._favourite_share
        is_loyal = is_favourite & (rng.random(len(user)) < 0.5)
        kind = np.where(is_favourite, favourite, rng.integers(num_kinds, size=len(user)))
        sizes = self._sizes[kind]
        drawn = rng.random(len(user)) * self._bounds[sizes - 1]
        rank = np.minimum(np.searchsorted(self._bounds, drawn, side="right"), sizes - 1)
        number = self._by_rank[kind, rank]
        of_brand = number // _NUM_BRANDS * _NUM_BRANDS + brand
        number = np.where(is_loyal & (of_brand < sizes), of_brand, number)
        item = number * num_kinds + kind
        return self._distinct(user, item)

    def _distinct(
        self, user: npt.NDArray[np.int64], item: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Moves items that a user already has to the next one of their kind."""
        while True:
            pairs = user * self._num_items + item
            order = np.argsort(pairs, kind="stable")
            again = order[1:][pairs[order[1:]] == pairs[order[:-1]]]
            if not len(again):
                return item
            item[again] += len(KINDS)
            # Past the kind's last item the next kind begins, so no user ever runs out of items.
            beyond = again[item[again] >= self._num_items]
            item[beyond] = (item[beyond] + 1) % len(KINDS)


def _times(user: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Returns [events] seconds since 1970; a user's events ascend, a few days apart."""
    first = rng.integers(_FIRST_DAY, _FIRST_DAY + _NUM_DAYS, size=int(user[-1] - user[0]) + 1)
    gaps = rng.integers(600, 20 * _DAY, size=len(user))
    since = np.cumsum(gaps)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(starts, append=len(user))
    return np.repeat(first * _DAY - since[starts], lengths) + since


def _texts(item: npt.NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """Returns [events] a review of each: an intention and an opinion."""
    draws = rng.integers(1 << 16, size=(len(item), 4)).tolist()
    texts = []
    for number, (intention, opinion, who, when) in zip(item.tolist(), draws, strict=True):
        text = f"{_INTENTIONS[intention % len(_INTENTIONS)]} {_OPINIONS[opinion % len(_OPINIONS)]}"
        texts.append(
            text.format(
                kind=KINDS[number % len(KINDS)].lower(),
                style=_STYLES[number // len(KINDS) % len(_STYLES)].lower(),
                who=_PEOPLE[who % len(_PEOPLE)],
                when=_OCCASIONS[when % len(_OCCASIONS)],
            )
        )
    return texts


_EVENT_NAMES = ("user_id", "item_id", "timestamp")
_ITEM_NAMES = ("item_id", "title", "category", "brand")


class _Table(NamedTuple):
    """How a format writes its events and its items: file names, headers, lines."""

    event_file: str
    item_file: str
    event_header: str
    item_header: str
    event_line: Callable[[EventRow], str]
    item_line: Callable[[ItemRow], str]


def _tsv_event(row: EventRow) -> str:
    return f"u{row.user}\ti{row.item}\t{row.time}\n"


def _tsv_item(row: ItemRow) -> str:
    return f"i{row.number}\t{row.title}\t{', '.join(row.path)}\t{row.brand}\n"


def _json_line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _json_event(row: EventRow) -> str:
    values = (f"u{row.user}", f"i{row.item}", row.time)
    return _json_line(dict(zip(_EVENT_NAMES, values, strict=True)))


def _json_item(row: ItemRow) -> str:
    values = (f"i{row.number}", row.title, ", ".join(row.path), row.brand)
    return _json_line(dict(zip(_ITEM_NAMES, values, strict=True)))


def _amazon_event(row: EventRow) -> str:
    day = row.time // _DAY * _DAY  # this edition knows days only, so times tie
    record = {
        "overall": 5.0,
        "verified": True,
        "reviewTime": time.strftime("%m %d, %Y", time.gmtime(day)),
        "reviewerID": f"A{row.user:09d}",
        "asin": f"B{row.item:09d}",
        "unixReviewTime": day,
    }
    if row.text:
        record |= {"reviewText": row.text, "summary": "Five Stars"}
    return _json_line(record)


def _amazon_item(row: ItemRow) -> str:
    return _json_line(
        {
            "asin": f"B{row.number:09d}",
            "title": row.title,
            "category": list(row.path),
            "brand": row.brand,
        }
    )


_TABLES = {
    "plain": _Table(
        "interactions.tsv",
        "items.tsv",
        "\t".join(_EVENT_NAMES) + "\n",
        "\t".join(_ITEM_NAMES) + "\n",
        _tsv_event,
        _tsv_item,
    ),
    "jsonl": _Table("interactions.jsonl", "items.jsonl", "", "", _json_event, _json_item),
    "recbole": _Table(
        "toy.inter",
        "toy.item",
        "user_id:token\titem_id:token\ttimestamp:float\n",
        "item_id:token\ttitle:token_seq\tcategory:token_seq\tbrand:token\n",
        _tsv_event,
        _tsv_item,
    ),
    "amazon_2018": _Table("Bazaar.json", "meta_Bazaar.json", "", "", _amazon_event, _amazon_item),
}


def _write_items(
    folder: Path | str, form: str, rows: Iterable[ItemRow], *, is_gzip: bool = False
) -> None:
    """Writes the catalogue into a folder that exists, in one of `SYNTHETIC_FORMATS`."""
    table = _TABLES[form]
    _write(Path(folder) / table.item_file, table.item_header, map(table.item_line, rows), is_gzip)


def _write_events(
    folder: Path | str, form: str, rows: Iterable[EventRow], *, is_gzip: bool = False
) -> None:
    """Writes the events into a folder that exists, in one of `SYNTHETIC_FORMATS`."""
    table = _TABLES[form]
    lines = map(table.event_line, rows)
    _write(Path(folder) / table.event_file, table.event_header, lines, is_gzip)


def _write(path: Path, header: str, lines: Iterable[str], is_gzip: bool) -> None:
    """Writes a file; gzip holds no name and no time, so that equal logs are equal bytes."""
    path = path.with_name(path.name + ".gz" * is_gzip)
    with path.open("wb") as raw, contextlib.ExitStack() as stack:
        target: Any = raw
        if is_gzip:
            target = gzip.GzipFile("", "wb", compresslevel=5, fileobj=raw, mtime=0)
            stack.enter_context(target)
        stream = stack.enter_context(io.TextIOWrapper(target, encoding="utf-8", newline="\n"))
        stream.write(header)
        stream.writelines(lines)
