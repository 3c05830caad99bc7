"""The offline teacher: preferences from a history, intentions from a review."""

import copy
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec_jax.data.titles import category_path
from instructrec_jax.instructions.leaks import quotes_title
from instructrec_jax.records import Item
from instructrec_jax.teacher.extractive import MAX_INTENTIONS, ExtractiveTeacher
from instructrec_jax.teacher.extractive.intentions import complains, sentences
from instructrec_jax.teacher.texts import Teacher

HARP = "Zindel Harp, Pack of 2"


def item(number: int, title: str, category: str = "", brand: str = "") -> Item:
    return Item(item_id=number, raw_id=f"r{number}", title=title, category=category, brand=brand)


def intentions(review: str, title: str = HARP, brand: str = ""):
    return ExtractiveTeacher().intentions(review, item(0, title, brand=brand))


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
                "We were looking for a quiet drum for our flat.",
                "I am looking for a quiet drum for our flat",
                "The user is looking for a quiet drum for their flat",
            ),
            (
                "I needed an easy harp to teach to my class. It came late.",
                "I want an easy harp to teach to my class",
                "The user wants an easy harp to teach to their class",
            ),
            (
                "Given as a gift.",
                "I am looking for a gift",
                "The user is looking for a gift",
            ),
            (
                "A lovely birthday present for my mom.",
                "I am looking for a lovely birthday present for my mom",
                "The user is looking for a lovely birthday present for their mom",
            ),
            (
                "If you like smooth jazz, this one is for you.",
                "I like smooth jazz",
                "The user likes smooth jazz",
            ),
            (
                "My daughter loves it.",
                "I want something that my daughter would love",
                "The user wants something that their daughter would love",
            ),
            (
                "It has a really warm sound and a loud case.",
                "I would like something with a warm sound",
                "The user would like something with a warm sound",
            ),
            (
                "The vocals were so warm and clear in every room.",
                "I would like something where the vocals are warm and clear",
                "The user would like something where the vocals are warm and clear",
            ),
            (
                "One of the best folk albums of that year.",
                "I am looking for a folk album",
                "The user is looking for a folk album",
            ),
            (
                "It left my hair soft and shiny.",
                "I want something that leaves my hair soft and shiny",
                "The user wants something that leaves their hair soft and shiny",
            ),
            (
                "Super comfortable and light.",
                "I want something that is comfortable and light",
                "The user wants something that is comfortable and light",
            ),
        ],
    )
    def test_an_intention_is_said_as_one_would_ask_for_it_in_both_voices(
        self, review, first, third
    ):
        found = intentions(review)
        assert found.vague[0] == first
        assert found.second_vague[0] == third

    def test_an_own_need_comes_before_a_liking_and_that_before_a_description(self):
        review = (
            "It has a great deep sound. If you like jazz, get it. "
            "I was looking for a small instrument."
        )
        assert intentions(review).vague == ("I am looking for a small instrument", "I like jazz")

    def test_a_text_that_gives_title_or_brand_away_is_left_out_and_counted(self):
        review = "I was looking for a zindel harp. I bought it for my mother."
        found = intentions(review)
        assert found.vague == ("I want something for my mother",)
        assert found.rejected == {"quotes_title": 1}
        found = intentions("I needed a small fenwick for the road", brand="Fenwick")
        assert found.vague == ()
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
            ("It stood beside the window all winter long", "no_intention"),
            ("I needed a good zindel harp", "quotes_title"),
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
            "This is a very flimsy shoe with little support.",
            "I was looking for what people say is a harp.",
            "My son loved it until the strings broke.",
            "My sister bought this harp for me as a birthday gift.",
            "I received this as a gift.",
            "They have a reputation for soft leather.",
            "Maybe it is soft and comfortable.",
            "I love this whole thing.",
            "It is a great price and fast shipping.",
            "I enjoyed the rapid delivery of my order.",
            "A great addition to my collection of these.",
        ],
    )
    def test_complaints_the_shop_and_the_item_itself_are_no_intention(self, review):
        assert intentions(review).vague == ()

    def test_markup_entities_and_shouting_are_cleaned(self):
        found = intentions("I GOT IT FOR MY SON, &AMP; HE IS GLAD<br />")
        assert found.vague == ("I want something for my son",)

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


