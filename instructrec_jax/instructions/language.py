"""The template language: wordings with slots and optional clauses, parsed once.

A wording is plain text with slots in braces, such as `{history}`, and optional clauses in square
brackets. A clause is left out where one of its slots has no text, which is how the preference of
the paper's templates is dropped (PAPER: "(P2)"). Templates are parsed before any title is seen, so
nothing in a title can change their structure.

Source: InstructRec (arXiv 2305.07001) section 2 and appendices A-C; every wording is our own.
"""

import dataclasses
import enum
import functools
import re
from collections.abc import Iterable, Iterator

from instructrec_jax.data.titles import LIST_SEPARATOR, SEPARATOR_STAND_IN
from instructrec_jax.errors import UserError
from instructrec_jax.records import Intention, Preference, TaskForm

# Control characters and every kind of blank. Written out, because the regular expressions of
# Python and of TensorFlow disagree on what a blank is.
BLANKS = "[\x00-\x20\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]+"
_BLANKS = re.compile(BLANKS)
_TOKENS = re.compile(r"[{}\[\]]|[^{}\[\]]+")
_TEMPLATE_ID = re.compile(r"[A-Za-z]\w*")
_FAMILY = re.compile(r"[a-z]\w*")
RECORD_SETS = ("leave_one_out", "product_search")


class Slot(enum.StrEnum):
    """A part of a wording that a record fills."""

    HISTORY = "history"
    CANDIDATES = "candidates"
    CANDIDATE = "candidate"
    FIRST = "first"  # the target and a negative, in random order
    SECOND = "second"
    QUERY = "query"
    PREFERENCE = "preference"
    CONTEXT = "context"  # time or place of the request
    TARGET = "target"
    ANSWER = "answer"  # "Yes" or "No": whether `{candidate}` is the target


class Query(enum.StrEnum):
    """What the query slot is filled with; part of a task's name."""

    PREFERENCE = "preference"
    VAGUE = "vague"
    SECOND_VAGUE = "second_vague"
    SPECIFIC = "specific"


# Wherever a vague intention may stand, its second rendering may.
VAGUE_QUERIES = (Query.VAGUE, Query.SECOND_VAGUE)
ANY_QUERY = (Query.PREFERENCE, *VAGUE_QUERIES, Query.SPECIFIC)


class Kind(enum.Enum):
    """How a template relates input and output (paper section 2.2.3)."""

    PLAIN = "plain"
    REVERSAL = "reversal"
    RELATEDNESS = "relatedness"
    CHAIN_OF_THOUGHT = "chain of thought"


# The record field that fills a slot, where a record may lack it.
RECORD_FIELDS = {
    Slot.HISTORY: "history",
    Slot.PREFERENCE: "preference",
    Slot.CONTEXT: "context",
}
QUERY_FIELDS = {
    Query.PREFERENCE: "preference",
    Query.VAGUE: "vague_intention",
    Query.SECOND_VAGUE: "second_vague_intention",
    Query.SPECIFIC: "specific_intention",
}
_INTENTIONS = {
    Query.VAGUE: Intention.VAGUE,
    Query.SECOND_VAGUE: Intention.VAGUE,
    Query.SPECIFIC: Intention.SPECIFIC,
}


@dataclasses.dataclass(frozen=True)
class Literal:
    """Fixed text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Field:
    """A slot to be filled."""

    slot: Slot


@dataclasses.dataclass(frozen=True)
class Clause:
    """Text that appears only when every slot in it has text."""

    segments: tuple[Literal | Field, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots whose text the clause waits for."""
        return tuple(part.slot for part in self.segments if isinstance(part, Field))


