"""The template language: what parses, what is refused, and the templates that are shipped."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import (
    LIST_SEPARATOR,
    Clause,
    Field,
    Kind,
    Literal,
    Query,
    Slot,
    Template,
    Variant,
    parse,
    plain_text,
    plain_title,
    unique_templates,
    variants,
)
from instructrec_jax.instructions.render import Draw, join_titles, render, render_record
from instructrec_jax.records import InstructionRecord, TaskForm

TITLES = st.text(alphabet="ab{}[];,: \n\t\x00\x85\u3000é漢\u0308", min_size=1, max_size=12)
RECORD = InstructionRecord(
    example_id="u1:2",
    user_id="u1",
    position=2,
    history=("Chess", "Halo {target}"),
    specific_intention="Games, Puzzle",
    target_id=4,
    target="Tetris",
    candidate_ids=(3, 4),
    candidates=("Pong; Deluxe", "Tetris"),
)


def make(**changes) -> Template:
    fields = {
        "template_id": "A1",
        "inputs": "After {history}?",
        "targets": "{target}",
        "task_form": TaskForm.MATCHING,
    }
    return Template(**{**fields, **changes})


def test_a_wording_becomes_literals_fields_and_clauses():
    assert parse("Seen {history}.[ Likes {preference}.]", template_id="X") == (
        Literal("Seen "),
        Field(Slot.HISTORY),
        Literal("."),
        Clause((Literal(" Likes "), Field(Slot.PREFERENCE), Literal("."))),
    )


def test_a_clause_appears_only_when_its_slot_has_text():
    segments = parse("a[ b {preference}]", template_id="X")
    assert render(segments, {Slot.PREFERENCE: "tea"}) == "a b tea"
    assert render(segments, {Slot.PREFERENCE: ""}) == "a"
    assert render(segments, {}) == "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "{histroy}"}, "unknown slot {histroy}"),
        ({"inputs": "{history"}, "no partner"),
        ({"inputs": "history}"}, "no partner"),
        ({"inputs": "[{preference}"}, "no partner"),
        ({"inputs": "[a [{preference}]]"}, "no partner"),
        ({"inputs": "{history}[ please]"}, "has no slot"),
        ({"targets": " "}, "no target"),
        ({"template_id": "A 1"}, "not a name"),
        ({"inputs": "{query}"}, "queries"),
        ({"queries": (Query.SPECIFIC,)}, "queries"),
        ({"task_form": TaskForm.RERANKING}, "{candidates}"),
        ({"task_form": TaskForm.POINTWISE}, "{candidate}"),
        ({"task_form": TaskForm.PAIRWISE}, "{first}"),
        ({"is_evaluated": True}, "evaluated"),
        ({"inputs": "{history} {target}"}, "gives the answer away"),
    ],
)
def test_a_template_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(UserError, match=message.replace("{", "[{]")) as caught:
        make(**changes)
    assert changes.get("template_id", "A1") in str(caught.value)


def test_a_reversal_may_show_the_target():
    template = make(
        inputs="{target}", targets="{query}", kind=Kind.REVERSAL, queries=(Query.SPECIFIC,)
    )
    assert template.required_slots == {Slot.TARGET, Slot.QUERY}
    assert not template.names_an_item


def test_two_templates_of_one_id_are_refused_with_file_and_id():
    with pytest.raises(UserError, match=r"my_tasks\.py.*'A1'"):
        unique_templates((make(),), (make(),), where="my_tasks.py")


@given(st.lists(TITLES, min_size=1, max_size=6))
def test_lists_of_any_titles_split_into_the_same_items(titles):
    assert join_titles(titles).split(LIST_SEPARATOR) == [plain_title(title) for title in titles]


@given(TITLES)
def test_plain_texts_are_one_line_and_stay_as_they_are(title):
    plain = plain_title(title)
    assert plain == plain_title(plain)
    assert plain_text(title) == plain_text(plain_text(title))
    assert not any(unicodedata_is_control(character) for character in plain)


def unicodedata_is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


@given(TITLES)
def test_nothing_in_a_title_changes_the_structure(title):
    record = dataclasses.replace(RECORD, history=(title,))
    segments = parse("<{history}|{target}>", template_id="X")
    inputs = render(segments, {Slot.HISTORY: join_titles(record.history), Slot.TARGET: "T"})
    assert inputs == f"<{plain_title(title)}|T>"


def test_the_cell_follows_from_the_slots():
    def cell(inputs, query=None, form=TaskForm.MATCHING):
        queries = () if query is None else (query,)
        return Variant(make(inputs=inputs, queries=queries, task_form=form), query).cell

    assert cell("{history}") == "<P1,I0,T2>"
    assert cell("{history}[ {preference}]") == "<P1,(P2),I0,T2>"
    assert cell("{preference}") == "<P2,I0,T2>"
    assert cell("{query}", Query.SPECIFIC) == "<P0,I2,T2>"
    assert cell("{query}", Query.PREFERENCE) == "<P2,I0,T2>"
    assert cell("{history} {query}[ {preference}]", Query.PREFERENCE) == "<P1,P2,I0,T2>"
    assert cell("{history} {query}[ {preference}]", Query.VAGUE) == "<P1,(P2),I1,T2>"
    assert cell("{query} {candidates}", Query.SECOND_VAGUE, TaskForm.RERANKING) == "<P0,I1,T3>"


def test_a_query_that_is_the_preference_silences_the_clause_that_repeats_it():
    template = make(inputs="{query}[ Taste: {preference}]", queries=(Query.PREFERENCE, Query.VAGUE))
    record = dataclasses.replace(RECORD, preference=("tea",), vague_intention=("a cup",))
    draw = Draw(states_preference=True)
    said = [render_record(variant, record, draw)[0] for variant in variants([template])]
    assert said == ["tea", "a cup Taste: tea"]


def test_needs_are_the_fields_of_required_slots():
    template = make(
        inputs="{history} {query}[ {preference}][ {context}]", queries=(Query.SECOND_VAGUE,)
    )
    (variant,) = variants([template])
    assert variant.needs == {"history", "second_vague_intention"}
    reversal = make(targets="{preference}")
    assert Variant(reversal).needs == {"history", "preference"}


def test_several_texts_are_drawn_from():
    (variant,) = variants([make(inputs="{preference}")])
    record = dataclasses.replace(RECORD, preference=("tea", "jam"))
    said = [render_record(variant, record, Draw(text=number))[0] for number in range(3)]
    assert said == ["tea", "jam", "tea"]
