"""Readers: every format gives the same log, whatever harmless habits its writer had."""

import csv
import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_logs import named_events, read_logs
from synthetic import write_logs

from instructrec_jax.data.readers import recognise
from instructrec_jax.data.readers.raw_log import count_log
from instructrec_jax.data.readers.recbole import genres_path
from instructrec_jax.errors import UserError

INTERACTIONS = "user_id\titem_id\ttimestamp\nu1\ti1\t3\nu1\ti2\t1\nu2\ti1\t2\n"
ITEMS = "item_id\ttitle\tcategory\ni1\tRed Kite\tToys\ni2\tBlue Kite\t\n"


def put(folder: Path, **contents: str | bytes) -> Path:
    """Writes files named `stem__extension` into the folder."""
    for name, content in contents.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_bytes(content.encode("utf-8"))
    return folder


def test_all_formats_give_the_same_log(tmp_path):
    logs = []
    for form in ("tsv", "jsonl", "recbole"):
        folder = write_logs(tmp_path / form, num_users=9, num_items=14, seed=3, format=form)
        logs.append(read_logs(folder))
    assert len(logs[0].items) == 14
    for log in logs[1:]:
        assert named_events(log) == named_events(logs[0])
        assert log.items == logs[0].items


def test_gzip_is_read_whatever_the_name_says(tmp_path):
    put(tmp_path, interactions__tsv=gzip.compress(INTERACTIONS.encode()), items__tsv__gz=ITEMS)
    log = read_logs(tmp_path)
    assert named_events(log) == [("u1", "i1", 3.0), ("u1", "i2", 1.0), ("u2", "i1", 2.0)]
    assert [item.category for item in log.items] == ["Toys", ""]


def test_quotes_blank_lines_line_ends_and_extra_columns_are_harmless(tmp_path):
    items = '\ufefftitle\tprice\titem_id\r\n"Kite\t9\ti1\r\n\r\nThe "Best" "\t\ti2\r\n'
    put(tmp_path, interactions__tsv=INTERACTIONS.rstrip("\n"), items__tsv=items)
    log = read_logs(tmp_path)
    assert [item.title for item in log.items] == ['"Kite', 'The "Best" "']
    assert len(log.events) == 3


def test_a_line_separator_inside_a_title_does_not_end_the_line(tmp_path):
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv="item_id\ttitle\ni1\tA\u2028B\x0cC\n")
    assert [item.title for item in read_logs(tmp_path).items] == ["A\u2028B\x0cC"]


def test_events_without_times_keep_the_order_of_the_file(tmp_path):
    put(tmp_path, interactions__tsv="user_id\titem_id\nu\ti2\nu\ti1\n", items__tsv=ITEMS)
    log = read_logs(tmp_path)
    assert not log.has_times
    assert named_events(log) == [("u", "i2", 0.0), ("u", "i1", 1.0)]


def test_jsonl_takes_numbers_as_ids_and_lists_as_categories(tmp_path):
    put(
        tmp_path,
        interactions__jsonl='{"user_id": 7, "item_id": 1, "timestamp": 1.5, "rating": 5}\n',
        items__jsonl='{"item_id": 1, "title": "Kite", "category": ["Toys", "", " Air "]}\n'
        '{"item_id": "2", "title": null}\n',
    )
    log = read_logs(tmp_path)
    assert named_events(log) == [("7", "1", 1.5)]
    assert [(item.title, item.category) for item in log.items] == [
        ("Kite", "Toys, Air"),
        ("", ""),
    ]


def test_sequences_are_ordered_and_not_filtered_again_by_default(tmp_path):
    sequences = "user_id\treviewer_id\titem_ids\n0\tX\ti2 i1 i2\n5\tY\ti1\n"
    put(tmp_path, sequences__tsv__gz=gzip.compress(sequences.encode()), items__tsv=ITEMS)
    form, _ = recognise(tmp_path)
    log = read_logs(tmp_path)
    assert (form.name, form.default_k_core, log.has_times) == ("sequences", 1, False)
    assert [event[:2] for event in named_events(log)] == [
        ("0", "i2"),
        ("0", "i1"),
        ("0", "i2"),
        ("5", "i1"),
    ]


def test_recbole_reads_movielens_names_and_genres(tmp_path):
    put(
        tmp_path,
        ml__inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t9\t3\t88\n",
        ml__item="item_id:token\tmovie_title:token_seq\tclass:token_seq\n9\tA Film\tDrama War\n",
        ml__user="user_id:token\n1\n",
    )
    log = read_logs(tmp_path)
    assert named_events(log) == [("1", "9", 88.0)]
    assert (log.items[0].title, log.items[0].category) == ("A Film", "Drama, War")


