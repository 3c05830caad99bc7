"""The offline teacher: preferences from a history, intentions from a review."""

import copy
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec_jax.records import Item, Teacher
from instructrec_jax.teacher.extractive import MAX_INTENTIONS, ExtractiveTeacher
from instructrec_jax.teacher.persona import third_person, user_sentence
from instructrec_jax.teacher.phrases import complains, cut, tidied
from instructrec_jax.teacher.quotation import quotes_title
from instructrec_jax.teacher.sentences import sentences
from instructrec_jax.teacher.taste import TasteReader
from instructrec_jax.teacher.wishes import with_article

HARP = "Zindel Harp, Pack of 2"


def item(number: int, title: str, category: str = "", brand: str = "") -> Item:
    return Item(item_id=number, raw_id=f"r{number}", title=title, category=category, brand=brand)


def intentions(review: str, title: str = HARP):
    return ExtractiveTeacher().intentions(review, item(0, title))


def taste(*items: Item):
    return TasteReader().read(items)


class TestIntentions:
    @pytest.mark.parametrize(
        ("review", "first", "third"),
        [
            (
                "I bought this for my son's birthday, and he loved it!",
                "I want something for my son's birthday",
                "The user wants something for their son's birthday",
            ),
            (
                "We were looking for a quiet drum that fits our flat.",
                "I am looking for a quiet drum that fits our flat",
                "The user is looking for a quiet drum that fits their flat",
            ),
            (
                "I needed an easy tune to teach to my class. It came late.",
                "I want an easy tune to teach to my class",
                "The user wants an easy tune to teach to their class",
            ),
            (
                "Great gift for people who are hard to please",
                "I am looking for a great gift for people who are hard to please",
                "The user is looking for a great gift for people who are hard to please",
            ),
            (
                "Given as a gift.",
                "I am looking for a gift",
                "The user is looking for a gift",
            ),
            (
                "If you like slow northern folk songs, this one is for you.",
                "I like slow northern folk songs",
                "The user likes slow northern folk songs",
            ),
            (
                "A must for any serious harp collector.",
                "I am a serious harp collector",
                "The user is a serious harp collector",
            ),
            (
                "My daughter loves it.",
                "I want something that my daughter would love",
                "The user wants something that their daughter would love",
            ),
            (
                "I really love the soft strings on this album.",
                "I love the soft strings",
                "The user loves the soft strings",
            ),
            (
                "The sound was warm and clear in every room.",
                "I would like something where the sound is warm and clear in every room",
                "The user would like something where the sound is warm and clear in every room",
            ),
            (
                "Fine harp, warm strings and a beautiful case.",
                "I am looking for a fine harp, warm strings and a beautiful case",
                "The user is looking for a fine harp, warm strings and a beautiful case",
            ),
            (
                "The strings stay wonderful in cold rooms.",
                'I want something of which people say "the strings stay wonderful in cold rooms"',
                "The user wants something of which people say "
                '"the strings stay wonderful in cold rooms"',
            ),
        ],
    )
    def test_a_wish_is_said_as_one_would_ask_for_it_in_both_persons(self, review, first, third):
        found = intentions(review)
        assert found.vague[0] == first
        assert found.second_vague[0] == third

    def test_an_own_need_comes_before_a_liking_and_that_before_a_description(self):
        review = (
            "It has a great deep sound. I like the carved wooden feet. "
            "I was looking for a small instrument."
        )
        assert intentions(review).vague == (
            "I am looking for a small instrument",
            "I like the carved wooden feet",
        )

    def test_a_text_that_gives_the_title_away_is_left_out_and_counted(self):
        review = "I was looking for a zindel harp. I bought it for my mother."
        found = intentions(review)
        assert found.vague == ("I want something for my mother",)
        assert found.rejected == {"quotes_title": 1}

    def test_words_of_the_trade_are_no_quotation(self):
        found = intentions("I bought this gift card for my mother", "Mondo Grill Gift Card")
        assert found.vague == ("I want something for my mother",)
        assert found.rejected == {}

    @pytest.mark.parametrize(
        ("review", "reason"),
        [
            ("", "no_sentence"),
            (" <br/> :) ", "no_sentence"),
            ("Great!", "too_short"),
            ("Five stars. Nice.", "too_short"),
            ("The strings broke after two days and sound awful", "complaint"),
            ("It stood beside the window all winter long", "no_wish"),
            ("A great, warm zindel harp sound", "quotes_title"),
        ],
    )
    def test_what_gives_nothing_is_counted_by_reason(self, review, reason):
        found = intentions(review)
        assert (found.vague, found.second_vague) == ((), ())
        assert found.rejected == {reason: 1}

    @pytest.mark.parametrize(
        "review",
        [
            "I was not looking for a heavy wooden instrument.",
            "If you don't like slow folk songs, skip it.",
            "This is a terrible instrument with cheap strings.",
        ],
    )
    def test_what_is_denied_or_blamed_is_no_wish(self, review):
        assert intentions(review).vague == ()

    def test_markup_entities_and_shouting_are_cleaned(self):
        found = intentions("I GOT IT FOR MY SON &AMP; HIS FRIENDS<br />")
        assert "&" not in found.vague[0].replace(" & ", "") and "<" not in found.vague[0]
        assert found.vague[0].startswith("I want something for my son")

    def test_texts_are_deterministic_over_processes(self):
        review = "I bought this for my son. If you like slow folk songs, get it. Warm, great wood."
        code = (
            "from instructrec_jax.teacher.extractive import ExtractiveTeacher as T;"
            "from instructrec_jax.records import Item;"
            f"print(T().intentions({review!r}, Item(item_id=0, raw_id='0', title='Z')))"
        )
        runs = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(runs) == 1


