"""What is wrong with templates, found without any data.

Declaring a template already refuses what contradicts itself (`language.Template`); this finds what
reads badly or trains on nothing.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Iterable, Iterator

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import (
    Clause,
    Field,
    Literal,
    Segments,
    Slot,
    Template,
    Variant,
    slots_of,
    variants,
)
from instructrec_jax.instructions.render import Draw, render_record
from instructrec_jax.records import InstructionRecord, TaskForm

# Slots that a record can be without: no other belongs into a clause that may be left out.
_OPTIONAL = frozenset({Slot.PREFERENCE, Slot.CONTEXT, Slot.HISTORY, Slot.QUERY})
_ANSWERS = {TaskForm.POINTWISE: Slot.ANSWER}
_NO_LETTERS = re.compile(r"[\W_]+")
_TRACE = re.compile(r" {2,}|^ | $| [.,;:?!)]|[({] |[.,;:?!][.,;:]|:\s*$|\n")
# Every text tells its slot, and none of them could be part of a wording.
_RECORD = InstructionRecord(
    example_id="lint:1",
    user_id="lint",
    position=1,
    history=("Xhistory1", "Xhistory2"),
    preference=("Xpreference",),
    vague_intention=("Xvague",),
    second_vague_intention=("Xsecond",),
    specific_intention="Xspecific",
    context="Xcontext",
    target_id=1,
    target="Xtarget",
    candidate_ids=(0, 1),
    candidates=("Xnegative", "Xtarget"),
)


class Severity(enum.StrEnum):
    """How bad a finding is: an error fails the check, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found.

    Attributes:
      severity: whether it fails the check.
      subject: a template's id, a task's name or a part of the dataset.
      message: what is wrong, and what to do about it.
    """

    severity: Severity
    subject: str
    message: str


def lint_templates(
    templates: Iterable[Template], *, is_known: Callable[[str], bool]
) -> list[Finding]:
    """Returns what is wrong with templates, in their order.

    Args:
      templates: all templates of a module of tasks.
      is_known: whether a vocabulary writes a text without the unknown token.
    """
    templates = list(templates)
    findings = list(_duplicates(templates))
    for template in templates:
        for check in (_slot_findings, _clause_findings, _reading_findings):
            findings += check(template)
        if unknown := _unknown_characters(template, is_known):
            spelt = " ".join(map(repr, unknown))
            findings.append(
                _warning(
                    template,
                    f"the vocabulary has no token for {spelt} of its wording; use other characters",
                )
            )
    return list(dict.fromkeys(findings))  # the variants of a template share its faults


def normalised(wording: str) -> str:
    """Returns a wording by which two that differ in case, blanks or punctuation alone are equal.

    Example: `"Pick one:  {history}!"` becomes `"pick one history"`.
    """
    return _NO_LETTERS.sub(" ", wording).strip().lower()


def _duplicates(templates: Iterable[Template]) -> Iterator[Finding]:
    """Yields a finding for every template that says what an earlier one says."""
    first: dict[tuple[str, str], str] = {}
    for template in templates:
        wording = (normalised(template.inputs), normalised(template.targets))
        earlier = first.setdefault(wording, template.template_id)
        if earlier != template.template_id:
            yield _error(template, f"its wording is that of {earlier}; reword one of the two")


def _slot_findings(template: Template) -> Iterator[Finding]:
    """Yields what is wrong with where a template's slots stand."""
    asked, answered = slots_of(template.input_segments), slots_of(template.target_segments)
    if not asked:
        yield _error(template, "`inputs` has no slot: it asks the same of every record")
    if not answered:
        yield _error(template, "`targets` has no slot: its answer is the same for every record")
    for slot in sorted(asked & answered):
        if slot is not Slot.HISTORY:  # an answer with the last titles of what is shown is a task
            yield _error(template, f"the slot {{{slot}}} of `targets` is given away in `inputs`")
    expected = _ANSWERS.get(template.task_form)
    if (expected is Slot.ANSWER) != (Slot.ANSWER in answered):
        yield _error(
            template, "the slot {answer} and the pointwise task form go together, never alone"
        )
    if template.is_evaluated and not template.names_an_item:
        yield _error(
            template, "it is evaluated, so its answer must be {target} alone: candidates are ranked"
        )
    for name, segments in (
        ("inputs", template.input_segments),
        ("targets", template.target_segments),
    ):
        fields = [part.slot for part in _leaves(segments) if isinstance(part, Field)]
        for slot in sorted({slot for slot in fields if fields.count(slot) > 1}):
            yield _warning(template, f"the slot {{{slot}}} stands more than once in `{name}`")


def _clause_findings(template: Template) -> Iterator[Finding]:
    """Yields what is wrong with a template's optional clauses."""
    if any(isinstance(part, Clause) for part in template.target_segments):
        yield _warning(template, "an optional clause in `targets` makes its answer uncertain")
    for part in template.input_segments:
        if isinstance(part, Clause) and not _OPTIONAL & set(part.slots):
            slots = ", ".join(f"{{{slot}}}" for slot in part.slots)
            yield _warning(
                template, f"its clause with {slots} is never left out; drop the brackets"
            )


def _reading_findings(template: Template) -> Iterator[Finding]:
    """Yields what is wrong with the texts that a template gives."""
    parts = template.input_segments + template.target_segments
    has_clauses = any(isinstance(part, Clause) for part in parts)
    for variant in variants([template]):
        if not has_clauses:
            yield from _rendering_findings(variant, _RECORD, "")
            continue
        is_required = "preference" in variant.needs
        bare = dataclasses.replace(
            _RECORD, context="", preference=_RECORD.preference if is_required else ()
        )
        yield from _rendering_findings(variant, _RECORD, " with its clauses")
        yield from _rendering_findings(variant, bare, " without its clauses")


def _rendering_findings(
    variant: Variant, record: InstructionRecord, state: str
) -> Iterator[Finding]:
    """Yields what is wrong with one rendering.

    Args:
      variant: what to render.
      record: what with.
      state: whether clauses appear, in words.
    """
    try:
        texts = render_record(variant, record, Draw(states_preference=True))
    except (UserError, LookupError, TypeError, ValueError) as error:
        yield _error(variant.template, f"it cannot be rendered: {error}")
        return
    for name, text in zip(("inputs", "targets"), texts, strict=True):
        if not text.strip():
            yield _error(variant.template, f"its `{name}` are empty{state}")
        elif trace := _TRACE.search(text):
            around = text[max(0, trace.start() - 12) : trace.end() + 12]
            yield _warning(variant.template, f"its `{name}` read badly{state}, at {around!r}")


def _unknown_characters(template: Template, is_known: Callable[[str], bool]) -> list[str]:
    """Returns the characters of a template's fixed texts that the vocabulary cannot write."""
    fixed = {
        part.text
        for part in _leaves(template.input_segments + template.target_segments)
        if isinstance(part, Literal)
    }
    return sorted(
        {
            character
            for text in fixed
            if not is_known(text)
            for character in text
            if not is_known(character)
        }
    )


def _leaves(segments: Segments) -> Iterator[Literal | Field]:
    """Yields literals and fields, those of clauses too."""
    for part in segments:
        if isinstance(part, Clause):
            yield from part.segments
        else:
            yield part


def _error(template: Template, message: str) -> Finding:
    return Finding(severity=Severity.ERROR, subject=template.template_id, message=message)


def _warning(template: Template, message: str) -> Finding:
    return Finding(severity=Severity.WARNING, subject=template.template_id, message=message)
