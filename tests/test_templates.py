"""The 39 templates that are shipped: as many, and of the same cells, as the paper lists."""

import collections
import dataclasses
import string
import subprocess
import sys

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.instructions import task_modules
from instructrec_jax.instructions.language import Kind, Query, Slot, slots_of, variants
from instructrec_jax.instructions.render import Draw, render_record
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.tasks import mixtures, pairwise

TEMPLATES = {template.template_id: template for template in mixtures.TEMPLATES}
VARIANTS = list(variants(mixtures.TEMPLATES))
EVALUATED = {"A7", "A8", "A9", "A10", "A13", "B7", "B8", "B9", "C10", "C11", "C12", "C13"}
RECORD = InstructionRecord(
    example_id="u1:2",
    user_id="u1",
    position=2,
    history=("Chess", "Halo {target}"),
    preference=("loves puzzles", "likes quiet games"),
    vague_intention=("something for my aunt",),
    second_vague_intention=("a user wants a gift for an aunt",),
    specific_intention="Games, Puzzle",
    context="May 2011",
    target_id=4,
    target="Tetris",
    candidate_ids=(3, 4),
    candidates=("Pong; Deluxe", "Tetris"),
)
# The paper's labels (PAPER section 3), by query where it has one. Templates that turn the task
# around have none there.
CELLS = {
    "<P1,I0,T2>": "A1",
    "<P1,P2,I0,T2>": "A2 C1",
    "<P1,(P2),I0,T2>": "A4 A5 A6",
    "<P1,(P2),I0,T3>": "A7 A8 A9 A10 A13",
    "<P1,(P2),I0,T0>": "A11 A12",
    "<P2,I0,T2>": "A16 A17 B1.preference B4.preference",
    "<P0,I1,T2>": "B1.vague B4.vague",
    "<P0,I2,T2>": "B1.specific B2.specific B3.specific B4.specific",
    "<P2,I0,T3>": "B7.preference B8.preference B9.preference",
    "<P0,I1,T3>": "B7.vague B8.vague B9.vague",
    "<P0,I2,T3>": "B7.specific B8.specific B9.specific",
    "<P1,I1,T2>": "C2.vague C3.vague",
    "<P1,I2,T2>": "C4.specific",
    "<P1,P2,I0,T3>": "C10.preference C11.preference C12.preference C13.preference",
    "<P1,(P2),I1,T3>": "C10.vague C11.vague C12.vague C13.vague",
    "<P1,(P2),I2,T3>": "C10.specific C11.specific C12.specific C13.specific",
}


def test_there_are_39_in_three_families():
    sizes = collections.Counter(template.family for template in mixtures.TEMPLATES)
    assert sizes == {"sequential": 17, "product_search": 9, "personalized_search": 13}
    ids = [f"{letter}{n}" for letter, last in (("A", 17), ("B", 9), ("C", 13))
           for n in range(1, last + 1)]  # fmt: skip
    assert sorted(TEMPLATES) == sorted(ids)
    assert len(ids) == len(mixtures.TEMPLATES) == 39


def test_kinds_and_task_forms_are_as_many_as_the_papers():
    plain = [t.task_form.value for t in mixtures.TEMPLATES if t.kind is Kind.PLAIN]
    assert collections.Counter(plain) == {"T2": 15, "T3": 12, "T0": 2}
    kinds = collections.Counter(template.kind for template in mixtures.TEMPLATES)
    assert kinds[Kind.CHAIN_OF_THOUGHT] == len(mixtures.KINDS["chain_of_thought"]) == 1
    assert kinds[Kind.REVERSAL] == len(mixtures.KINDS["task_reversal"]) == 7
    assert kinds[Kind.RELATEDNESS] == len(mixtures.KINDS["relatedness"]) == 2


def test_every_plain_template_is_in_the_papers_cell():
    found = collections.defaultdict(set)
    for variant in VARIANTS:
        if variant.template.kind is Kind.PLAIN and variant.query is not Query.SECOND_VAGUE:
            found[variant.cell].add(variant.name)
    assert found == {cell: set(names.split()) for cell, names in CELLS.items()}


def test_the_evaluation_pool_is_the_papers_and_leaves_the_second_rendering_out():
    pool = {variant.name for variant in VARIANTS if variant.is_evaluated}
    assert {name.split(".")[0] for name in pool} == EVALUATED
    assert not any("second_vague" in name for name in pool)
    assert all(TEMPLATES[name].is_evaluated for name in EVALUATED)


def test_answers_are_what_the_paper_prints():
    taste, wish, path = "loves puzzles", "something for my aunt", "Games, Puzzle"
    expected = {
        "A11": "No",
        "A12": "No",
        "A3": f"The preference: {taste}. So the recommendation: Tetris",
        "A14": taste,
        "A15": taste,
        "B5.specific": path,
        "B6.specific": path,
        "C5.vague": wish,
        "C5.specific": path,
        "C6": taste,
        "C7.vague": "Chess; Halo {target}",
        "C7.preference": "Chess; Halo {target}",
        "C8.vague": f"Query: {wish}. Purchase: Tetris",
        "C8.specific": f"Query: {path}. Purchase: Tetris",
        "C9.vague": "Last: Chess; Halo {target}. Next: Tetris",
        "C9.preference": "Last: Chess; Halo {target}. Next: Tetris",
    }
    for variant in VARIANTS:
        if variant.query is not Query.SECOND_VAGUE:
            assert render_record(variant, RECORD)[1] == expected.get(variant.name, "Tetris")


