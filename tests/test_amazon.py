"""Amazon reviews of 2014, 2018 and 2023: every edition gives the same log, whatever its quirks."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_logs import events_of, named_events, read_logs

from instructrec_jax.damage import Damage
from instructrec_jax.data.readers import recognise
from instructrec_jax.data.readers.amazon import category_of_file
from instructrec_jax.data.readers.raw_log import count_log
from instructrec_jax.data.readers.values import parse_record
from instructrec_jax.errors import UserError

# (user, item, seconds, text, summary)
REVIEWS = [
    ("U1", "P1", 1400000000, "Bought it for a rainy walk.", "Dry"),
    ("U2", "P1", 1400000000, "", "Fine boots"),
    ("U1", "P2", 1300000000, "Line one\nline two &amp; more", "Two"),
    ("U1", "P2", 1300000000, "Line one\nline two &amp; more", "Two"),
    ("U3", "P3", 1300086400, "", ""),
]
# (item, title, path, brand)
ITEMS = [
    ("P1", "Puddle Boots &amp; Bag", ["Shoes", "Shoes", "Rain &amp; Snow"], "Fenwick"),
    ("P2", 'The "Best" Tent', ["Outdoor", "Tents"], ""),
    ("P3", None, [], None),
    ("P4", "Nobody's Kettle", ["Kitchen"], "Visit Amazon's Ada Fenwick Page"),
]


def review_line(edition: int, review: tuple) -> str:
    user, item, seconds, text, summary = review
    if edition == 2023:
        record = {
            **{"user_id": user, "asin": f"{item}-red", "parent_asin": item, "rating": 5.0},
            **{"timestamp": seconds * 1000, "text": text, "title": summary, "images": []},
        }
    else:
        record = {
            **{"reviewerID": user, "asin": item, "overall": 5.0, "helpful": [0, 1]},
            **{"unixReviewTime": seconds, "summary": summary, "vote": "2"},
        }
        if text or edition == 2014:
            record["reviewText"] = text
    return json.dumps(record)


def item_line(edition: int, item: tuple) -> str:
    raw_id, title, path, brand = item
    if edition == 2014:
        record = {"asin": raw_id, "price": 3.5, "categories": [path, ["Other", "Path"]]}
        record |= {"title": title} if title else {}
        record |= {"brand": brand} if brand is not None else {}
        return repr(record)
    if edition == 2018:
        record = {"asin": raw_id, "title": title or "", "category": path, "brand": brand or ""}
        quirks = {"rank": ["#1 in x"] if brand else "9 in y", "price": ".a-box{color:red}"}
        return json.dumps(record | quirks)
    record = {"parent_asin": raw_id, "title": title, "categories": path, "store": brand}
    return json.dumps(record | {"details": {"Brand": "", "Rank": {"x": 1}}, "price": None})


NAMES = {
    2014: ("reviews_Rain_Gear_5.json", "meta_Rain_Gear.json"),
    2018: ("Rain_Gear_5.json", "meta_Rain_Gear.json"),
    2023: ("Rain_Gear.jsonl", "meta_Rain_Gear.jsonl"),
}


def write(folder: Path, edition: int = 2018, *, packed: bool = False, **lines) -> Path:
    """Writes a folder of an edition; `reviews` and `items` replace the lines, None leaves out."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "reviews": [review_line(edition, review) for review in REVIEWS],
        "items": [item_line(edition, item) for item in ITEMS],
    } | lines
    for name, key in zip(NAMES[edition], ("reviews", "items"), strict=True):
        if contents[key] is not None:
            data = "".join(line + "\n" for line in contents[key]).encode()
            path = folder / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("edition", [2014, 2018, 2023])
def test_every_edition_gives_the_same_log(tmp_path, edition, packed):
    folder = write(tmp_path, edition, packed=packed)
    assert recognise(folder)[0].name == "amazon"
    log = read_logs(folder)
    assert named_events(log) == [review[:3] for review in REVIEWS]
    assert log.has_times and log.has_unix_times and log.has_item_file
    assert [(item.raw_id, item.title) for item in log.items] == [
        (raw_id, title or "") for raw_id, title, *_ in ITEMS
    ]
    assert [item.category for item in log.items] == [
        "Shoes, Rain & Snow",
        "Outdoor, Tents",
        "",
        "Kitchen",
    ]
    assert [item.brand for item in log.items] == [brand or "" for *_, brand in ITEMS]


@pytest.mark.parametrize("edition", [2014, 2018, 2023])
def test_reviews_are_read_again_with_their_event_and_the_summary_where_there_is_no_text(
    tmp_path, edition
):
    log = read_logs(write(tmp_path, edition))
    expected = [
        (0, "Bought it for a rainy walk."),
        (1, "Fine boots"),
        (2, "Line one\nline two &amp; more"),
        (3, "Line one\nline two &amp; more"),
    ]
    assert list(log.reviews()) == expected
    assert list(log.reviews()) == expected  # as often as one likes


