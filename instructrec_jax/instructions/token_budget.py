"""Turns records into tokens within a run's feature lengths, in plain Python.

A title of more than `title_limit` tokens is cut first, the same way in history, candidates and
answers. Then the oldest history items are dropped whole, as few as possible, and the newest is
kept; then its title is shortened by whole words. In an answer, a teacher's text or a query is
shortened next. Nothing else is ever cut: what still does not fit is an error that names the
example. Training renders inside TensorFlow (`pipeline.rendering`) and shortens by what is here.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import (
    LIST_SEPARATOR,
    Segments,
    Slot,
    Variant,
    plain_title,
    slots_of,
)
from instructrec_jax.instructions.render import (
    EVALUATION,
    NUM_ANSWER_TITLES,
    Draw,
    render,
    slot_values,
)
from instructrec_jax.records import InstructionRecord
from instructrec_jax.tokenizer import EOS_ID, SentencePieceModel

TOO_LONG, NO_TOKENS, SAME_TITLE = "too_long", "no_tokens", "same_title"
# What has to fit, for messages.
_WHAT = {
    "inputs": "the instruction without all history that may go",
    "targets": "the answer",
    "candidates": "a candidate",
}
# The slots whose text may be shortened after the history: none in an instruction.
CUT_TEXTS = {"inputs": (), "targets": (Slot.PREFERENCE, Slot.QUERY)}
_FEWER_CANDIDATES = (
    ', or show fewer candidates: "candidates" there says how many, and scoring with '
    "CANDIDATE_VIEW = @candidate_views.Groups() shows only candidate_views.Groups.size of them "
    "at a time; a template that shows none, such as A1, takes any number"
)


class MisfitError(UserError):
    """A record that cannot become tokens.

    Attributes:
      reason: "too_long", "no_tokens" or "same_title".
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Fitted(NamedTuple):
    """A text within its budget.

    Attributes:
      tokens: int32 [length], EOS included.
      num_history_dropped: history items left out.
      num_words_cut: words taken from the end of a title or a text.
    """

    tokens: np.ndarray
    num_history_dropped: int
    num_words_cut: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRenderer:
    """Turns records into tokens as one variant words them; threads may share it.

    Attributes:
      variant: the template and its query.
      vocabulary: the SentencePiece model.
      feature_lengths: tokens of "inputs" and "targets", no limit where one is missing; optionally
        "preference", 1 or 0: whether the optional clause appears, in place of what the draw says.
        `arrange` applies the others.
      task: name for messages.
    """

    variant: Variant
    vocabulary: SentencePieceModel
    feature_lengths: Mapping[str, int]
    task: str

    def instruction(self, record: InstructionRecord, draw: Draw = EVALUATION) -> Fitted:
        """Returns the instruction of an arranged record.

        Raises:
          MisfitError: if it does not fit, or has no tokens.
        """
        segments = self.variant.template.input_segments
        fitted = self._fitted("inputs", segments, record, record.history, draw)
        if len(fitted.tokens) == 1:
            raise self._without_tokens(record, "the instruction")
        return fitted

    def answer(self, record: InstructionRecord, draw: Draw = EVALUATION) -> Fitted:
        """Returns the answer of an arranged record.

        Raises:
          MisfitError: if it does not fit.
        """
        segments = self.variant.template.target_segments
        history = record.history[-NUM_ANSWER_TITLES:]
        return self._fitted("targets", segments, record, history, draw)

    def candidates(self, record: InstructionRecord) -> list[np.ndarray]:
        """Returns the tokens of each candidate, int32 [t] ending in EOS.

        Raises:
          MisfitError: if one does not fit, or has no tokens.
        """
        rows = [self.vocabulary.encode(plain_title(title)) for title in record.candidates]
        for title, row in zip(record.candidates, rows, strict=True):
            if not row:
                raise self._without_tokens(record, f"candidate {title!r}")
        longest = max(map(len, rows), default=0) + 1
        if longest > self.feature_lengths.get("targets", longest):
            raise self._too_long("candidates", record, longest)
        return [np.array([*row, EOS_ID], np.int32) for row in rows]

    def _fitted(
        self,
        feature: str,
        segments: Segments,
        record: InstructionRecord,
        history: Sequence[str],
        draw: Draw,
    ) -> Fitted:
        """Returns the instruction ("inputs") or the answer ("targets") within its budget."""
        if (states := self.feature_lengths.get("preference")) is not None:
            draw = dataclasses.replace(draw, states_preference=bool(states))
        values = slot_values(self.variant, record, draw)
        budget = TokenBudget(segments, self.vocabulary, self.feature_lengths.get(feature))
        titles = [plain_title(title) for title in history]
        tokens, num_dropped, num_cut = budget.fit(values, titles, CUT_TEXTS[feature])
        if not budget.fits(tokens):
            raise self._too_long(feature, record, len(tokens) + 1)
        return Fitted(np.array([*tokens, EOS_ID], np.int32), num_dropped, num_cut)

    def _too_long(self, what: str, record: InstructionRecord, num_tokens: int) -> MisfitError:
        feature = "inputs" if what == "inputs" else "targets"
        message = too_long_message(
            self.variant,
            what,
            task=self.task,
            example_id=record.example_id,
            num_tokens=str(num_tokens),
            max_tokens=self.feature_lengths[feature],
        )
        return MisfitError(message, reason=TOO_LONG)

    def _without_tokens(self, record: InstructionRecord, what: str) -> MisfitError:
        return MisfitError(
            f"task {self.task}, example {record.example_id}: {what} has no tokens, as if its text "
            "were empty; give it a text of characters that are seen",
            reason=NO_TOKENS,
        )


