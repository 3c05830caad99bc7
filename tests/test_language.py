"""The template language: what parses, what is refused, and the templates that are shipped."""

import dataclasses
import string

import pytest
from hypothesis import given, settings
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
    parse,
    plain_text,
    plain_title,
    unique_templates,
    variants,
)
from instructrec_jax.instructions.render import join_titles, render, render_record
from instructrec_jax.records import InstructionRecord, Intention, Preference, TaskForm
from tasks import mixtures, personalized_search, product_search, sequential

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
        "preference": Preference.IMPLICIT,
        "intention": Intention.NONE,
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


@settings(deadline=None)
@given(st.lists(TITLES, min_size=1, max_size=6))
def test_lists_of_any_titles_split_into_the_same_items(titles):
    assert join_titles(titles).split(LIST_SEPARATOR) == [plain_title(title) for title in titles]


@settings(deadline=None)
@given(TITLES)
def test_plain_texts_are_one_line_and_stay_as_they_are(title):
    plain = plain_title(title)
    assert plain == plain_title(plain)
    assert plain_text(title) == plain_text(plain_text(title))
    assert not any(unicodedata_is_control(character) for character in plain)


def unicodedata_is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


@settings(deadline=None)
@given(TITLES)
def test_nothing_in_a_title_changes_the_structure(title):
    record = dataclasses.replace(RECORD, history=(title,))
    segments = parse("<{history}|{target}>", template_id="X")
    inputs = render(segments, {Slot.HISTORY: join_titles(record.history), Slot.TARGET: "T"})
    assert inputs == f"<{plain_title(title)}|T>"


def test_the_families_of_this_stage_are_complete():
    families = {
        sequential: ["A1", *(f"A{n}" for n in range(4, 14))],
        product_search: ["B2", "B3", *(f"B{n}" for n in range(5, 10))],
        personalized_search: ["C4", "C5", "C10", "C11", "C12", "C13"],
    }
    for module, ids in families.items():
        assert [template.template_id for template in module.TEMPLATES] == ids
    evaluated = {t.template_id for t in mixtures.TEMPLATES if t.is_evaluated}
    assert evaluated == {"A7", "A8", "A9", "A10", "A13", "B7", "B8", "B9"} | {
        "C10", "C11", "C12", "C13",
    }  # fmt: skip


def test_every_cell_of_the_paper_is_as_listed():
    cells = {t.template_id: (t.preference.value, t.task_form.value) for t in mixtures.TEMPLATES}
    for template_id, (preference, form) in cells.items():
        assert preference == ("P0" if template_id.startswith("B") else "P1")
        if template_id in ("A11", "A12"):
            assert form == "T0"
        else:
            evaluated = next(t for t in mixtures.TEMPLATES if t.template_id == template_id)
            assert form == ("T3" if evaluated.is_evaluated else "T2")


@pytest.mark.parametrize("variant", list(variants(mixtures.TEMPLATES)), ids=lambda v: v.name)
def test_every_template_renders_all_of_its_slots(variant):
    inputs, targets = render_record(variant, RECORD)
    slots = variant.template.required_slots
    said = inputs + " => " + targets
    assert ("Chess; Halo {target}" in inputs) == (Slot.HISTORY in slots)
    assert ("Pong, Deluxe; Tetris" in inputs) == (Slot.CANDIDATES in slots)
    assert ("Games, Puzzle" in said) == (Slot.QUERY in slots)
    assert targets in ("Tetris", "Games, Puzzle", "No")
    assert "preference" not in said


def test_the_preference_clause_is_written_into_the_sequential_templates():
    with_taste = dataclasses.replace(RECORD, preference=("loves puzzles",))
    droppable = {
        v.template.template_id
        for v in variants(mixtures.TEMPLATES)
        if "loves puzzles" in render_record(v, with_taste, preference=0)[0]
    }
    assert droppable == {f"A{n}" for n in range(4, 14)} | {"C10", "C11", "C12", "C13"}


def test_wordings_differ_and_keep_to_characters_that_t5_knows():
    known = set(string.ascii_letters + " .,:;?'-")
    wordings = [template.inputs for template in mixtures.TEMPLATES]
    assert len(set(wordings)) == len(wordings)
    for template in mixtures.TEMPLATES:
        for part in template.input_segments + template.target_segments:
            for leaf in getattr(part, "segments", (part,)):
                assert set(getattr(leaf, "text", "")) <= known, template.template_id


def test_the_pointwise_answer_tells_whether_the_candidate_is_the_target():
    (variant,) = (v for v in variants(mixtures.TEMPLATES) if v.name == "A11")
    assert "Pong, Deluxe" in render_record(variant, RECORD, candidate=0)[0]
    assert render_record(variant, RECORD, candidate=0)[1] == "No"
    assert render_record(variant, RECORD, candidate=1)[1] == "Yes"