_SCRAPS = st.sampled_from(
    re.split(
        r"\s*\|\s*",
        """I bought this for my son | as a gift for | looking for a | If you like | The sound was
        | great | soft folk songs | zindel | harp | Pack of 2 | and | , | . | ! | ; | {history}
        | [x] | "quoted | &amp; | <b> | I'm | we | our | my own | not | he loves it | to be | a
        | the | REALLY LOUD | :) | 5/5 | I | i | this album | (open | with great""",
    )
)
_REVIEWS = st.one_of(st.text(max_size=300), st.lists(_SCRAPS, max_size=40).map(" ".join))


@settings(deadline=None, max_examples=200)
@given(_REVIEWS)
def test_texts_of_any_review_are_short_one_line_paired_and_never_quote_the_title(review):
    found = intentions(review)
    assert len(found.vague) == len(found.second_vague) <= MAX_INTENTIONS
    assert bool(found.vague) or sum(found.rejected.values()) > 0
    for text in found.vague + found.second_vague:
        assert 0 < len(text) <= 160 and "\n" not in text and ";" not in text
        assert text == text.strip() and not text.endswith(".")
        assert not quotes_title(text, HARP)


class TestPreferences:
    HISTORY = (
        item(1, "Moon Harp", "Music, Harps, Lever Harps", "Fenwick"),
        item(2, "Star Harp", "Music, Harps, Lever Harps", "Fenwick"),
        item(3, "Oak Drum", "Music, Drums", "Brill"),
    )

    def test_three_texts_name_what_recurs_and_what_came_last(self):
        assert ExtractiveTeacher().preferences(self.HISTORY) == (
            "The user mostly chooses Harps, especially Lever Harps, often by Fenwick, "
            "most recently Drums, to judge by the 3 choices so far",
            "I mostly go for Harps, especially Lever Harps, I like what comes from Fenwick "
            "and lately I have turned to Drums",
            "mostly Harps, Lever Harps in particular, much of it by Fenwick, "
            "most recently Drums, to judge by 3 choices so far",
        )

    def test_no_history_gives_no_text(self):
        assert ExtractiveTeacher().preferences(()) == ()

    def test_one_item_is_said_to_be_all_that_is_known(self):
        texts = ExtractiveTeacher().preferences(self.HISTORY[2:])
        assert texts[0] == "The user has so far shown an interest in Drums and in nothing else yet"
        assert len(set(texts)) == 3

    def test_nothing_in_common_is_said_to_be_variety(self):
        (first, *_) = ExtractiveTeacher().preferences(self.HISTORY[1:])
        assert first.startswith("The user likes variety and has most recently chosen Drums and")

    def test_the_department_that_all_share_is_named_only_where_there_is_no_other(self):
        same = [item(n, title, "Gift Cards") for n, title in enumerate(("Ada", "Bob", "Cid"))]
        assert taste(*same).topic == "Gift Cards"
        assert taste(*self.HISTORY[:2]).topic == "Harps"
        assert taste(*self.HISTORY[1:]).topic == ""

    def test_titles_alone_show_platforms_and_series(self):
        found = taste(
            item(1, "Dwarf Quest II - Zbox Play - PlayStation 4"),
            item(2, "Dwarf Quest: The Mine - PlayStation 4"),
            item(3, "Other Thing"),
        )
        assert (found.platforms, found.terms) == (("PlayStation 4",), ("Dwarf Quest",))

    def test_one_everyday_word_in_two_titles_is_chance(self):
        assert not taste(item(1, "The Black Gate"), item(2, "Black Rain")).recurs

    def test_a_title_bought_twice_does_not_make_its_words_recur(self):
        assert taste(item(1, "Quorn Velt"), item(1, "Quorn Velt")).terms == ()

    def test_brands_are_written_as_one_says_them(self):
        items = [item(n, f"T{n}", "", brand) for n, brand in enumerate(("HARP,ANNA",) * 2)]
        assert taste(*items).brands == ("Anna Harp",)
        assert taste(item(1, "A1", "", "Various"), item(2, "B2", "", "Various")).brands == ()

    def test_another_item_of_the_same_number_is_not_taken_for_the_first(self):
        teacher = ExtractiveTeacher()
        first = teacher.preferences([item(1, "Moon", "Harps")])
        assert teacher.preferences([item(1, "Moon", "Drums")]) != first

    @settings(deadline=None)
    @given(
        st.lists(
            st.builds(
                item,
                st.integers(0, 9),
                st.text(max_size=90),
                st.lists(st.sampled_from(("Harps", "Drums;", "R&B", "x" * 90)), max_size=3).map(
                    ", ".join
                ),
                st.sampled_from(("", "Fenwick", "A,B", "y" * 70)),
            ),
            min_size=1,
            max_size=20,
        )
    )
    def test_texts_of_any_history_are_three_short_lines(self, history):
        texts = ExtractiveTeacher().preferences(history)
        assert len(set(texts)) == 3
        for text in texts:
            assert 0 < len(text) <= 200 and ";" not in text and not text.endswith(".")