def too_long_message(
    variant: Variant, what: str, *, task: str, example_id: str, num_tokens: str, max_tokens: int
) -> str:
    """Returns what is said of a text that does not fit.

    Args:
      variant: what is rendered.
      what: "inputs", "targets" or "candidates".
      task: its name.
      example_id: of the record.
      num_tokens: how many it needs, EOS included.
      max_tokens: how many its feature may have.
    """
    shows_all = Slot.CANDIDATES in slots_of(variant.template.input_segments)
    remedy = _FEWER_CANDIDATES if what == "inputs" and shows_all else ""
    feature = "inputs" if what == "inputs" else "targets"
    return (
        f"task {task}, example {example_id}: {_WHAT[what]} needs {num_tokens} tokens and the "
        f"feature length of {feature} is {max_tokens}; raise it in TASK_FEATURE_LENGTHS "
        f"(--{feature.removesuffix('s')}_tokens without gin files), or cut long titles: "
        f'"title" there says at how many tokens{remedy}'
    )


def same_title_message(*, example_id: str, title: str, max_tokens: int) -> str:
    """Returns what is said of candidates that the cut of titles makes equal."""
    return (
        f'example {example_id}: two candidates read "{title}" once titles are cut at {max_tokens} '
        'tokens; raise "title", or without it "targets", in TASK_FEATURE_LENGTHS'
    )


class Arranged(NamedTuple):
    """A record as a run shows it.

    Attributes:
      record: its titles plain and cut, with no more history and candidates than the run shows.
      num_titles_cut: how many titles of its history and its candidates were cut.
    """

    record: InstructionRecord
    num_titles_cut: int


def arrange(
    record: InstructionRecord, lengths: Mapping[str, int], vocabulary: SentencePieceModel
) -> Arranged:
    """Returns a record as a run shows it.

    Args:
      record: any record.
      lengths: feature lengths; of them "history", the most recent items to show, "candidates",
        how many to keep (the first ones, the target among them), and what `title_limit` reads.
      vocabulary: the SentencePiece model, which says how long a title is.

    Raises:
      MisfitError: if two candidates become equal.
    """
    if "candidates" in lengths:
        ids, target = record.candidate_ids, record.target_id
        negatives = [index for index, candidate in enumerate(ids) if candidate != target]
        dropped = negatives[max(lengths["candidates"] - (target in ids), 0) :]
        record = with_candidates(record, sorted({*range(len(ids))} - {*dropped}))
    first = max(len(record.history) - lengths.get("history", len(record.history)), 0)
    limit = title_limit(lengths)

    def cut(titles: Sequence[str]) -> tuple[tuple[str, ...], int]:
        plain = [plain_title(title) for title in titles]
        found = tuple(cut_title(title, vocabulary, limit) for title in plain)
        return found, sum(map(str.__ne__, plain, found))

    history, num_in_history = cut(record.history[first:])
    candidates, num_in_candidates = cut(record.candidates)
    if num_in_candidates and len(set(candidates)) < len(set(map(plain_title, record.candidates))):
        (title, _), *_ = collections.Counter(candidates).most_common(1)
        message = same_title_message(
            example_id=record.example_id, title=title, max_tokens=limit or 0
        )
        raise MisfitError(message, reason=SAME_TITLE)
    ((target_title,), _) = cut([record.target])
    record = dataclasses.replace(
        record, history=history, candidates=candidates, target=target_title
    )
    return Arranged(record, num_in_history + num_in_candidates)


def title_limit(lengths: Mapping[str, int]) -> int | None:
    """Returns the most tokens of a title, EOS not counted; None for no limit.

    Without "title" among the feature lengths, a title may be as long as an answer.
    """
    return lengths.get("title", lengths["targets"] - 1 if "targets" in lengths else None)