@settings(max_examples=200)
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

    def first(self, *items: Item) -> str:
        return ExtractiveTeacher().preferences(items)[0]

    def test_three_texts_name_what_recurs_and_what_came_last(self):
        assert ExtractiveTeacher().preferences(self.HISTORY) == (
            "The user mostly chooses Harps, especially Lever Harps, often by Fenwick, "
            "most recently Drums",
            "I mostly go for Harps, especially Lever Harps, I like what comes from Fenwick "
            "and last I chose Drums",
            "mostly Harps, Lever Harps in particular, much of it by Fenwick, most recently Drums",
        )

    def test_no_history_gives_no_text(self):
        assert ExtractiveTeacher().preferences(()) == ()

    def test_where_nothing_recurs_only_what_was_chosen_is_said(self):
        assert self.first(*self.HISTORY[2:]) == "So far the user has chosen Drums"
        assert self.first(*self.HISTORY[1:]) == "So far the user has chosen Drums and Lever Harps"
        texts = ExtractiveTeacher().preferences(self.HISTORY[2:])
        assert len(set(texts)) == 3

    def test_the_department_that_all_share_is_named_only_where_there_is_no_other(self):
        same = [item(n, title, "Gift Cards") for n, title in enumerate(("Ada", "Bob", "Cid"))]
        assert self.first(*same).startswith("The user nearly always chooses Gift Cards")
        assert self.first(*self.HISTORY[:2]).startswith("The user nearly always chooses Harps")

    def test_titles_alone_show_platforms_and_series(self):
        assert self.first(
            item(1, "Dwarf Quest II - Zbox Play - Playstation 4"),
            item(2, "Dwarf Quest: The Mine - PlayStation 4"),
            item(3, "Other Thing"),
        ) == (
            "The user has chosen 3 things, often for PlayStation 4, "
            "with a liking for titles with Dwarf Quest"
        )

    def test_one_everyday_word_in_two_titles_is_chance(self):
        assert "liking" not in self.first(item(1, "The Black Gate"), item(2, "Black Rain"))

    def test_a_title_chosen_twice_is_counted_twice(self):
        found = self.first(item(1, "Quorn Velt"), item(1, "Quorn Velt"), item(2, "Oak Drum"))
        assert found == "The user has chosen 3 things, with a liking for titles with Quorn Velt"

    def test_an_artist_of_half_of_the_history_is_a_favourite(self):
        others = [item(n, f"T{n}", f"Music, Kind {n}", f"Maker {n}") for n in range(10)]
        own = [item(10 + n, f"Own {n}", "Music, Harps", "Fenwick") for n in range(9)]
        assert "often by Fenwick" in self.first(*others, *own)

    def test_what_two_of_many_share_is_no_taste(self):
        many = [item(n, f"T{n}", f"Music, Kind {n}", f"Maker {n}") for n in range(18)]
        same = [item(20 + n, f"Own {n}", "Music, Harps", "Fenwick") for n in range(2)]
        assert "Fenwick" not in self.first(*same, *many)

    def test_a_category_with_a_comma_in_it_stays_whole(self):
        path = category_path(["Books", "Science, Tides & Nature"])
        found = self.first(*(item(n, title, path) for n, title in enumerate(("Ada", "Bob"))))
        assert found.startswith("The user nearly always chooses Science, Tides & Nature")

    def test_brands_are_written_as_one_says_them(self):
        items = [item(n, f"T{n}", "", brand) for n, brand in enumerate(("HARP,ANNA",) * 2)]
        assert "often by Anna Harp" in self.first(*items)
        assert "by" not in self.first(item(1, "A1", "", "Various"), item(2, "B2", "", "Various"))

    def test_another_item_of_the_same_number_is_not_taken_for_the_first(self):
        assert self.first(item(1, "Moon", "Harps")) != self.first(item(1, "Moon", "Drums"))

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
    assert teacher.name == "extractive-3"
    history = TestPreferences.HISTORY
    assert copy.deepcopy(teacher).preferences(history) == teacher.preferences(history)


def test_sentences_are_cut_where_a_blank_is_missing_but_not_at_titles_of_persons():
    text = "It is soft.Octaves ring.  I saw Dr. Ott play in R.Z.M. twice... twice :) i am glad"
    assert sentences(text) == [
        "It is soft",
        "Octaves ring",
        "I saw Dr. Ott play in R.Z.M. twice",
        "twice",
        "I am glad",
    ]


def test_a_text_that_denies_or_blames_complains():
    assert complains("the sound is weak") and complains("I don't like it")
    assert not complains("the sound is warm")
