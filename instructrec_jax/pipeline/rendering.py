"""Renders templates inside a TensorFlow graph within a number of tokens, for training.

SeqIO would cut the tail of a prompt, where the candidates stand. What is dropped and cut instead,
and what is an error, `instructions.token_budget` says: what has to be shortened is given to it.
What is rendered here, `instructions.render` says in plain Python, to the same bytes.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import (
    BLANKS,
    LIST_SEPARATOR,
    SEPARATOR_STAND_IN,
    Clause,
    Field,
    Literal,
    Segments,
    Slot,
    Variant,
    slots_of,
)
from instructrec_jax.instructions.token_budget import (
    CUT_TEXTS,
    TokenBudget,
    cut_title,
    same_title_message,
    too_long_message,
)
from instructrec_jax.tokenizer import EOS_ID


def plain_text(text: tf.Tensor) -> tf.Tensor:
    """Returns texts in one line each, as `language.plain_text`; any shape, string."""
    return tf.strings.strip(tf.strings.regex_replace(text, BLANKS, " "))


def plain_title(title: tf.Tensor) -> tf.Tensor:
    """Returns titles as prompts and targets spell them, as `language.plain_title`; any shape."""
    return tf.strings.regex_replace(plain_text(title), LIST_SEPARATOR, SEPARATOR_STAND_IN)


def join_titles(titles: tf.Tensor) -> tf.Tensor:
    """Returns [n] plain titles as one list, a scalar string."""
    return tf.strings.reduce_join(titles, separator=LIST_SEPARATOR)


def cut_titles(
    titles: tf.Tensor, vocabulary: seqio.SentencePieceVocabulary, max_tokens: int | None
) -> tf.Tensor:
    """Returns titles of at most `max_tokens` tokens, as `token_budget.cut_title`.

    Args:
      titles: [n] plain titles.
      vocabulary: how to tokenise.
      max_tokens: None for no limit.
    """
    if max_tokens is None:
        return titles

    tokenizer = vocabulary.tokenizer  # taken here: threads may call what follows, not load it

    def cut(titles: np.ndarray) -> np.ndarray:
        found = [cut_title(title.decode(), tokenizer, max_tokens) for title in titles]
        return np.array([title.encode() for title in found], object)

    return tf.cond(
        tf.reduce_any(tf.strings.length(titles) >= max_tokens),
        lambda: tf.ensure_shape(tf.numpy_function(cut, [titles], tf.string), [None]),
        lambda: titles,
    )


def render(segments: Segments, values: Mapping[Slot, tf.Tensor]) -> tf.Tensor:
    """Fills the slots of a parsed wording.

    Args:
      segments: the parsed wording.
      values: scalar string of each slot; a slot that is missing counts as empty.

    Returns:
      Scalar string, in which a clause appears only if all its slots have text.
    """
    return tf.strings.join([_segment(segment, values) for segment in segments])


def _segment(
    segment: Literal | Field | Clause, values: Mapping[Slot, tf.Tensor]
) -> tf.Tensor | str:
    """Returns the text of one segment."""
    if isinstance(segment, Literal):
        return segment.text
    if not isinstance(segment, Clause):
        return values.get(segment.slot, "")
    if any(slot not in values for slot in segment.slots):
        return ""
    is_shown = tf.reduce_all([tf.strings.length(values[slot]) > 0 for slot in segment.slots])
    return tf.where(is_shown, render(segment.segments, values), "")


# Begins and ends our message inside the text of a TensorFlow error; the loader takes it out.
ERROR_BEGIN, ERROR_END = "[[instructrec: ", " :instructrec]]"

Values = Mapping[Slot, tf.Tensor]


class Fitted(NamedTuple):
    """A rendering within its budget.

    Attributes:
      tokens: [length] int32, EOS included.
      num_history_dropped: history items left out, scalar int32.
      num_words_cut: words taken from the end of a title or a text, scalar int32.
    """

    tokens: tf.Tensor
    num_history_dropped: tf.Tensor
    num_words_cut: tf.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class BudgetedRenderer:
    """Renders one wording within a number of tokens.

    Attributes:
      variant: what is rendered.
      vocabulary: how to tokenise.
      max_tokens: EOS included; None for no limit.
      task: name for messages.
      feature: "inputs" or "targets", whose length `max_tokens` is.
    """

    variant: Variant
    vocabulary: seqio.SentencePieceVocabulary
    max_tokens: int | None
    task: str
    feature: str = "inputs"

    def fit(self, values: Values, history: tf.Tensor, example_id: tf.Tensor) -> Fitted:
        """Returns the longest rendering that fits.

        Args:
          values: scalar strings of all slots but the history.
          history: [n] plain titles, oldest first.
          example_id: scalar string, for messages.
        """
        filled = {**values, Slot.HISTORY: join_titles(history)}
        tokens = self.vocabulary.encode_tf(render(self._segments, filled))
        fitted = Fitted(tokens, tf.constant(0), tf.constant(0))
        if self.max_tokens is not None and self._can_shrink:
            fitted = tf.cond(
                tf.size(tokens) < self.max_tokens,
                lambda: fitted,
                lambda: self._shortened(values, history),
            )
        tokens = with_eos(fitted.tokens)
        check = assert_fits(
            tokens,
            self.max_tokens,
            self.variant,
            self.feature,
            task=self.task,
            example_id=example_id,
        )
        with tf.control_dependencies(check):
            return fitted._replace(tokens=tf.identity(tokens))

    @property
    def _segments(self) -> Segments:
        template = self.variant.template
        return template.target_segments if self.feature == "targets" else template.input_segments

    @property
    def _can_shrink(self) -> bool:
        return not {Slot.HISTORY, *CUT_TEXTS[self.feature]}.isdisjoint(slots_of(self._segments))

    def _shortened(self, values: Values, history: tf.Tensor) -> Fitted:
        """Returns what `token_budget` makes of it, in Python: few examples need it."""
        shown = [slot for slot in slots_of(self._segments) if slot in values]
        tokenizer = self.vocabulary.tokenizer  # see `cut_titles`

        def shorten(history: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, ...]:
            budget = TokenBudget(self._segments, tokenizer, self.max_tokens)
            filled = {slot: text.decode() for slot, text in zip(shown, texts, strict=True)}
            titles = [title.decode() for title in history]
            found = budget.fit(filled, titles, CUT_TEXTS[self.feature])
            return tuple(np.array(value, np.int32) for value in found)

        texts = tf.convert_to_tensor([values[slot] for slot in shown], tf.string)
        types = [tf.int32, tf.int32, tf.int32]
        tokens, num_dropped, num_cut = tf.numpy_function(shorten, [history, texts], types)
        return Fitted(
            tf.ensure_shape(tokens, [None]),
            tf.ensure_shape(num_dropped, []),
            tf.ensure_shape(num_cut, []),
        )


def with_eos(tokens: tf.Tensor) -> tf.Tensor:
    """Returns [length + 1] tokens that end in EOS."""
    return tf.concat([tokens, [EOS_ID]], axis=0)


def assert_fits(
    tokens: tf.Tensor,
    max_tokens: int | None,
    variant: Variant,
    what: str,
    *,
    task: str,
    example_id: tf.Tensor,
) -> list[tf.Operation]:
    """Returns an operation that fails where a row of tokens is longer than its feature.

    Args:
      tokens: [length] or, padded, [n, length]; EOS included.
      max_tokens: how many the feature may have; None for no limit.
      variant: what is rendered.
      what: "inputs", "targets" or "candidates".
      task: name for the message.
      example_id: scalar string for the message.
    """
    if max_tokens is None:
        return []
    num_tokens = tf.shape(tokens)[-1]
    unknown = {"example_id": "\0", "num_tokens": "\0"}
    text = too_long_message(variant, what, task=task, max_tokens=max_tokens, **unknown)
    message = _message(text, example_id, tf.strings.as_string(num_tokens))
    return [tf.debugging.Assert(num_tokens <= max_tokens, [message])]


def assert_distinct(
    titles: tf.Tensor, cut: tf.Tensor, max_tokens: int | None, *, example_id: tf.Tensor
) -> list[tf.Operation]:
    """Returns an operation that fails where the cut of titles makes two of them equal.

    Args:
      titles: [n] plain titles.
      cut: [n] the same, cut.
      max_tokens: at which they are cut; None where they are not.
      example_id: scalar string for the message.
    """
    if max_tokens is None:
        return []
    kept, _, counts = tf.unique_with_counts(cut)
    text = same_title_message(example_id="\0", title="\0", max_tokens=max_tokens)
    message = _message(text, example_id, kept[tf.argmax(counts)])
    return [tf.debugging.Assert(tf.size(kept) == tf.size(tf.unique(titles).y), [message])]


def _message(text: str, *values: tf.Tensor) -> tf.Tensor:
    """Returns a message of ours with values where "\\0" stands, to be found in an error."""
    before, *parts = text.split("\0")
    filled = [part for pair in zip(values, parts, strict=True) for part in pair]
    return tf.strings.join([ERROR_BEGIN, before, *filled, ERROR_END])