def cut_title(title: str, vocabulary: SentencePieceModel, max_tokens: int | None) -> str:
    """Returns a plain title of at most `max_tokens` tokens; None for no limit.

    Whole words go from its end; the first word loses characters where it is too long by itself.
    One character is always left.
    """
    for separator in (" ", ""):
        parts = title.split(separator) if separator else list(title)
        while len(parts) > 1 and not _is_short(title, vocabulary, max_tokens):
            parts.pop()
            title = separator.join(parts)
    return title


def _is_short(title: str, vocabulary: SentencePieceModel, max_tokens: int | None) -> bool:
    """Returns whether a title needs no cut; a token stands for a byte at least."""
    if max_tokens is None or len(title.encode("utf-8")) < max_tokens:
        return True
    return len(vocabulary.encode(title)) <= max_tokens


def with_candidates(record: InstructionRecord, indices: Sequence[int]) -> InstructionRecord:
    """Returns a record with some of its candidates, in the order of their indices."""
    return dataclasses.replace(
        record,
        candidate_ids=tuple(record.candidate_ids[index] for index in indices),
        candidates=tuple(record.candidates[index] for index in indices),
    )


class TokenBudget(NamedTuple):
    """Renders one wording within a number of tokens, EOS included; None for no limit."""

    segments: Segments
    vocabulary: SentencePieceModel
    max_tokens: int | None

    def fits(self, tokens: Sequence[int]) -> bool:
        """Returns whether tokens and EOS keep the budget."""
        return self.max_tokens is None or len(tokens) + 1 <= self.max_tokens

    def fit(
        self, values: Mapping[Slot, str], history: Sequence[str], texts: Sequence[Slot]
    ) -> tuple[list[int], int, int]:
        """Returns the longest rendering that fits, or else the shortest that there may be.

        Args:
          values: text of every slot; that of the history is not used.
          history: [n] plain titles, oldest first.
          texts: slots whose text may be shortened after the history, in this order.

        Returns:
          Tokens without EOS, number of history items dropped and number of words cut.
        """
        shown, values = slots_of(self.segments), dict(values)
        tokens = self._tokens(values, history)
        num_dropped = num_cut = 0
        if Slot.HISTORY in shown and history and not self.fits(tokens):
            num_dropped = self._num_to_drop(values, history, len(tokens))
            older, newest = history[num_dropped:-1], history[-1]
            tokens, newest, num_cut = self._cut_words(
                newest, lambda title: self._tokens(values, [*older, title])
            )
            history = [*older, newest]
        for slot in texts:
            if slot in shown and not self.fits(tokens):

                def with_text(text: str, slot: Slot = slot) -> list[int]:
                    return self._tokens({**values, slot: text}, history)

                tokens, values[slot], more = self._cut_words(values[slot], with_text)
                num_cut += more
        return tokens, num_dropped, num_cut

    def _num_to_drop(
        self, values: Mapping[Slot, str], history: Sequence[str], num_tokens: int
    ) -> int:
        """Returns how many of the oldest history items must go; the newest stays.

        SentencePiece pieces do not cross blanks, so an item with its separator takes the same
        tokens alone as in the prompt: their sum says where to begin to look.
        """
        assert self.max_tokens is not None
        end = LIST_SEPARATOR.rstrip()
        sizes = (len(self.vocabulary.encode(title + end)) for title in history)
        excess = num_tokens + 1 - self.max_tokens
        enough = (n for n, total in enumerate(itertools.accumulate(sizes), 1) if total >= excess)
        num_dropped = min(next(enough, len(history)), len(history) - 1)
        while num_dropped < len(history) - 1 and not self.fits(
            self._tokens(values, history[num_dropped:])
        ):
            num_dropped += 1
        return num_dropped

    def _cut_words(
        self, text: str, tokens_with: Callable[[str], list[int]]
    ) -> tuple[list[int], str, int]:
        """Returns tokens, text and number of words cut from its end; one word at least is kept."""
        words = text.split(" ")
        tokens, num_words = tokens_with(text), len(words)
        while num_words > 1 and not self.fits(tokens):
            num_words -= 1
            tokens = tokens_with(" ".join(words[:num_words]))
        return tokens, " ".join(words[:num_words]), len(words) - num_words

    def _tokens(self, values: Mapping[Slot, str], history: Sequence[str]) -> list[int]:
        """Returns the tokens, without EOS, of the wording with this history."""
        filled = {**values, Slot.HISTORY: LIST_SEPARATOR.join(history)}
        return self.vocabulary.encode(render(self.segments, filled))
