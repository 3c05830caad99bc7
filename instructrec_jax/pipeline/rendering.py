"""Renders templates inside a TensorFlow graph within a number of tokens, for training.

SeqIO would cut the tail of a prompt, where the candidates stand. What is dropped and cut instead,
and what is an error, `instructions.token_budget` says. It and `instructions.render` say the same in
plain Python: tests hold both to the same bytes and tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    titles: tf.Tensor, vocabulary: seqio.Vocabulary, max_tokens: int | None
) -> tf.Tensor:
    """Returns titles of at most `max_tokens` tokens, as `token_budget.cut_title`.

    Args:
      titles: [n] plain titles.
      vocabulary: how to tokenise.
      max_tokens: None for no limit.
    """
    if max_tokens is None:
        return titles

    def is_long(titles: tf.Tensor) -> tf.Tensor:
        num_tokens = tf.cast(vocabulary.encode_tf(titles).row_lengths(), tf.int32)
        return (tf.strings.length(titles) >= max_tokens) & (num_tokens > max_tokens)

    def shortened(title: tf.Tensor, parts: tf.Tensor, separator: str) -> tf.Tensor:
        def first(number: tf.Tensor) -> tf.Tensor:
            return tf.strings.reduce_join(parts[:number], separator=separator)

        title, _ = tf.while_loop(
            lambda title, number: (number > 1) & is_long(title[tf.newaxis])[0],
            lambda _, number: (first(number - 1), number - 1),
            (title, tf.size(parts)),
        )
        return title

    def cut(title: tf.Tensor) -> tf.Tensor:
        title = shortened(title, tf.strings.split(title, " "), " ")
        return shortened(title, tf.strings.unicode_split(title, "UTF-8"), "")

    return tf.cond(
        tf.reduce_any(tf.strings.length(titles) >= max_tokens),
        lambda: tf.map_fn(
            lambda title: tf.cond(is_long(title[tf.newaxis])[0], lambda: cut(title), lambda: title),
            titles,
        ),
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

Values = dict[Slot, tf.Tensor]


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
class TokenBudget:
    """Renders one wording within a number of tokens.

    Attributes:
      variant: what is rendered.
      vocabulary: how to tokenise.
      max_tokens: EOS included; None for no limit.
      task: name for messages.
      feature: "inputs" or "targets", whose length `max_tokens` is.
    """

    variant: Variant
    vocabulary: seqio.Vocabulary
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
        fitted = Fitted(self._tokens(values, history), tf.constant(0), tf.constant(0))
        if self.max_tokens is not None and (self._shows_history or self._texts):
            fitted = tf.cond(
                self._fits(fitted.tokens),
                lambda: fitted,
                lambda: self._shorten(values, history, tf.size(fitted.tokens)),
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
    def _shows_history(self) -> bool:
        return Slot.HISTORY in slots_of(self._segments)

    @property
    def _texts(self) -> list[Slot]:
        """The slots whose text may be shortened after the history."""
        return [slot for slot in CUT_TEXTS[self.feature] if slot in slots_of(self._segments)]

    def _shorten(self, values: Values, history: tf.Tensor, num_tokens: tf.Tensor) -> Fitted:
        """Shortens what may be, in the order of the module's head."""
        values = dict(values)
        num_dropped = num_cut = tf.constant(0)
        tokens = tf.zeros([0], tf.int32)
        if self._shows_history:
            num_dropped = self._num_to_drop(values, history, num_tokens)
            history = history[num_dropped:]
            newest = tf.strings.reduce_join(history[-1:])
            older = history[:-1]  # only where all of the history fits

            def with_newest(title: tf.Tensor) -> tf.Tensor:
                titles = tf.concat([older, title[tf.newaxis]], axis=0)
                return self._tokens(values, titles[: tf.size(history)])

            tokens, newest, num_cut = self._cut_words(newest, with_newest)
            history = tf.concat([older, newest[tf.newaxis]], axis=0)[: tf.size(history)]
        for slot in self._texts:

            def with_text(text: tf.Tensor, slot: Slot = slot) -> tf.Tensor:
                return self._tokens({**values, slot: text}, history)

            tokens, values[slot], more = self._cut_words(values[slot], with_text)
            num_cut += more
        return Fitted(tokens, num_dropped, num_cut)

    def _num_to_drop(self, values: Values, history: tf.Tensor, num_tokens: tf.Tensor) -> tf.Tensor:
        """Returns how many of the oldest history items must go; the newest stays."""
        (num_dropped,) = tf.while_loop(
            lambda dropped: (
                (dropped < tf.size(history) - 1)
                & ~self._fits(self._tokens(values, history[dropped:]))
            ),
            lambda dropped: (dropped + 1,),
            (tf.maximum(self._estimated_drops(history, num_tokens), 0),),
        )
        return num_dropped

    def _cut_words(
        self, text: tf.Tensor, tokens_with: Callable[[tf.Tensor], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns tokens, text and number of words cut; one word at least is kept."""
        words = tf.strings.split(text, " ")

        def shortened(num_words: tf.Tensor) -> tf.Tensor:
            return tf.strings.reduce_join(words[:num_words], separator=" ")

        tokens, num_words = tf.while_loop(
            lambda tokens, num_words: ~self._fits(tokens) & (num_words > 1),
            lambda _, num_words: (tokens_with(shortened(num_words - 1)), num_words - 1),
            (tokens_with(text), tf.size(words)),
            shape_invariants=(tf.TensorShape([None]), tf.TensorShape([])),
        )
        return tokens, shortened(num_words), tf.size(words) - num_words

    def _estimated_drops(self, history: tf.Tensor, num_tokens: tf.Tensor) -> tf.Tensor:
        """Returns how many items must go, from the tokens that each of them takes.

        SentencePiece pieces do not cross blanks, so an item with its separator takes the same
        tokens alone as in the prompt; the loop that follows makes sure of it all the same.
        """
        items = tf.strings.join([history, LIST_SEPARATOR.rstrip()])
        sizes = tf.cast(self.vocabulary.encode_tf(items).row_lengths(), tf.int32)
        excess = num_tokens + 1 - self.max_tokens
        num_enough = tf.reduce_sum(tf.cast(tf.cumsum(sizes) < excess, tf.int32)) + 1
        return tf.minimum(num_enough, tf.size(history) - 1)

    def _tokens(self, values: Values, history: tf.Tensor) -> tf.Tensor:
        """Returns the tokens, without EOS, of the instruction with this history."""
        filled = {**values, Slot.HISTORY: join_titles(history)}
        return self.vocabulary.encode_tf(render(self._segments, filled))

    def _fits(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns whether tokens and EOS keep the budget."""
        return tf.size(tokens) + 1 <= self.max_tokens


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