Segments = tuple[Literal | Field | Clause, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """One coarse-grained instruction of the paper, in our own wording.

    Its preference and intention follow from its slots, see `Variant.cell`.

    Attributes:
      template_id: its number in the paper, such as "A7".
      inputs: wording of the instruction.
      targets: wording of the answer.
      task_form: T of its cell.
      family: the group it is reported with and the mixture it belongs to, "<dataset>.<family>".
      records: the records it renders, "leave_one_out" or "product_search".
      kind: how input and output relate.
      is_evaluated: whether it belongs to the pool that rankings are evaluated with.
      queries: what may fill the query slot, one task each; () without that slot.
    """

    template_id: str
    inputs: str
    targets: str
    task_form: TaskForm
    family: str = "own"
    records: str = RECORD_SETS[0]
    kind: Kind = Kind.PLAIN
    is_evaluated: bool = False
    queries: tuple[Query, ...] = ()

    def __post_init__(self):
        if not _TEMPLATE_ID.fullmatch(self.template_id):
            raise UserError(f"template id {self.template_id!r} is not a name; use one such as 'A7'")
        if not self.targets.strip():
            raise UserError(f"template {self.template_id} has no target; give `targets` a wording")
        for problem in _problems(self):
            raise UserError(f"template {self.template_id}: {problem}")

    @functools.cached_property
    def input_segments(self) -> Segments:
        """The parsed wording of the instruction."""
        return parse(self.inputs, template_id=self.template_id)

    @functools.cached_property
    def target_segments(self) -> Segments:
        """The parsed wording of the answer."""
        return parse(self.targets, template_id=self.template_id)

    @property
    def required_slots(self) -> frozenset[Slot]:
        """Slots without whose text the template cannot be rendered."""
        parts = self.input_segments + self.target_segments
        return frozenset(part.slot for part in parts if isinstance(part, Field))

    @property
    def has_optional_preference(self) -> bool:
        """Whether a clause may state the preference ("(P2)" in the paper)."""
        return (
            Slot.PREFERENCE in slots_of(self.input_segments)
            and Slot.PREFERENCE not in self.required_slots
        )

    @property
    def names_an_item(self) -> bool:
        """Whether its answer is the target's title, so that candidates can be ranked by it."""
        forms = (TaskForm.MATCHING, TaskForm.RERANKING)
        is_title = self.target_segments == (Field(Slot.TARGET),)
        return is_title and self.task_form in forms


@dataclasses.dataclass(frozen=True)
class Variant:
    """A template with its query slot decided: what one task renders."""

    template: Template
    query: Query | None = None

    @property
    def name(self) -> str:
        """The template's part of a task name: "A7", or "B7.specific"."""
        suffix = f".{self.query}" if self.query else ""
        return self.template.template_id + suffix

    @property
    def is_evaluated(self) -> bool:
        """Whether rankings are evaluated with it: I1* is there to be trained on (paper Fig. 3)."""
        return self.template.is_evaluated and self.query is not Query.SECOND_VAGUE

    @property
    def needs(self) -> frozenset[str]:
        """The fields of an instruction record without whose text it cannot be rendered."""
        needed = {
            RECORD_FIELDS[slot] for slot in self.template.required_slots & RECORD_FIELDS.keys()
        }
        if self.query and Slot.QUERY in self.template.required_slots:
            needed.add(QUERY_FIELDS[self.query])
        return frozenset(needed)

    @property
    def may_state_preference(self) -> bool:
        """Whether its optional clause may appear: not where the query says the same already."""
        return self.template.has_optional_preference and self.query is not Query.PREFERENCE

    @property
    def cell(self) -> str:
        """The paper's cell, such as "<P1,(P2),I0,T3>", from the slots of the instruction.

        The paper gives none to the templates that turn the task around; theirs tells what the
        instruction shows all the same.
        """
        shown = slots_of(self.template.input_segments)
        has_query = Slot.QUERY in shown
        is_stated = Slot.PREFERENCE in shown or (has_query and self.query is Query.PREFERENCE)
        parts = [Preference.IMPLICIT.value] if Slot.HISTORY in shown else []
        if is_stated:
            explicit = Preference.EXPLICIT.value
            parts.append(f"({explicit})" if self.may_state_preference else explicit)
        intention = (
            _INTENTIONS.get(self.query, Intention.NONE)
            if has_query and self.query
            else Intention.NONE
        )
        parts = [*(parts or [Preference.NONE.value]), intention.value]
        return f"<{','.join([*parts, self.template.task_form.value])}>"


def variants(templates: Iterable[Template]) -> Iterator[Variant]:
    """Yields every template once for each kind of query it takes."""
    for template in templates:
        for query in template.queries or (None,):
            yield Variant(template, query)


def unique_templates(*families: tuple[Template, ...], where: str) -> tuple[Template, ...]:
    """Returns the templates of all families together.

    Args:
      *families: templates of one family each.
      where: the file that declares them, for the message.

    Raises:
      UserError: if two share an id.
    """
    found: dict[str, Template] = {}
    for template in (member for family in families for member in family):
        if template.template_id in found:
            raise UserError(f"{where}: template id {template.template_id!r} is declared twice")
        found[template.template_id] = template
    return tuple(found.values())


def plain_title(title: str) -> str:
    """Returns a title as prompts and targets spell it: one line, without the list separator.

    Example: `"Jak;  Daxter"` becomes `"Jak, Daxter"`.
    """
    return plain_text(title).replace(LIST_SEPARATOR, SEPARATOR_STAND_IN)


def plain_text(text: str) -> str:
    """Returns a text in one line: runs of blanks and control characters become one blank."""
    return _BLANKS.sub(" ", text).strip(" ")


def parse(wording: str, *, template_id: str) -> Segments:
    """Parses a wording into its segments.

    Example: `"Seen: {history}.[ Likes {preference}.]"` becomes a literal, a field, a literal and
    a clause of literal, field and literal.

    Args:
      wording: text with slots in braces and clauses in square brackets, which do not nest.
      template_id: for the message.

    Raises:
      UserError: if a slot is unknown, a bracket has no partner, or a clause has no slot.
    """
    segments: list[Literal | Field | Clause] = []
    clause: list[Literal | Field] | None = None
    tokens = iter(_TOKENS.findall(wording))
    for token in tokens:
        if token == "[" and clause is None:
            clause = []
        elif token == "]" and clause is not None:
            segments.append(Clause(tuple(clause)))
            clause = None
        elif token in "[]}":
            raise UserError(f"template {template_id}: {token!r} has no partner in {wording!r}")
        else:
            part = _field(tokens, template_id, wording) if token == "{" else Literal(token)
            (segments if clause is None else clause).append(part)
    if clause is not None:
        raise UserError(f"template {template_id}: '[' has no partner in {wording!r}")
    if any(isinstance(part, Clause) and not part.slots for part in segments):
        raise UserError(f"template {template_id}: an optional clause has no slot in {wording!r}")
    return tuple(segments)


def slots_of(segments: Segments) -> frozenset[Slot]:
    """Returns every slot of a wording, those of its clauses included."""
    found: set[Slot] = set()
    for part in segments:
        if isinstance(part, Clause):
            found.update(part.slots)
        elif isinstance(part, Field):
            found.add(part.slot)
    return frozenset(found)


def _field(tokens: Iterator[str], template_id: str, wording: str) -> Field:
    """Reads the rest of `{slot}`."""
    name, closing = next(tokens, ""), next(tokens, "")
    if closing != "}":
        raise UserError(f"template {template_id}: '{{' has no partner in {wording!r}")
    if name not in list(Slot):
        known = ", ".join(Slot)
        raise UserError(f"template {template_id}: unknown slot {{{name}}}; known are {known}")
    return Field(Slot(name))


def _problems(template: Template) -> Iterator[str]:
    """Yields what contradicts itself in a template."""
    if not _FAMILY.fullmatch(template.family):
        yield f"family {template.family!r} is not a name; use one such as 'sequential'"
    if template.records not in RECORD_SETS:
        yield f"records is {template.records!r}; expected {' or '.join(map(repr, RECORD_SETS))}"
    in_input = slots_of(template.input_segments)
    slots = in_input | slots_of(template.target_segments)
    if (Slot.QUERY in slots) != bool(template.queries):
        yield "`queries` must name what fills {query}, and be empty without that slot"
    if template.task_form is TaskForm.RERANKING and Slot.CANDIDATES not in in_input:
        yield "a reranking template needs the slot {candidates} in `inputs`"
    if template.task_form is TaskForm.POINTWISE and Slot.CANDIDATE not in in_input:
        yield "a pointwise template needs the slot {candidate} in `inputs`"
    if template.task_form is TaskForm.PAIRWISE and not {Slot.FIRST, Slot.SECOND} <= in_input:
        yield "a pairwise template needs the slots {first} and {second} in `inputs`"
    if template.is_evaluated and template.task_form is not TaskForm.RERANKING:
        yield "only reranking templates can be evaluated"
    if template.kind in (Kind.PLAIN, Kind.CHAIN_OF_THOUGHT) and Slot.TARGET in in_input:
        yield "the slot {target} in `inputs` gives the answer away"
