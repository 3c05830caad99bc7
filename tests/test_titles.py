"""Cleaning and cutting of titles."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.data.titles import (
    category_path,
    clean_brand,
    clean_text,
    cut_title,
    junk_kind,
    model_title,
    path_labels,
    title_ids,
)
from instructrec_jax.instructions.language import plain_text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (" Tom &amp; Jerry ", "Tom & Jerry"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("&quot;Gold&#39;s&#x22;", '"Gold\'s"'),
        ("a\tb\r\nc\x00d\x85e\u00a0f\u2028g", "a b c d e f g"),
        ("Salt &amp Pepper", "Salt & Pepper"),
        ("pen&notebook &paragon; R&D", "pen&notebook &paragon; R&D"),
        ("\ud83d half", "half"),
        ("&nbsp;\t ", ""),
        ("\u200b \u200d&shy;", ""),
        ("\ufe0f", ""),
        ("\u3164\u2800", ""),
        ("\ufffd\ufffd", ""),
        ("!!!", "!!!"),
        ("\U0001f3b5", "\U0001f3b5"),
        ("a\u200db", "a\u200db"),
    ],
)
def test_entities_and_blanks_are_cleaned(raw, clean):
    assert clean_text(raw) == clean


@given(st.text())
def test_cleaning_is_idempotent_and_leaves_one_line_that_can_be_encoded(text):
    clean = clean_text(text)
    assert clean_text(clean) == clean
    assert "\n" not in clean and "\t" not in clean and clean == clean.strip()
    clean.encode("utf-8")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="&;#")))
def test_escaping_any_number_of_times_is_undone(text):
    marked = f"{text}<&>"
    assert clean_text(html.escape(html.escape(html.escape(marked)))) == marked


def test_long_titles_are_cut_between_words():
    assert cut_title("Sea Chart Deluxe", 12) == "Sea Chart"
    assert cut_title("Sea Chart Deluxe", 9) == "Sea Chart"
    assert cut_title("Sea Chart Deluxe", 16) == "Sea Chart Deluxe"
    assert cut_title("Unbreakable", 4) == "Unbr"


@given(st.text(), st.integers(1, 30))
def test_a_cut_title_is_short_a_prefix_and_not_empty(text, limit):
    clean = clean_text(text)
    cut = cut_title(clean, limit)
    assert len(cut) <= limit and clean.startswith(cut) and bool(cut) == bool(clean)


def test_titles_that_differ_in_case_alone_share_a_number():
    assert title_ids(["Halo", "Chess", "HALO", "Draughts"]).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cr\u00eape", "Cre\u0302pe"),
        ("\uff21\uff23\uff24\uff23", "ACDC"),
        ("\u00be Time", "3\u20444 Time"),
        ("And so\u2026", "And so..."),
        ("\u200fBlue Bird", "Blue Bird"),
        ("Blue\u200cBird", "Blue Bird"),
        ("Blue\u00adbird", "Bluebird"),
        ("Blue\ufffd Bird", "Blue Bird"),
        ("Ape; Bat", "Ape, Bat"),
        ("Ape;\u00a0 Bat", "Ape, Bat"),
    ],
)
def test_titles_of_equal_tokens_are_one_title_to_a_model(one, other):
    assert model_title(one) == model_title(other)
    assert title_ids([one, "Cow", other.upper()]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("one", "other"), [("Halo", "HALO"), ("Bluebird", "Blue Bird"), ("\u00e9", "e"), ("A;B", "A,B")]
)
def test_titles_of_other_tokens_differ(one, other):
    assert model_title(one) != model_title(other)


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("", "empty"),
        ('<span class="a-size-medium">', "markup"),
        ("Kite</div>", "markup"),
        ('<a href="/x">Kite', "markup"),
        ('<img src="x.png" />', "markup"),
        ("<!-- kite -->", "markup"),
        ("var aPageStart = (new Date()).getTime();", "script"),
        ("(function(f) {var x})", "script"),
        (".a-box-inner{background:#fff}", "script"),
        ("Kite", ""),
        ("I <3 Kites", ""),
        ("A < B > C", ""),
        ("The <i>Best</i> Kite<br>of All", ""),
        ("<A Kite>", ""),
        ("Functional (Deluxe) {2 Pack: Red}", ""),
        ("Var and Function: The Document", ""),
        ("{Curly}: A Novel", ""),
        ("Windows 7 (Home)", ""),
    ],
)
def test_titles_of_markup_and_script_are_junk_and_odd_ones_are_not(title, kind):
    assert junk_kind(title) == kind


def test_a_label_with_a_comma_stays_whole():
    parts = ["Books", "Science, History &amp; Nature", "Tides"]
    path = category_path(parts)
    assert path_labels(path) == ["Books", "Science, History & Nature", "Tides"]
    assert category_path(path.split(", ")) == path
    assert plain_text(path) == "Books, Science, History & Nature, Tides"
    assert path_labels("") == []


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ([], ""),
        (["Gift Cards", "Gift Cards"], "Gift Cards"),
        (["Toys", "", " Air &amp; Wind ", "Toys"], "Toys, Air & Wind, Toys"),
        (["Shoes", "Boots", "</span></span>", "100% rubber"], "Shoes, Boots"),
    ],
)
def test_a_path_has_no_empty_parts_repeats_or_markup(parts, path):
    assert category_path(parts) == path


@pytest.mark.parametrize(
    ("text", "brand"),
    [
        ("Fenwick &amp; Sons", "Fenwick & Sons"),
        ("Visit Amazon's Ada Fenwick Page", "Ada Fenwick"),
        ("Visit the Fenwick Store", "Fenwick"),
        ("Ada Fenwick Format: Audio CD", "Ada Fenwick"),
        ('<span class="x">', ""),
        ("", ""),
    ],
)
def test_a_brand_is_a_bare_name(text, brand):
    assert clean_brand(text) == brand
