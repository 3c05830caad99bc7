"""The catalogue that a log's items become: clean titles that name their items, and their splits."""

import collections
from collections.abc import Sequence

from instructrec_jax.data.columnar import TEST, TRAIN, VALIDATION
from instructrec_jax.data.readers.raw_log import RawItem, RawLog
from instructrec_jax.data.settings import REFUSE, PrepareSettings
from instructrec_jax.data.titles import (
    category_path,
    clean_brand,
    clean_text,
    cut_title,
    junk_kind,
    model_title,
    path_labels,
)
from instructrec_jax.errors import UserError
from instructrec_jax.records import Item
from instructrec_jax.seeds import stable_seed

_NO_CATEGORY = "Item"
_SEED_RANGE = 1 << 63  # stable_seed returns 63 bits
_SHARES = ((TRAIN, 0.8), (VALIDATION, 0.9), (TEST, 1.0))  # upper bounds


def clean_catalogue(
    log: RawLog, settings: PrepareSettings, counts: dict[str, int], drops: dict[str, int]
) -> list[Item]:
    """Cleans titles, categories and brands; an item without a title is kept, with "".

    Args:
      log: what a reader returned.
      settings: `max_title_chars`, `title_fallback` and `max_same_title_share` are read.
      counts: gets titles_cut, titles_empty, titles_of_markup, titles_of_script and
        titles_from_category.
      drops: gets items_without_title, those that no fallback named.

    Returns:
      One item for each of `log.items`, in that order, `item_id` counting from 0.

    Raises:
      UserError: if too many of the items that events name cannot be told apart by their title and
        the settings name no fallback.
    """
    titles = [clean_text(item.title) for item in log.items]
    kinds = collections.Counter(junk_kind(title) for title in titles)
    counts["titles_empty"] = kinds["empty"]
    counts["titles_of_markup"] = kinds["markup"]
    counts["titles_of_script"] = kinds["script"]
    if kinds.total() > kinds[""]:
        titles = ["" if junk_kind(title) else title for title in titles]
    nameless = _nameless(log, titles, settings)
    names = {index: _fallback_title(log, log.items[index], settings) for index in nameless}
    counts["titles_from_category"] = len(names)
    counts["titles_cut"] = sum(len(title) > settings.max_title_chars for title in titles)
    titles = [names.get(index, title) for index, title in enumerate(titles)]
    drops["items_without_title"] = titles.count("")
    return [
        Item(
            item_id=index,
            raw_id=item.raw_id,
            title=cut_title(title, settings.max_title_chars),
            category=category_path(item.category.split(", ")),
            brand=clean_brand(item.brand),
        )
        for index, (item, title) in enumerate(zip(log.items, titles, strict=True))
    ]


def _nameless(log: RawLog, titles: Sequence[str], settings: PrepareSettings) -> list[int]:
    """Returns the indices of the items that the fallback names; none where it is "refuse"."""
    named_by_events = set(log.event_items)
    titles_of_events = [
        title
        for title, item in zip(titles, log.items, strict=True)
        if item.raw_id in named_by_events
    ]
    groups = collections.Counter(model_title(title).casefold() for title in titles_of_events)
    num_missing = groups.pop("", 0)
    num_shared = sum(number for number in groups.values() if number > 1)
    num_items = len(titles_of_events)
    cannot_tell = num_missing + num_shared > settings.max_same_title_share * num_items
    if settings.title_fallback == REFUSE:
        if cannot_tell:
            parts = [f"{num_missing} have no title"] if num_missing else []
            if num_shared:
                title, number = groups.most_common(1)[0]
                example = f"{title[:60]!r} is the title of {number}"
                parts.append(f"{num_shared} share theirs with another item ({example})")
            where = "" if log.has_item_file else "the folder holds no file of items; "
            raise UserError(
                f"{where}{num_missing + num_shared} of the {num_items} items that the log's "
                f"events name cannot be told apart by their titles: {', '.join(parts)}; more than "
                f"max_same_title_share={settings.max_same_title_share} allows. Give the items "
                "titles, name them by category and id with --title_fallback=category_asin, or "
                "raise --max_same_title_share"
            )
        return []
    all_groups = (
        collections.Counter(model_title(title).casefold() for title in titles)
        if cannot_tell
        else {}
    )
    return [
        index
        for index, title in enumerate(titles)
        if not title or all_groups.get(model_title(title).casefold(), 1) > 1
    ]


def _fallback_title(log: RawLog, item: RawItem, settings: PrepareSettings) -> str:
    """Names an item by the narrowest category and its raw id, which is never cut."""
    labels = path_labels(category_path((item.category or log.default_category).split(", ")))
    category = labels[-1] if labels else ""
    raw_id = clean_text(item.raw_id)
    room = max(settings.max_title_chars - len(raw_id) - 1, 0)
    return f"{cut_title(category or _NO_CATEGORY, room)} {raw_id}".strip()


def search_split(title: str, *, dataset: str, seed: int) -> str:
    """Returns the split of an item's (query, item) pair.

    It hashes the title, so it depends on no other item, and items of equal title fall together:
    a held-out title is never seen in training under another id.

    Args:
      title: cleaned title.
      dataset: name of the data set.
      seed: seed of the whole preparation.

    Returns:
      "train" for 8 of 10 titles, "validation" for one, "test" for one.
    """
    share = stable_seed(seed, dataset, "search_split", model_title(title).casefold()) / _SEED_RANGE
    return next(name for name, bound in _SHARES if share < bound or bound == 1.0)


def search_splits(items: Sequence[Item], *, dataset: str, seed: int) -> tuple[str, ...]:
    """Returns the split of every item, "" for items without a category: they have no query."""
    return tuple(
        search_split(item.title, dataset=dataset, seed=seed) if item.category else ""
        for item in items
    )