@pytest.mark.parametrize(
    "files",
    [
        {
            "ratings__dat": "1::9::5::1300000000\n2::9::3::1300000001\n",
            "movies__dat": "9::Pok\u00e9mon (1998)::Animation|Children's\n".encode("latin-1"),
        },
        {
            "ratings__csv": "userId,movieId,rating,timestamp\r\n1,9,5.0,1300000000\r\n"
            "2,9,3.0,1300000001\r\n",
            "movies__csv": "movieId,title,genres\n9,Pok\u00e9mon (1998),Animation|Children's\n"
            '8,"Matrix, The ""2""",(no genres listed)\n',
        },
    ],
    ids=["dat", "csv"],
)
def test_movielens_is_read_as_it_is_published(tmp_path, files):
    log = read_logs(put(tmp_path, **files))
    assert named_events(log) == [("1", "9", 1.3e9), ("2", "9", 1.3e9 + 1)]
    first = log.items[0]
    assert (first.title, first.category) == ("Pok\u00e9mon (1998)", "Animation, Children's")
    assert [(i.title, i.category) for i in log.items[1:]] in ([], [('Matrix, The "2"', "")])


def test_movielens_without_titles_or_with_other_fields_is_named(tmp_path):
    put(tmp_path, ratings__csv="userId,movieId,rating,timestamp\n1,9,5.0\n")
    with pytest.raises(
        UserError, match=r"holds ratings\.csv; (?s:.*)ratings\.csv with movies\.csv"
    ):
        read_logs(tmp_path)
    put(tmp_path, movies__csv="movieId,title,genres\n9,A,B\n")
    with pytest.raises(UserError, match=r"line 2: 3 fields, expected 4: userId"):
        read_logs(tmp_path)
    put(tmp_path, ratings__csv="user,movie\n1,9\n")
    with pytest.raises(UserError, match=r"line 1: the header is 'user,movie', expected 'userId"):
        read_logs(tmp_path)


LAST_FM = {
    "lastfm__inter": "session_id:token\tartist_id:token\tat:float\titem_id:token\n1\t9\t88\tx\n",
    "lastfm__item": "artist_id:token\tname:token_seq\tlabel:token_seq\n9\tAn Act\tA Label\n",
}
AS_TSV = {
    "interactions__tsv": "session_id\tartist_id\tat\n1\t9\t88\n",
    "items__tsv": "artist_id\tname\tlabel\n9\tAn Act\tA Label\n",
}
AS_JSONL = {
    "interactions__jsonl": '{"session_id": 1, "artist_id": 9, "at": 88}\n',
    "items__jsonl": '{"artist_id": 9, "name": "An Act", "label": "A Label"}\n',
}
NAMED = {"user_id": "session_id", "item_id": "artist_id", "timestamp": "at", "title": "label"}


@pytest.mark.parametrize("files", [LAST_FM, AS_TSV, AS_JSONL], ids=["recbole", "tsv", "jsonl"])
def test_columns_of_other_names_are_read_by_the_names_that_the_user_gives(tmp_path, files):
    log = read_logs(put(tmp_path, **files), **NAMED)
    assert named_events(log) == [("1", "9", 88.0)]
    assert (log.items[0].raw_id, log.items[0].title) == ("9", "A Label")


@pytest.mark.parametrize("files", [LAST_FM, AS_TSV, AS_JSONL], ids=["recbole", "tsv", "jsonl"])
def test_a_wrong_name_of_a_column_gets_those_that_are_there(tmp_path, files):
    put(tmp_path, **files)
    with pytest.raises(
        UserError, match=r"line 1: no .* 'artist'; .* has 'session_id', 'artist_id'"
    ):
        read_logs(tmp_path, **{**NAMED, "item_id": "artist"})
    with pytest.raises(UserError, match=r"no .* 'when'; .* 'at'"):
        read_logs(tmp_path, **{**NAMED, "timestamp": "when"})
    with pytest.raises(UserError, match=r"no .* 'user_id'; .*name it with --user_field"):
        read_logs(tmp_path)


def test_ordered_sequences_take_other_names_too(tmp_path):
    put(
        tmp_path,
        sequences__tsv="session_id\titem_ids\n1\t9 8\n",
        items__tsv="artist_id\ttitle\n9\tAn Act\n8\tAnother\n",
    )
    log = read_logs(tmp_path, user_id="session_id", item_id="artist_id")
    assert [event[:2] for event in named_events(log)] == [("1", "9"), ("1", "8")]


@pytest.mark.parametrize(
    ("genres", "path"),
    [
        ("Animation Children's Comedy", "Animation, Children's, Comedy"),
        ("Action|Sci-Fi", "Action, Sci-Fi"),
        ("unknown", ""),
        ("(no genres listed)", ""),
        ("", ""),
    ],
)
def test_genres_become_a_path_and_unknown_ones_none(genres, path):
    assert genres_path(genres) == path