def test_counts_are_those_of_the_log_as_it_was_read(tmp_path):
    assert count_log(read_logs(write(tmp_path))) == {
        "log_interactions": 5,
        "log_users": 3,
        "log_items": 3,
        "log_pairs": 4,
        "log_items_listed": 4,
        "log_items_without_title": 1,
        "log_reviews_without_text": 2,
        "log_repeated_lines": 1,
    }


def test_an_item_listed_twice_counts_once(tmp_path):
    lines = [item_line(2018, item) for item in (*ITEMS, ("P1", "Other", [], ""))]
    log = read_logs(write(tmp_path, items=lines))
    assert log.num_items_listed_again == 1
    assert log.items[0].title == "Puddle Boots &amp; Bag"


def test_reviews_that_were_changed_between_the_passes_are_not_mixed_up(tmp_path):
    log = read_logs(write(tmp_path))
    write(tmp_path, reviews=[review_line(2018, review) for review in REVIEWS[1:]])
    with pytest.raises(UserError, match="held 5 events and holds 4"):
        list(log.reviews())


def test_without_metadata_items_have_ids_and_the_files_category(tmp_path):
    log = read_logs(write(tmp_path, items=None))
    assert [(item.raw_id, item.title) for item in log.items] == [
        ("P1", ""),
        ("P2", ""),
        ("P3", ""),
    ]
    assert (log.has_item_file, log.default_category) == (False, "Rain Gear")


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("reviews_Digital_Music_5.json.gz", "Digital Music"),
        ("reviews_Digital_Music.json", "Digital Music"),
        ("Gift_Cards_5.json.gz", "Gift Cards"),
        ("All_Beauty.jsonl.gz", "All Beauty"),
    ],
)
def test_a_file_is_named_after_its_department(name, category):
    assert category_of_file(Path(name)) == category


@pytest.mark.parametrize("edition", [2014, 2018, 2023])
@pytest.mark.parametrize("bare_title", ["", "\u200b", '<span class="x">'])
def test_an_item_listed_twice_gets_what_its_first_line_lacks(tmp_path, edition, bare_title):
    bare = [(raw_id, bare_title, [], "") for raw_id, *_ in ITEMS[:2]]
    lines = [item_line(edition, item) for item in (*bare, *ITEMS)]
    log = read_logs(write(tmp_path, edition, items=lines))
    assert log.num_items_listed_again == 2
    assert [(item.title, item.brand) for item in log.items[:2]] == [
        (ITEMS[0][1], "Fenwick"),
        (ITEMS[1][1], ""),
    ]
    assert log.items[0].category == "Shoes, Rain & Snow"


@pytest.mark.parametrize(
    ("edition", "value", "unit", "hint"),
    [
        (2018, 1_400_000_000_000, "seconds", "seems to be in milliseconds"),
        (2018, -7, "seconds", "(1995) to"),
        (2018, 1e300, "seconds", "(1995) to"),
        (2018, 4_100_000_000, "seconds", "(2096)"),
        (2023, 1_400_000_000, "milliseconds", "seems to be in seconds"),
        (2023, 0, "milliseconds", "(1995) to"),
    ],
)
def test_times_of_another_unit_are_damage_that_names_it(tmp_path, edition, value, unit, hint):
    lines = [review_line(edition, review) for review in REVIEWS]
    field = "timestamp" if edition == 2023 else "unixReviewTime"
    lines[1] = json.dumps(json.loads(lines[1]) | {field: value})
    folder = write(tmp_path, edition, reviews=lines)
    with pytest.raises(UserError) as caught:
        read_logs(folder)
    name = NAMES[edition][0]
    for part in (f"{name} line 2: {field} is {value!r}, expected {unit} since 1970", hint):
        assert part in str(caught.value)
    damage = Damage(on_damage="skip")
    assert len(read_logs(folder, damage).events) == 4
    assert damage.counts == {"bad_time": 1}


BAD_REVIEWS = {
    "half a line": ('{"reviewerID": "U9", "asin', "not_a_record", "neither JSON"),
    "a list": ('["U9", "P1"]', "not_a_record", "a record in braces"),
    "a call": ("{'reviewerID': print('x')}", "not_a_record", "neither JSON"),
    "no user": ('{"asin": "P1", "unixReviewTime": 1}', "missing_field", "reviewerID or user_id"),
    "null user": (
        '{"reviewerID": null, "asin": "P1", "unixReviewTime": 1}',
        *("missing_field", "reviewerID or user_id"),
    ),
    "empty item": (
        '{"reviewerID": "U9", "asin": " ", "unixReviewTime": 1}',
        *("bad_id", "asin is empty"),
    ),
    "no time": ('{"reviewerID": "U9", "asin": "P1"}', "missing_field", "timestamp"),
    "time is a date": (
        '{"reviewerID": "U9", "asin": "P1", "unixReviewTime": "06 17, 2018"}',
        *("bad_time", "'06 17, 2018'"),
    ),
    "text is a list": (
        '{"reviewerID": "U9", "asin": "P1", "unixReviewTime": 1, "reviewText": ["x"]}',
        *("bad_text", "reviewText is ['x']"),
    ),
}