def test_a_history_that_is_the_answer_holds_the_last_five_titles():
    record = dataclasses.replace(RECORD, history=tuple(f"T{n}" for n in range(9)))
    (variant,) = (v for v in VARIANTS if v.name == "C7.vague")
    assert render_record(variant, record)[1] == "T4; T5; T6; T7; T8"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_template_renders_all_of_its_slots(variant):
    inputs, targets = render_record(variant, RECORD, Draw(states_preference=True))
    shown = slots_of(variant.template.input_segments)
    required = variant.template.required_slots
    texts = {
        Slot.HISTORY: "Chess; Halo {target}",
        Slot.CANDIDATES: "Pong, Deluxe; Tetris",
        Slot.CONTEXT: "May 2011",
    }
    for slot, text in texts.items():
        assert (text in inputs) == (slot in shown), slot
    is_stated = Slot.PREFERENCE in shown and variant.query is not Query.PREFERENCE
    is_query = variant.query is Query.PREFERENCE and Slot.QUERY in shown
    assert inputs.count("loves puzzles") == is_stated + is_query
    wishes = {
        Query.VAGUE: "something for my aunt",
        Query.SECOND_VAGUE: "a user wants a gift for an aunt",
        Query.SPECIFIC: "Games, Puzzle",
    }
    for query, text in wishes.items():
        assert (text in inputs + targets) == (query is variant.query)
    assert inputs.strip() == inputs
    assert "  " not in inputs + targets
    assert not set("{}[]") & set(inputs.replace("{target}", "")), "nothing of the markup is left"
    assert required


def test_optional_clauses_go_without_a_trace():
    bare = dataclasses.replace(RECORD, preference=(), context="")
    for variant in VARIANTS:
        if not variant.needs & {"preference", "context"}:
            inputs, _ = render_record(variant, bare, Draw(states_preference=True))
            assert "  " not in inputs
            assert inputs.strip() == inputs
            assert "aste: ." not in inputs


def test_wordings_differ_and_keep_to_characters_that_t5_knows():
    known = set(string.ascii_letters + " .,:;?'-")
    wordings = [template.inputs for template in pairwise.TEMPLATES]
    assert len(set(wordings)) == len(wordings)
    for template in pairwise.TEMPLATES:
        for part in template.input_segments + template.target_segments:
            for leaf in getattr(part, "segments", (part,)):
                assert set(getattr(leaf, "text", "")) <= known, template.template_id


def test_the_pointwise_answer_tells_whether_the_candidate_is_the_target():
    (variant,) = (v for v in VARIANTS if v.name == "A11")
    assert "Pong, Deluxe" in render_record(variant, RECORD)[0]
    assert render_record(variant, RECORD)[1] == "No"
    assert render_record(variant, RECORD, Draw(candidate=1))[1] == "Yes"


def test_the_pairwise_extension_names_both_and_answers_with_the_target():
    assert pairwise.PAIRWISE.task_form is TaskForm.PAIRWISE
    (variant,) = variants([pairwise.PAIRWISE])
    for is_first, said in ((True, "Pong, Deluxe or Tetris?"), (False, "Tetris or Pong, Deluxe?")):
        inputs, targets = render_record(variant, RECORD, Draw(is_first=is_first))
        assert inputs.endswith(said)
        assert targets == "Tetris"


def test_each_step_of_the_ablation_adds_one_type_and_none_shows_the_vague_intention():
    steps = mixtures.ablation_steps()
    sizes = []
    for (name, members), earlier in zip(steps.items(), [(), *steps.values()], strict=False):
        assert set(earlier) < set(members), name
        assert all(variant.query is not Query.VAGUE for variant in members)
        sizes.append(len(members))
    assert len(sizes) == 5
    left_out = [variant for variant in VARIANTS if variant.query is Query.VAGUE]
    assert sizes[-1] + len(left_out) == len(VARIANTS)


def test_templates_are_listed_and_found_without_seqio_or_tensorflow():
    code = (
        "import sys\n"
        "from instructrec_jax.instructions.task_modules import find_variant, templates_of\n"
        "from instructrec_jax.stages.templates import templates\n"
        "assert len(templates_of('instructrec_jax.tasks.mixtures')) == len(templates()) == 39\n"
        "found = find_variant('instructrec_jax.tasks.mixtures', 'B7.specific')\n"
        "template = found.template\n"
        "assert (template.family, template.records) == ('product_search', 'product_search')\n"
        "heavy = {'jax', 'tensorflow', 'seqio'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (
            "instructrec_jax.tasks.mixtures",
            "B7",
            r"template B7 has a query: name one of B7\.preference, B7\.vague",
        ),
        (
            "instructrec_jax.tasks.mixtures",
            "Z1",
            r"unknown template \(of task module 'instructrec_jax\.tasks\.mixtures'\) 'Z1'",
        ),
        ("os", "A7", r"task module 'os' has no TEMPLATES"),
        (
            "instructrec_jax.tasks.nowhere",
            "A7",
            r"task module 'instructrec_jax\.tasks\.nowhere' cannot be imported",
        ),
        (
            "",
            "A7",
            r"task module '' is not a dotted name; expected .* 'instructrec_jax\.tasks\.mixtures'",
        ),
        ("..evil", "A7", "is not a dotted name"),
        ("../evil", "A7", "is not a dotted name"),
        ("tasks/mixtures.py", "A7", "is not a dotted name"),
    ],
)
def test_a_template_or_module_that_is_not_there_gets_one_message(module, name, message):
    with pytest.raises(UserError, match=message):
        task_modules.find_variant(module, name)
