"""The static check of templates, and the list of them."""

import dataclasses

import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Kind, Query, Template
from instructrec_jax.instructions.lint import Severity, lint_templates, normalised
from instructrec_jax.records import TaskForm
from instructrec_jax.tasks import pairwise

PLAIN = Template(
    template_id="A1",
    inputs="After {history}, what comes next?",
    targets="{target}",
    task_form=TaskForm.MATCHING,
)


def findings(*templates: Template, unknown: str = "") -> list[tuple[str, str, str]]:
    found = lint_templates(templates, is_known=lambda text: not set(text) & set(unknown))
    return [(finding.severity.value, finding.subject, finding.message) for finding in found]


def make(**changes) -> Template:
    return dataclasses.replace(PLAIN, **changes)


def test_the_shipped_templates_have_no_fault():
    assert findings(*pairwise.TEMPLATES) == []


@pytest.mark.parametrize(
    ("changes", "severity", "message"),
    [
        ({"inputs": "What comes next?"}, "error", "`inputs` has no slot"),
        ({"targets": "Tea"}, "error", "`targets` has no slot"),
        (
            {"inputs": "{history} {query}", "targets": "{query}", "queries": (Query.VAGUE,)},
            "error",
            "{query} of `targets` is given away",
        ),
        ({"targets": "{answer}"}, "error", "go together"),
        (
            {"inputs": "{candidate}?", "task_form": TaskForm.POINTWISE},
            "error",
            "go together",
        ),
        (
            {
                "inputs": "{history}: {candidates}?",
                "targets": "It is {target}",
                "task_form": TaskForm.RERANKING,
                "is_evaluated": True,
            },
            "error",
            "must be {target} alone",
        ),
        ({"inputs": "{history} and {history}."}, "warning", "more than once in `inputs`"),
        ({"targets": "{target}[ for {preference}]"}, "warning", "clause in `targets`"),
        ({"inputs": "{history}.[ Or {candidate}?]"}, "warning", "never left out"),
        ({"inputs": "{history} [{preference}] and now?"}, "warning", "read badly without"),
        ({"inputs": "{history}.[  Likes {preference}.] Next?"}, "warning", "read badly with its"),
        ({"inputs": "After {history} ."}, "warning", "read badly, at"),
    ],
)
def test_a_fault_is_named_with_its_template(changes, severity, message):
    found = findings(make(**changes))
    assert [(level, where) for level, where, text in found if message in text] == [(severity, "A1")]


def test_wordings_that_differ_in_case_and_punctuation_alone_are_one():
    other = make(template_id="A2", inputs="after {history}: what comes NEXT")
    ((severity, subject, message),) = findings(PLAIN, other)
    assert (severity, subject) == ("error", "A2")
    assert "that of A1" in message
    assert (
        findings(PLAIN, make(template_id="A2", inputs="Following {history}, what is next?")) == []
    )
    assert normalised("Pick one:  {history}!") == "pick one history"


def test_the_same_question_with_another_answer_is_no_repetition():
    other = make(template_id="A2", targets="{preference}", kind=Kind.REVERSAL)
    assert findings(PLAIN, other) == []


def test_characters_outside_the_vocabulary_are_listed_once_each():
    ((severity, subject, message),) = findings(
        make(inputs="After {history}~~ what; next?"), unknown="~;"
    )
    assert (severity, subject) == (Severity.WARNING.value, "A1")
    assert "';' '~'" in message


def test_a_fault_of_every_variant_is_told_once():
    template = make(inputs="{query}  please", queries=(Query.VAGUE, Query.SPECIFIC))
    found = findings(template)
    assert len(found) == len(set(found))


def test_every_template_has_a_line_in_order():
    from instructrec_jax.stages.templates import as_text, templates

    lines = templates(task_module="instructrec_jax.tasks.mixtures")
    ids = [line.template.template_id for line in lines]
    expected = [
        f"{c}{n}" for c, last in (("A", 17), ("B", 9), ("C", 13)) for n in range(1, last + 1)
    ]
    assert ids == expected
    header, _, *shown = as_text(lines).splitlines()
    assert [line.split()[0] for line in shown if line[0] != " "] == expected
    place = header.index("| kind")
    assert all(line[place : place + 2] == "| " and len(line) <= 100 for line in shown)
    by_id = {line.template.template_id: line for line in lines}
    assert by_id["A13"].columns == (*("A13", "<P1,(P2),I0,T3>", "plain", "sequential", "yes", ""),)
    assert by_id["B7"].cells == ("<P2,I0,T3>", "<P0,I1/I2,T3>")
    assert by_id["B7"].columns[-1] == "preference vague second_vague specific"
    assert by_id["A3"].columns[2] == "chain of thought"


def test_another_module_lists_what_it_adds():
    from instructrec_jax.stages.templates import templates

    assert templates(task_module="instructrec_jax.tasks.pairwise")[-1].template.family == "pairwise"
    with pytest.raises(UserError, match=r"'instructrec_jax\.tasks\.none' cannot be imported"):
        templates(task_module="instructrec_jax.tasks.none")
