"""Renders a template with a record, in plain Python; `token_budget` turns the text into tokens.

Training renders in TensorFlow from the same parsed segments (`pipeline.rendering`), to the same
bytes. Here is also the neutral instruction, which tells nothing of the user: PMI compares with it.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence

from instructrec_jax.instructions.language import (
    LIST_SEPARATOR,
    QUERY_FIELDS,
    Clause,
    Literal,
    Query,
    Segments,
    Slot,
    Template,
    Variant,
    plain_text,
    plain_title,
    slots_of,
)
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.seeds import stable_seed

YES, NO = "Yes", "No"
# Titles of a history that is the answer: the last ones (PAPER section 7, reading 17).
NUM_ANSWER_TITLES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """What is left to choose when a record is rendered.

    Attributes:
      candidate: index of the candidate that a pointwise or pairwise template asks about.
      is_first: whether a pairwise template names that candidate first.
      text: which of the teacher's texts fills a slot, counted around.
      states_preference: whether the optional clause with the preference appears.
    """

    candidate: int = 0
    is_first: bool = False
    text: int = 0
    states_preference: bool = False


EVALUATION = Draw()


def training_draw(variant: Variant, record: InstructionRecord) -> Draw:
    """Returns one of the draws that training may make for a record, the same at every call."""
    draw = random.Random(stable_seed("draw", variant.name, record.example_id))
    names_a_pair = Slot.FIRST in variant.template.required_slots
    asks_for_target = draw.random() < 0.5 and not names_a_pair
    indices = range(len(record.candidates))
    fitting = [
        index
        for index in indices
        if (record.candidate_ids[index] == record.target_id) == asks_for_target
    ]
    return Draw(
        candidate=draw.choice(fitting or indices),
        is_first=draw.random() < 0.5,
        text=draw.randrange(2**31),
        states_preference=draw.random() < 0.5,
    )


_NEUTRAL = Template(
    template_id="prior",
    inputs="Name one of these items: {candidates}.",
    targets="{target}",
    task_form=TaskForm.RERANKING,
)
_NEUTRAL_WITHOUT_CANDIDATES = Template(
    template_id="prior_without_candidates",
    inputs="Name an item.",
    targets="{target}",
    task_form=TaskForm.MATCHING,
)


def prior_of(variant: Variant) -> Variant:
    """Returns the neutral instruction for a template whose answer is an item.

    It shows the candidates where the template does, so that what is left of a title's
    log-likelihood comes from preference, history and intention. It is none of the paper's 39.
    """
    return Variant(_NEUTRAL if shows_candidates(variant) else _NEUTRAL_WITHOUT_CANDIDATES)


def shows_candidates(variant: Variant) -> bool:
    """Returns whether the instruction holds the list of candidates."""
    return Slot.CANDIDATES in slots_of(variant.template.input_segments)


def wording_hash(variants: Iterable[Variant]) -> str:
    """Returns the sha256 of what prompts say, and of what they take for their query."""
    parts = [
        part
        for variant in variants
        for part in (variant.template.inputs, variant.template.targets, variant.query or "")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def render(segments: Segments, values: Mapping[Slot, str]) -> str:
    """Fills the slots of a parsed wording.

    Args:
      segments: the parsed wording.
      values: text of each slot; a slot that is missing counts as empty.

    Returns:
      The text, in which a clause appears only if all its slots have text.
    """
    parts = []
    for segment in segments:
        if isinstance(segment, Literal):
            parts.append(segment.text)
        elif isinstance(segment, Clause):
            if all(values.get(slot) for slot in segment.slots):
                parts.append(render(segment.segments, values))
        else:
            parts.append(values.get(segment.slot, ""))
    return "".join(parts)


def join_titles(titles: Iterable[str]) -> str:
    """Returns the titles as one list, which splits at `LIST_SEPARATOR` into the same items."""
    return LIST_SEPARATOR.join(plain_title(title) for title in titles)


def slot_values(
    variant: Variant, record: InstructionRecord, draw: Draw = EVALUATION
) -> dict[Slot, str]:
    """Returns the text of every slot for one record.

    Args:
      variant: decides what the query is.
      record: what is known of the example.
      draw: what is left to choose.
    """
    is_required = Slot.PREFERENCE in variant.template.required_slots
    states = is_required or (draw.states_preference and variant.may_state_preference)
    asked, target = plain_title(record.candidates[draw.candidate]), plain_title(record.target)
    first, second = (asked, target) if draw.is_first else (target, asked)
    is_target = record.candidate_ids[draw.candidate] == record.target_id
    return {
        Slot.HISTORY: join_titles(record.history),
        Slot.CANDIDATES: join_titles(record.candidates),
        Slot.CANDIDATE: asked,
        Slot.FIRST: first,
        Slot.SECOND: second,
        Slot.QUERY: _query_text(variant.query, record, draw),
        Slot.PREFERENCE: _one_of(record.preference, draw) if states else "",
        Slot.CONTEXT: plain_text(record.context),
        Slot.TARGET: target,
        Slot.ANSWER: YES if is_target else NO,
    }


def render_record(
    variant: Variant, record: InstructionRecord, draw: Draw = EVALUATION
) -> tuple[str, str]:
    """Returns the instruction and its answer for one record; arguments as in `slot_values`."""
    values = slot_values(variant, record, draw)
    answer = {**values, Slot.HISTORY: join_titles(record.history[-NUM_ANSWER_TITLES:])}
    template = variant.template
    return render(template.input_segments, values), render(template.target_segments, answer)


def _query_text(query: Query | None, record: InstructionRecord, draw: Draw) -> str:
    """Returns a text of the aspect that the query slot takes, or ""."""
    if query is None:
        return ""
    text = getattr(record, QUERY_FIELDS[query])
    return plain_text(text) if isinstance(text, str) else _one_of(text, draw)


def _one_of(texts: Sequence[str], draw: Draw) -> str:
    """Returns the drawn one of several texts, "" if there is none."""
    return plain_text(texts[draw.text % len(texts)]) if texts else ""
