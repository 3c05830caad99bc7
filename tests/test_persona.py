"""What a person writes of themselves, seen from outside."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.instructions.persona import third_person
from instructrec_jax.teacher.extractive.intentions import intentions_in


@pytest.mark.parametrize(
    ("text", "shifted"),
    [
        ("I love my harp", "The user loves their harp"),
        ("I am looking for mine", "The user is looking for theirs"),
        ("I would like one for us", "The user would like one for them"),
        ("I want our army to be mighty", "The user wants their army to be mighty"),
        ("I want a kite for my son", "The user wants a kite for their son"),
        ("We really enjoy jazz and need more", "The user really enjoys jazz and needs more"),
        ("I'm into jazz, I've heard it all", "The user is into jazz, they have heard it all"),
        ("What should I play with my son?", "What should the user play with their son?"),
        ("am I too old for this", "is the user too old for this"),
        ("I try it. I am happy", "The user tries it. They are happy"),
        ("I don't like what I bought", "The user doesn't like what they bought"),
        ("show me kites for my son", "show the user kites for their son"),
        ("A kite for my son", "A kite for the user's son"),
        ("I WANT A KITE", "The user wants a kite"),
        ('I want "My Kite" for me', 'The user wants "My Kite" for them'),
        ("my \u201cI, Robot\u201d", "the user's \u201cI, Robot\u201d"),
        ("my friends' kids say 'I love it'", "the user's friends' kids say 'I love it'"),
        ("I want I Am Legend or Part I", "The user wants I Am Legend or Part I"),
        ("I watch My Little Pony", "The user watches My Little Pony"),
        ("a gold mine, i.e. gold for a do-it-myself kit", None),
        ("The user wants a kite for their son", None),
        ("Bazaar, Kites, Plain", None),
    ],
)
def test_the_user_is_spoken_of_as_they(text, shifted):
    assert third_person(text) == (text if shifted is None else shifted)


WORDS = st.sampled_from(
    [
        *("I", "i", "we", "my", "My", "me", "us", "mine", "am", "have", "I'm", "we've", "I\u2019d"),
        *("want", "need", "really", "like", "love", "watch", "and", "but", "do", "should", "what"),
        *("the", "user", "user's", "their", "son", "Kite", "US", "Am", "Legend", "WANT", "Im"),
        *(",", ".", "?", "!", "-", '"', "'", "\u201c", "\u201d", "\u2018", "\u2019", "'s"),
    ]
)
TEXTS = st.text(max_size=40) | st.lists(WORDS, max_size=12).map(" ".join)
FIRST = re.compile(r"(?<![\w-])(?:i|me|myself|we)(?![\w'\u2019-])")


@given(TEXTS | st.lists(WORDS, max_size=10).map("".join))
def test_a_text_that_was_shifted_stays_as_it_is(text):
    assert third_person(third_person(text)) == third_person(text)


@given(TEXTS, st.text(alphabet=st.characters(exclude_characters='"'), max_size=30), TEXTS)
def test_what_is_in_quotes_is_never_touched(before, title, after):
    before, after = (
        re.sub("[\"'\u201c\u201d\u2018\u2019\u00ab\u00bb]", "", t) for t in (before, after)
    )
    quoted = f'"{title}"'
    assert quoted in third_person(f"{before} {quoted} {after}")


@given(
    st.lists(st.sampled_from(("i", "we", "me", "myself", "want", "a", "kite", "and")), max_size=9)
)
def test_no_first_person_is_left(words):
    assert not FIRST.search(third_person(" ".join(words)))


def test_training_and_serving_speak_of_users_alike():
    (found, *_) = intentions_in("I bought this for my son's birthday")
    assert (
        found.third
        == third_person(found.first)
        == "The user wants something for their son's birthday"
    )
