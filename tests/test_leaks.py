"""What gives a title away."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.instructions.leaks import quotes_title, words


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("any quorn velt is fine", "Quorn Velt Gift Card, Pack of 3"),
        ("he loves quorn's food", "Quorn Gift Card"),
        ("QUORN-VELTS!", "The Quorn Velt"),
        ("they say vog of the lim deserves it", "Vog of the Lim: Deserve the Zan, Part 2"),
        ("the red of a moon harp sings", "Old Moon Harp Sings at Night"),
        ("tgz fridays rock", "T.G.Z. Friday's Gift Card"),
        ("all by Nilo Park", "Nilo Park - Winter Songs"),
        ("play octaves", "Octave"),
        ("and so what if", "So What"),
        ("we saw them all", "Them All and Us [We saw Them]"),
    ],
)
def test_a_title_is_quoted(text, title):
    assert quotes_title(text, title)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("a gift card for lunch", "Quorn Velt Gift Card"),
        ("a gift card", "Gift Card"),
        ("a game for my xbox 360", "Vog Lim - Xbox 360"),
        ("quorn and other velts", "Quorn Velt Zan"),
        ("moon songs with a harp", "Old Moon Harp Sings at Night"),
        ("so it goes", "So What"),
        ("in 1984 and 25 years on", "1984"),
        ("anything", ""),
        ("", "Octave"),
        ("best of the best", "Best Of"),
    ],
)
def test_a_title_is_not_quoted(text, title):
    assert not quotes_title(text, title)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_quotation_is_one_whatever_stands_around_it(before, after):
    assert quotes_title(f"{before} . quorn velt . {after}", "Quorn Velt")


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_without_a_word_of_the_title_quotes_it(text, title):
    if set(words(text)).isdisjoint(words(title)):
        assert not quotes_title(text, title)
