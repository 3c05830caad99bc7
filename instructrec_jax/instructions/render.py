"""Renders a template with a record, in plain Python.

The pipeline renders in TensorFlow from the same parsed segments; this is its oracle, and what
`inspect` and requests from files use.
"""

from collections.abc import Iterable, Mapping

from instructrec_jax.instructions.language import (
    LIST_SEPARATOR,
    Clause,
    Literal,
    Query,
    Segments,
    Slot,
    Variant,
    plain_text,
    plain_title,
)
from instructrec_jax.records import InstructionRecord

YES, NO = "Yes", "No"


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
    variant: Variant, record: InstructionRecord, *, candidate: int = 0, preference: int = -1
) -> dict[Slot, str]:
    """Returns the text of every slot for one record.

    Args:
      variant: decides what the query is.
      record: what is known of the example.
      candidate: place of the candidate that a pointwise template asks about.
      preference: which of the record's preference texts fills `{preference}`; -1 for none.
    """
    is_target = record.candidate_ids[candidate] == record.target_id
    return {
        Slot.HISTORY: join_titles(record.history),
        Slot.CANDIDATES: join_titles(record.candidates),
        Slot.CANDIDATE: plain_title(record.candidates[candidate]),
        Slot.QUERY: _query_text(variant.query, record),
        Slot.PREFERENCE: plain_text(record.preference[preference]) if preference >= 0 else "",
        Slot.TARGET: plain_title(record.target),
        Slot.ANSWER: YES if is_target else NO,
    }


def render_record(
    variant: Variant, record: InstructionRecord, *, candidate: int = 0, preference: int = -1
) -> tuple[str, str]:
    """Returns the instruction and its answer for one record; arguments as in `slot_values`."""
    values = slot_values(variant, record, candidate=candidate, preference=preference)
    template = variant.template
    return render(template.input_segments, values), render(template.target_segments, values)


def _query_text(query: Query | None, record: InstructionRecord) -> str:
    """Returns the first text of the aspect that the query slot takes, or ""."""
    if query is Query.SPECIFIC:
        return plain_text(record.specific_intention)
    texts = record.preference if query is Query.PREFERENCE else record.vague_intention
    return plain_text(texts[0]) if query and texts else ""