@pytest.mark.parametrize("case", BAD_REVIEWS)
def test_a_damaged_review_fails_by_file_and_line_or_is_left_out_and_counted(tmp_path, case):
    line, reason, problem = BAD_REVIEWS[case]
    lines = [review_line(2018, review) for review in REVIEWS]
    folder = write(tmp_path, reviews=[*lines[:2], line, *lines[2:]])
    with pytest.raises(UserError) as caught:
        read_logs(folder)
    for part in ("Rain_Gear_5.json line 3", problem, "--on_damage=skip"):
        assert part in str(caught.value)
    damage = Damage(on_damage="skip")
    log = read_logs(folder, damage)
    assert named_events(log) == [review[:3] for review in REVIEWS]
    assert [number for number, _ in log.reviews()] == [0, 1, 2, 3]
    assert damage.counts == {reason: 1}
    assert damage.examples == {reason: ["Rain_Gear_5.json line 3"]}


def test_reviews_are_known_by_a_later_line_where_the_first_is_damaged(tmp_path):
    lines = ["{half", *(review_line(2018, review) for review in REVIEWS)]
    log = read_logs(write(tmp_path, reviews=lines, items=None), Damage(on_damage="skip"))
    assert len(log.events) == 5


def test_files_that_do_not_make_one_log_are_named(tmp_path):
    with pytest.raises(UserError, match=r"meta_Rain_Gear\.json but no reviews"):
        recognise(write(tmp_path / "meta", reviews=None))
    both = write(write(tmp_path / "both", 2014), 2018)
    with pytest.raises(UserError, match=r"Rain_Gear_5\.json and reviews_Rain_Gear_5\.json"):
        recognise(both)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"config\.json; expected"):
        recognise(other)


WHOLE = "".join(
    json.dumps(
        {"reviewerID": f"U{n}", "asin": f"P{n % 7}", "unixReviewTime": 10**9 + n, "pad": "x" * n}
    )
    + "\n"
    for n in range(60)
)
PACKED = gzip.compress(WHOLE.encode(), mtime=0)


@settings(max_examples=60)
@given(size=st.integers(30, len(PACKED) - 1))
def test_a_gzip_file_cut_anywhere_gives_its_whole_lines_or_an_error(tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "X.json.gz").write_bytes(PACKED[:size])
    write(folder, reviews=None)
    with pytest.raises(UserError, match=r"X\.json\.gz.*cut"):
        read_logs(folder)
    damage = Damage(on_damage="skip")
    try:
        log = read_logs(folder, damage)
    except UserError as error:
        assert "X.json.gz" in str(error) and damage.counts == {"cut_gzip": 1}
        return
    assert damage.counts == {"cut_gzip": 1}
    np.testing.assert_array_equal(events_of(log)["time"] - 10**9, np.arange(len(log.events)))
    assert damage.examples["cut_gzip"] == [f"X.json.gz line {len(log.events) + 1}"]


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(record=st.dictionaries(st.text(), JSON_LIKE, max_size=5))
def test_a_record_is_read_back_as_json_and_as_a_python_dict(record):
    for text in (json.dumps(record), repr(record)):
        if "inf" not in text and "Infinity" not in text:
            assert parse_record(text, Path("x"), 1) == record


@given(text=st.text(st.sampled_from("{}[]()'\":,\\ a1.\x00*-#")))
def test_any_line_is_a_record_or_damaged(text):
    try:
        assert isinstance(parse_record(text, Path("x"), 1), dict)
    except UserError as error:
        assert "x line 1" in str(error)


def test_nesting_beyond_bounds_is_damage_and_no_crash():
    for text in ("{'a': " + "[" * 100_000, '{"a": ' * 100_000):
        with pytest.raises(UserError, match="neither JSON"):
            parse_record(text, Path("x"), 1)


SHARED = Path(__file__).parents[2] / "shared" / "data"
# interactions, users, items, pairs, listed, without title, without text, repeated lines
README_COUNTS = {
    "amazon-reviews-digital-music-2014": (6908, 2490, 382, 6908, 7419, 98, 1, 0),
    "amazon-reviews-gift-cards-2018": (2972, 458, 148, 2965, 1547, 0, 6, 0),
    "amazon-reviews-all-beauty-2018": (5269, 991, 85, 4092, 85, 85, 5, 1027),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", README_COUNTS)
def test_counts_agree_with_the_data_sets_own_account(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is absent")
    assert tuple(count_log(read_logs(SHARED / name)).values()) == README_COUNTS[name]


@pytest.mark.real_data
def test_the_truncated_files_give_their_whole_lines_only_when_asked():
    folder = SHARED / "amazon-reviews-digital-music-2014"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    with pytest.raises(UserError, match="damaged after line 6908"):
        read_logs(folder / "truncated")
    damage = Damage(on_damage="skip")
    log = read_logs(folder / "truncated", damage)
    assert damage.counts == {"cut_gzip": 2}
    assert tuple(count_log(log).values()) == README_COUNTS[folder.name]
