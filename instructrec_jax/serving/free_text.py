"""A person's own words -> an explicit request: the last step of the paper's flow (section 2.3).

A text and the turns before it are split into sentences. Those that state a lasting preference or an
intention become these fields of the request, in the third person as training words them.
Categories, brands and years become conditions. What the sentences state decides the template.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Any

from instructrec_jax.instructions.language import plain_text
from instructrec_jax.instructions.persona import third_person
from instructrec_jax.records import Item
from instructrec_jax.serving.filters import (
    Applied,
    CatalogueFields,
    Filter,
    merged,
    without_numbers,
)
from instructrec_jax.serving.intents import (
    NOTHING,
    PREFERENCE,
    SPECIFIC,
    VAGUE,
    Guess,
    IntentModel,
    intent_by_rule,
    words_of,
)
from instructrec_jax.serving.languages import ScriptReader
from instructrec_jax.serving.retrieval import Retriever
from instructrec_jax.tokenizer import SentencePieceModel

MAX_TURNS, MAX_SENTENCES = 5, 20
_SHARE_OF_TURNS = 4  # turns and text together take at most a fourth of the instruction's tokens
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[\n;]+")
# Where a preference ends and an intention begins: "I love puzzles and want a kite".
_INTENTION_BEGINS = re.compile(
    r"(?:,|\band|\bbut|\bso)+\s+(?:now\s+|today\s+)?"
    r"(?=(?P<bare>want|need|am looking|would like)\b"
    r"|(?:i|we)(?:'m|'re|'d| (?:really |also )?(?:want|need|am looking|would like))\b)",
    re.IGNORECASE,
)
_TEMPLATES = {
    # (is there a history, what is wanted)
    (True, SPECIFIC): "C10.specific",
    (True, VAGUE): "C10.second_vague",  # its texts are in the third person too
    (True, PREFERENCE): "C10.preference",
    (True, NOTHING): "A7",
    (False, SPECIFIC): "B7.specific",
    (False, VAGUE): "B7.second_vague",
    (False, PREFERENCE): "B7.preference",
}
_UNSURE = (
    "say what you like in general, such as \u201cI mostly read crime novels\u201d, or what you "
    "want now, such as \u201ca gift for my son\u201d, or name a kind of item"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A sentence of somebody's.

    Attributes:
      text: as it was written.
      turn: which of the turns it is of; the last one is the text itself.
      guess: what it is; None until that is known.
    """

    text: str
    turn: int
    guess: Guess | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What was understood.

    Attributes:
      parts: the sentences, in their order.
      conditions: what they name of categories, brands, years and prices.
      num_turns_dropped: earlier turns that there was no room for.
      notes: what else whoever asks should know.
      problem: why nothing can be ranked by it; "" where it can.
    """

    parts: Sequence[Part]
    conditions: Sequence[Filter] = ()
    num_turns_dropped: int = 0
    notes: Sequence[str] = ()
    problem: str = ""

    @property
    def intent(self) -> str:
        """What is asked for: the most specific that is said."""
        found = {part.guess.intent for part in self.parts if part.guess}
        return next((each for each in (SPECIFIC, VAGUE, PREFERENCE) if each in found), NOTHING)

    def values(
        self,
        history: Sequence[str],
        preference: Sequence[str],
        applied: Sequence[Applied],
    ) -> tuple[dict[str, Any], str]:
        """Returns the explicit fields that say the same, and what writes the instruction of them.

        Without a history no template shows a preference beside what is wanted: it is then said
        first, as part of that.

        Args:
          history: of the request, titles.
          preference: of the request, which comes before what the text says of preferences.
          applied: the conditions; numbers that were applied are left out of the texts.
        """
        preferences = [*preference, *self._said({PREFERENCE}, applied)]
        intentions = self._said({SPECIFIC, VAGUE}, applied)
        intent = self.intent
        if intent == NOTHING and preferences:
            intent = PREFERENCE
        if intentions and preferences and not history:
            intentions, preferences = [*preferences, *intentions], []
        joined = {"preference": _joined(preferences), "intention": _joined(intentions)}
        found: dict[str, Any] = {name: text for name, text in joined.items() if text}
        if history:
            found["history"] = list(history)
        return found, _TEMPLATES.get((bool(history), intent), "")

    def _said(self, intents: Collection[str], applied: Sequence[Applied]) -> list[str]:
        """Returns the sentences of some intents in the third person."""
        return [
            third_person(said)
            for part in self.parts
            if part.guess and part.guess.intent in intents
            if (said := without_numbers(part.text, applied))
        ]


class TextReader:
    """Reads free text for one model and one catalogue; threads may share it.

    Attributes:
      model: tells intents where it is good at it.
      fields: of the catalogue; None where there is none.
    """

    def __init__(
        self, vocabulary: SentencePieceModel, max_input_tokens: int, max_target_tokens: int
    ) -> None:
        """Makes a reader without a catalogue.

        Args:
          vocabulary: the SentencePiece model.
          max_input_tokens: of an instruction.
          max_target_tokens: of a candidate.
        """
        self.model = IntentModel(vocabulary, max_target_tokens)
        self.fields: CatalogueFields | None = None
        self._vocabulary, self._scripts = vocabulary, ScriptReader(vocabulary)
        self._max_tokens = max_input_tokens // _SHARE_OF_TURNS
        self._known_words: frozenset[str] = frozenset()
        self._retriever: Retriever | None = None

    def read_catalogue(self, retriever: Retriever) -> None:
        """Lets a reader know a catalogue's words, categories, brands and years."""
        self._retriever, self.fields = retriever, CatalogueFields(retriever.items)
        self._known_words = words_of(
            [f"{item.title} {item.category} {item.brand}" for item in retriever.items]
        )

    def fields_of(self, candidates: Sequence[str]) -> CatalogueFields:
        """Returns what candidates can be told apart by: what the catalogue says of their titles."""
        return CatalogueFields([self._item(title) for title in candidates])

    def begin(self, turns: Sequence[str], text: str) -> Reading:
        """Returns the sentences of a text and of the turns before it, not understood yet.

        Of the turns the last `MAX_TURNS` are read, and of these as many as there is room for.
        """
        spoken = [*turns[-MAX_TURNS:], text]
        sizes = [len(self._vocabulary.encode(plain_text(each))) for each in spoken]
        first = 0
        while first < len(spoken) - 1 and sum(sizes[first:]) > self._max_tokens:
            first += 1
        kept = spoken[first:]
        unread = self._scripts.unread(text)
        if unread.is_too_much or not plain_text(text):
            what = unread.message if unread.is_too_much else "the text is empty"
            return Reading(parts=[Part(text=text, turn=len(kept) - 1)], problem=what)
        parts = [
            Part(text=sentence, turn=turn)
            for turn, each in enumerate(kept)
            for sentence in _sentences(plain_text(each))
        ]
        notes = [unread.message] if unread.message else []
        if (num_left_out := len(parts) - MAX_SENTENCES) > 0:
            notes.append(f"the first {num_left_out} sentences were left out")
        return Reading(
            parts=parts[-MAX_SENTENCES:],
            num_turns_dropped=len(turns) - len(kept) + 1,
            notes=notes,
        )

    def finish(
        self, reading: Reading, guesses: Sequence[Guess], candidates: Sequence[str] = ()
    ) -> Reading:
        """Returns what sentences mean.

        Args:
          reading: from `begin`, without a problem.
          guesses: of the model, one for each sentence; () where it is not asked.
          candidates: titles to be ranked, whose words are known too.
        """
        known = self._known_words | words_of(candidates)
        parts: list[Part] = []
        for number, part in enumerate(reading.parts):
            guess = guesses[number] if guesses else None
            if guess is None or not guess.intent:
                guess = intent_by_rule(part.text, self.fields, known)
            parts.append(dataclasses.replace(part, guess=guess))
        is_clear = any(part.guess and part.guess.intent for part in parts)
        problem = ""
        if not is_clear:
            problem = ask_more(parts[-1].guess.why if parts[-1].guess else "")
        unclear = [
            f"{p.text!r} was not understood" for p in parts if p.guess and not p.guess.intent
        ]
        return dataclasses.replace(
            reading,
            parts=parts,
            conditions=self._conditions(parts),
            notes=[*reading.notes, *(unclear if is_clear else [])],
            problem=problem,
        )

    def _conditions(self, parts: Sequence[Part]) -> list[Filter]:
        """Returns the conditions; those of a later turn replace those of the same field."""
        fields = self.fields or CatalogueFields([])
        found: list[Filter] = []
        for turn in dict.fromkeys(part.turn for part in parts):
            own = [
                condition
                for part in parts
                if part.turn == turn and not (part.guess and part.guess.intent == PREFERENCE)
                for condition in fields.named_in(part.text)
            ]
            found = merged(found, own)
        return found

    def _item(self, title: str) -> Item:
        """Returns what is known of a title."""
        item = self._retriever.item_of(title) if self._retriever else None
        return item or Item(item_id=-1, raw_id="", title=title)


def ask_more(why: str) -> str:
    """Returns what is asked of somebody whose text nothing can be ranked by."""
    return f"tell me more: {why}; {_UNSURE}"


NOTHING_TO_RANK_BY = ask_more("nothing in particular is asked for, and there is no history")


def _sentences(text: str) -> list[str]:
    """Returns the sentences of a text; an intention after a preference is a sentence of its own."""
    parted = _INTENTION_BEGINS.sub(lambda found: "\nI " if found["bare"] else "\n", text)
    return [kept for each in _SENTENCE_END.split(parted) if (kept := each.strip(" .,"))]


def _joined(sentences: Sequence[str]) -> str:
    """Returns sentences as one text, without the last full stop, which templates give."""
    kept = [each.strip().rstrip(".") for each in sentences]
    return ". ".join(filter(None, kept))
