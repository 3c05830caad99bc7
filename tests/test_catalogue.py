"""The catalogue: junk is no title, and items that cannot be told apart are refused or renamed."""

import dataclasses

import numpy as np
import pytest
from raw_logs import event_parts

from instructrec_jax.data.catalogue import clean_catalogue
from instructrec_jax.data.events import EVENT
from instructrec_jax.data.readers.raw_log import RawItem, RawLog
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.errors import UserError

REFUSE = PrepareSettings()
RENAME = PrepareSettings(title_fallback="category_asin")


def log_of(*items: tuple[str, str, str], named: list[str] | None = None) -> RawLog:
    """A log whose events name the items `named` (default: all), each (raw id, title, category)."""
    named = [raw_id for raw_id, *_ in items] if named is None else named
    return RawLog(
        users=("u",),
        items=[RawItem(raw_id=i, title=t, category=c, brand=" Fen &amp; Co") for i, t, c in items],
        event_items=named,
        events=event_parts(np.array([(0, item, item, item) for item in range(len(named))], EVENT)),
        has_times=True,
    )


def clean(log: RawLog, settings: PrepareSettings = REFUSE):
    counts: dict[str, int] = {}
    drops: dict[str, int] = {}
    return clean_catalogue(log, settings, counts, drops), counts, drops


ONES = [(f"A{n}", f"Kettle {n}", "Kitchen, Kettles") for n in range(4)]


def test_texts_are_cleaned_and_items_keep_their_place():
    items, counts, drops = clean(log_of(("A", " Tea &amp;\tPot ", "Home &amp; Co, Pots"), *ONES))
    first = items[0]
    assert (first.item_id, first.raw_id, first.title) == (0, "A", "Tea & Pot")
    assert (first.category, first.brand) == ("Home & Co, Pots", "Fen & Co")
    assert [item.item_id for item in items] == list(range(5))
    assert counts["titles_from_category"] == 0 and drops == {"items_without_title": 0}


def test_junk_counts_as_missing_by_reason():
    junk = [
        ("J1", '<span id="a" class="size">', "Toys"),
        ("J2", "&lt;div class=&quot;x&quot;&gt;Kite", "Toys"),
        ("J3", "var aPageStart = (new Date()).getTime();\nvar x=1", "Toys"),
        ("J4", " &nbsp; ", "Toys"),
    ]
    items, counts, drops = clean(log_of(*ONES, *junk))
    assert [item.title for item in items[4:]] == [""] * 4
    names = ("titles_empty", "titles_of_markup", "titles_of_script")
    assert [counts[name] for name in names] == [1, 2, 1]
    assert drops["items_without_title"] == 4


def test_too_many_items_without_a_title_are_refused_with_their_number():
    log = log_of(*ONES[:1], ("J1", "", ""), ("J2", "<span class=x>", ""))
    with pytest.raises(UserError) as caught:
        clean(log)
    for part in ("2 of the 3 items", "2 have no title", "--title_fallback=category_asin"):
        assert part in str(caught.value)


def test_too_many_items_under_one_title_are_refused_with_the_title():
    log = log_of(*ONES[:2], *((f"J{n}", "Great ITEM" if n else "great item", "") for n in range(3)))
    with pytest.raises(UserError, match=r"3 of the 5 items .*'great item' is the title of 3"):
        clean(log)
    loose = dataclasses.replace(REFUSE, max_same_title_share=0.6)
    assert len(clean(log, loose)[0]) == 5


def test_only_items_that_events_name_are_judged():
    junk = [(f"J{n}", "", "") for n in range(9)]
    items, _, drops = clean(log_of(*ONES, *junk, named=["A0", "A1", "J0"]))
    assert len(items) == 13 and drops["items_without_title"] == 9


def test_the_fallback_names_items_by_the_narrowest_category_and_the_id():
    junk = [("J1", "", "Toys, Kites &amp; Co"), ("J2", "Same", "Toys, Drums"), ("J3", "same", "")]
    log = dataclasses.replace(log_of(*junk, ("A", "Own Name", "")), default_category="Bazaar")
    items, counts, drops = clean(log, RENAME)
    assert [item.title for item in items] == [
        "Kites & Co J1",
        "Drums J2",
        "Bazaar J3",
        "Own Name",
    ]
    assert [item.category for item in items] == ["Toys, Kites & Co", "Toys, Drums", "", ""]
    assert counts["titles_from_category"] == 3
    assert drops["items_without_title"] == 0


def test_the_fallback_leaves_a_few_shared_titles_as_they_are():
    log = log_of(*ONES, ("S1", "Same", "Toys"), ("S2", "Same", "Toys"), ("J", "", ""))
    items, counts, _ = clean(log, RENAME)
    assert [item.title for item in items[4:]] == ["Same", "Same", "Item J"]
    assert counts["titles_from_category"] == 1


@pytest.mark.parametrize("max_chars", [1, 6, 9, 14, 40])
def test_a_fallback_name_keeps_the_whole_id_where_it_fits(max_chars):
    settings = dataclasses.replace(RENAME, max_title_chars=max_chars)
    items, _, _ = clean(log_of(*((f"B0000{n}", "", "Kitchen Kettles") for n in range(3))), settings)
    titles = [item.title for item in items]
    assert all(len(title) <= max_chars for title in titles)
    if max_chars >= 6:
        assert len(set(titles)) == 3 and titles[0].endswith("B00000")


def test_long_titles_are_cut_and_counted():
    settings = PrepareSettings(max_title_chars=8)
    items, counts, _ = clean(log_of(("A", "Kettle of Brass", ""), ("B", "Kite", "")), settings)
    assert [item.title for item in items] == ["Kettle", "Kite"]
    assert counts["titles_cut"] == 1