def test_the_first_line_of_an_item_that_has_a_title_or_a_category_gives_it(tmp_path):
    again = "i1\tOther\tSports\ni2\tOther\tAir\ni3\t\tAir\ni3\tGrey Kite\t\ni3\tOther\tX\n"
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv=ITEMS + again)
    log = read_logs(tmp_path)
    assert log.num_items_listed_again == 4
    assert [(item.title, item.category) for item in log.items] == [
        ("Red Kite", "Toys"),
        ("Blue Kite", "Air"),
        ("Grey Kite", "Air"),
    ]


def test_brands_and_categories_beside_the_items_fill_what_the_items_leave_open(tmp_path):
    details = (
        "item_id\tasin\tbrand\tcategories\n"
        "i2\tB2\tFenwick\tToys,Air &amp; Wind,Air &amp; Wind\n"
        "i1\tB1\tOther\tIgnored\n"
        "i9\tB9\tNobody\tToys\n"
    )
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv=ITEMS)
    put(tmp_path, items_meta_sample__tsv__gz=gzip.compress(details.encode()))
    log = read_logs(tmp_path)
    assert [(item.title, item.category, item.brand) for item in log.items] == [
        ("Red Kite", "Toys", "Other"),
        ("Blue Kite", "Toys, Air & Wind", "Fenwick"),
    ]
    assert log.num_details_of_unknown_items == 1
    put(tmp_path, items_meta__tsv="item_id\tbrand\ni1\tX\n")
    with pytest.raises(UserError, match=r"items_meta\.tsv and items_meta_sample\.tsv\.gz"):
        recognise(tmp_path)


@pytest.mark.parametrize("form", ["tsv", "jsonl", "recbole"])
def test_a_review_column_is_read_again_when_asked_for(tmp_path, form):
    rows = [("u1", "i1", 3, "for rain"), ("u1", "i2", 1, " "), ("u2", "i1", 2, "a gift")]
    names = ("user_id", "item_id", "timestamp", "review")
    if form == "jsonl":
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        put(tmp_path, interactions__jsonl="\n".join(lines), items__tsv=ITEMS)
    else:
        lines = ["\t".join(map(str, row)) for row in (names, *rows)]
        text = "\n".join(lines)
        if form == "tsv":
            put(tmp_path, interactions__tsv=text, items__tsv=ITEMS)
        else:
            header = "\t".join(f"{name}:token" for name in names)
            put(tmp_path, toy__inter=text.replace(lines[0], header))
            put(tmp_path, toy__item="item_id:token\ttitle:token\ni1\tA\ni2\tB\n")
    log = read_logs(tmp_path)
    assert list(log.reviews()) == [(0, "for rain"), (2, "a gift")]
    assert log.num_without_text == 1


def test_a_log_without_reviews_has_none(tmp_path):
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv=ITEMS)
    log = read_logs(tmp_path)
    assert log.reviews is None
    assert set(count_log(log)) == {
        *("log_interactions", "log_users", "log_items", "log_pairs"),
        *("log_items_listed", "log_items_without_title"),
    }


TEXT = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=("Cs",)), min_size=1)


@given(
    titles=st.lists(TEXT.filter(lambda title: '""' not in title), min_size=1, max_size=5),
    packed=st.booleans(),
)
def test_any_title_without_tabs_and_line_ends_is_read_back(tmp_path_factory, titles, packed):
    folder = tmp_path_factory.mktemp("titles")
    lines = "".join(f"i{index}\t{title}\n" for index, title in enumerate(titles))
    content = ("item_id\ttitle\n" + lines).encode()
    put(folder, interactions__tsv=INTERACTIONS)
    put(folder, items__tsv=gzip.compress(content) if packed else content)
    assert [item.title for item in read_logs(folder).items] == titles


@pytest.mark.parametrize(("quoting", "num_lines"), [(csv.QUOTE_MINIMAL, 2), (csv.QUOTE_ALL, 3)])
def test_a_tsv_quoted_as_csv_is_read_without_the_quotes_and_this_is_said(
    tmp_path, caplog, quoting, num_lines
):
    rows = [("i1", 'Kite 9" "Red"', "Toys"), ("i2", "Blue Kite", ""), ("i3", '"', "Toys")]
    with (tmp_path / "items.tsv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", quoting=quoting, lineterminator="\n")
        writer.writerows([("item_id", "title", "category"), *rows])
    log = read_logs(put(tmp_path, interactions__tsv=INTERACTIONS))
    assert [(item.raw_id, item.title, item.category) for item in log.items] == rows
    assert f"items.tsv: {num_lines} lines hold fields quoted as CSV" in caplog.text