def test_the_teacher_is_a_teacher_has_a_version_and_can_be_sent_to_workers():
    teacher: Teacher = ExtractiveTeacher()
    assert teacher.name == "extractive-1"
    history = TestPreferences.HISTORY
    assert copy.deepcopy(teacher).preferences(history) == teacher.preferences(history)


@pytest.mark.parametrize(
    ("text", "shifted"),
    [
        ("my son and I'm sure I was right", "their son and they are sure they were right"),
        ("for us, as we've said: 'I don't'", "for them, as they have said: 'they don't'"),
        ('a song of "My own" for me', 'a song of "My own" for them'),
        ("made in the US by MY brand", "made in the US by MY brand"),
        ("what am I to do with mine", "what are they to do with theirs"),
    ],
)
def test_the_user_becomes_they(text, shifted):
    assert third_person(text) == shifted


@pytest.mark.parametrize(
    ("text", "shifted"),
    [
        ("I love my harp", "The user loves their harp"),
        ("I have always wished for one", "The user has always wished for one"),
        ("I'm looking for mine", "The user is looking for theirs"),
        ("I really don't mind", "The user really doesn't mind"),
        ("I bought us two", "The user bought them two"),
        ("I would watch it", "The user would watch it"),
        ("I cried at my desk", "The user says they cried at their desk"),
        ("My son adores it", "Their son adores it"),
    ],
)
def test_a_verb_agrees_with_the_user(text, shifted):
    assert user_sentence(text) == shifted


def test_sentences_are_cut_where_a_blank_is_missing_but_not_at_initials():
    text = "It is soft.Octaves ring.  I saw Dr. Ott play Vol. 2 of R.Z.M. twice... twice :) im glad"
    assert sentences(text) == [
        "It is soft",
        "Octaves ring",
        "I saw Dr. Ott play Vol. 2 of R.Z.M. twice",
        "Twice",
        "I'm glad",
    ]


def test_a_phrase_ends_where_its_thought_ends():
    assert tidied("my son (he is 9), and he loved it") == "my son"
    assert tidied("a soft harp but it was late") == "a soft harp"
    assert tidied("my aunt who plays the") == "my aunt who plays"


@settings(deadline=None)
@given(st.text(), st.integers(5, 60))
def test_a_cut_text_is_short_and_a_prefix(text, limit):
    short = cut(text, limit)
    assert len(short) <= limit and text.startswith(short)


def test_denials_that_praise_are_no_complaint():
    assert complains("the sound is weak") and complains("I don't like it")
    assert not complains("you can't go wrong with it") and not complains("no hassle at all")


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("great gift for a boss", "a great gift for a boss"),
        ("great songs", "great songs"),
        ("good music for a boss", "good music for a boss"),
        ("the best gift", "the best gift"),
    ],
)
def test_a_thing_gets_the_article_it_lacks(phrase, said):
    assert with_article(phrase) == said