def test_quotes_that_are_part_of_a_title_are_kept(tmp_path, caplog):
    titles = ['"Heroes"', '""Twice""', '12"', '"', '""', 'The "Best" one']
    lines = "".join(f"i{number}\t{title}\n" for number, title in enumerate(titles))
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv="item_id\ttitle\n" + lines)
    assert [item.title for item in read_logs(tmp_path).items] == titles
    assert not caplog.text


@pytest.mark.parametrize("form", ["tsv", "jsonl", "recbole", "details"])
@pytest.mark.parametrize(
    ("written", "category"),
    [
        ("'Home & Garden', \"Gardener's Tools\"", "Home & Garden, Gardener's Tools"),
        ("['Toys', 'Kites']", "Toys, Kites"),
        ('["Toys", null, "Kites"]', "Toys, Kites"),
        ("[['Toys', 'Kites'], ['Sports']]", "Toys, Kites"),
        ("{'Toys', 'Air'}", "Toys, Air"),
        ("'Toys'", "Toys"),
        ('"Toys"', "Toys"),
        ("[]", ""),
        ("None", ""),
        ("nan", ""),
        ("['None', 'Toys']", "Toys"),
        ("[Toys", "[Toys"),
    ],
)
def test_a_category_written_as_a_list_or_a_word_for_nothing_is_read_as_such(
    tmp_path, form, written, category
):
    put(tmp_path, interactions__tsv=INTERACTIONS, items__tsv=ITEMS.replace("Toys", written))
    if form == "jsonl":
        (tmp_path / "items.tsv").unlink()
        item = {"item_id": "i1", "title": "Red Kite", "category": written}
        put(tmp_path, items__jsonl=json.dumps(item))
    elif form == "recbole":
        for path in tmp_path.iterdir():
            path.unlink()
        put(tmp_path, toy__inter="user_id:token\titem_id:token\nu1\ti1\n")
        put(tmp_path, toy__item=f"item_id:token\ttitle:token\tgenres:token\ni1\tA\t{written}\n")
    elif form == "details":
        put(tmp_path, items__tsv="item_id\ttitle\ni1\tRed Kite\n")
        put(tmp_path, items_meta__tsv=f"item_id\tcategories\ni1\t{written}\n")
    assert read_logs(tmp_path).items[0].category == category


def test_blanks_at_the_ends_of_ids_do_not_count(tmp_path):
    events_of = "user_id\titem_id\ttimestamp\nu1 \ti1\t3\nu1\t i2\t1\n"
    put(tmp_path, interactions__tsv=events_of, items__tsv=ITEMS.replace("i1\t", "i1 \t"))
    log = read_logs(tmp_path)
    assert named_events(log) == [("u1", "i1", 3.0), ("u1", "i2", 1.0)]
    assert [item.raw_id for item in log.items] == ["i1", "i2"]


@pytest.mark.parametrize("form", ["toy.inter", "interactions.tsv", "interactions.jsonl"])
@pytest.mark.parametrize("user", ["user_id", "session_id"])
def test_lines_that_repeat_the_events_before_are_refused_by_name(tmp_path, form, user):
    put(tmp_path, items__tsv=ITEMS)
    lines = f"{user}\titem_id_list\titem_id\nu1\ti1 i2\ti3\nu1\ti1\ti2\n"
    if form == "toy.inter":
        lines = re.sub(r"(user_id|session_id|item_id_list|item_id)(?=[\t\n])", r"\1:token", lines)
        (tmp_path / "items.tsv").unlink()
        put(tmp_path, toy__item="item_id:token\ttitle:token\ni1\tA\n")
    elif form == "interactions.jsonl":
        lines = json.dumps({user: "u1", "item_id_list": ["i1", "i2"], "item_id": "i3"})
    (tmp_path / form).write_text(lines)
    with pytest.raises(UserError, match=rf"{form} line 1: the field 'item_id_list' repeats"):
        read_logs(tmp_path)


@pytest.mark.parametrize("other", [1_400_000_000_000, 1_400_000_000_000_000])
def test_seconds_beside_milliseconds_are_refused(tmp_path, other):
    lines = f"user_id\titem_id\ttimestamp\nu1\ti1\t1400000000\nu1\ti2\t{other}\nu1\ti3\t5\n"
    put(tmp_path, interactions__tsv=lines, items__tsv=ITEMS)
    with pytest.raises(UserError, match=rf"interactions\.tsv: .*such as {other} of event 2\)"):
        read_logs(tmp_path)
    put(tmp_path, interactions__tsv=lines.replace("1400000000\n", "14\n", 1))
    assert read_logs(tmp_path).has_times  # numbers of one unknown unit, only their order counts
