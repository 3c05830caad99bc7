"""Fits an instruction into its number of tokens without cutting what the answer depends on.

SeqIO would cut the tail of a prompt, where the candidates stand. Here the oldest history items are
dropped whole, as few as possible, and the newest is kept; then its title is shortened by whole
words. In an answer, a teacher's text or a query is shortened next. Nothing else is ever cut: what
still does not fit is an error that names the example.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import LIST_SEPARATOR, Segments, Slot, slots_of
from instructrec_jax.pipeline import rendering
from instructrec_jax.tokenizer import EOS_ID

# Begins and ends our message inside the text of a TensorFlow error; the loader takes it out.
ERROR_BEGIN, ERROR_END = "[[instructrec: ", " :instructrec]]"

_WHAT = {
    "inputs": "the instruction without all history that may go",
    "targets": "the answer",
}
_FEWER_CANDIDATES = (
    ', or show fewer candidates: "candidates" there says how many, and scoring with '
    "CANDIDATE_VIEW = @candidate_views.Groups() shows only candidate_views.Groups.size of them "
    "at a time"
)

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
      segments: the parsed wording of the instruction or of the answer.
      vocabulary: how to tokenise.
      max_tokens: EOS included; None for no limit.
      task: name for messages.
      feature: "inputs" or "targets", whose length `max_tokens` is.
    """

    segments: Segments
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
            feature=self.feature,
            what=_WHAT[self.feature],
            task=self.task,
            example_id=example_id,
            remedy=_FEWER_CANDIDATES if Slot.CANDIDATES in slots_of(self.segments) else "",
        )
        with tf.control_dependencies(check):
            return fitted._replace(tokens=tf.identity(tokens))

    @property
    def _shows_history(self) -> bool:
        return Slot.HISTORY in slots_of(self.segments)

    @property
    def _texts(self) -> list[Slot]:
        """The slots whose text may be shortened after the history: those of an answer alone."""
        texts = (Slot.PREFERENCE, Slot.QUERY) if self.feature == "targets" else ()
        return [slot for slot in texts if slot in slots_of(self.segments)]

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
        filled = {**values, Slot.HISTORY: rendering.join_titles(history)}
        return self.vocabulary.encode_tf(rendering.render(self.segments, filled))

    def _fits(self, tokens: tf.Tensor) -> tf.Tensor:
        """Returns whether tokens and EOS keep the budget."""
        return tf.size(tokens) + 1 <= self.max_tokens


def with_eos(tokens: tf.Tensor) -> tf.Tensor:
    """Returns [length + 1] tokens that end in EOS."""
    return tf.concat([tokens, [EOS_ID]], axis=0)


def assert_fits(
    tokens: tf.Tensor,
    max_tokens: int | None,
    *,
    feature: str,
    what: str,
    task: str,
    example_id: tf.Tensor,
    remedy: str = "",
) -> list[tf.Operation]:
    """Returns an operation that fails where a row of tokens is longer than its feature.

    Args:
      tokens: [length] or, padded, [n, length]; EOS included.
      max_tokens: how many the feature may have; None for no limit.
      feature: "inputs" or "targets".
      what: the thing that has to fit, for the message.
      task: name for the message.
      example_id: scalar string for the message.
      remedy: what helps beside more tokens, for the message.
    """
    if max_tokens is None:
        return []
    num_tokens = tf.shape(tokens)[-1]
    message = tf.strings.join(
        [
            f"{ERROR_BEGIN}task {task}, example ",
            example_id,
            f": {what} needs ",
            tf.strings.as_string(num_tokens),
            f" tokens and the feature length of {feature} is {max_tokens}; raise it in "
            f"TASK_FEATURE_LENGTHS{remedy}{ERROR_END}",
        ]
    )
    return [tf.debugging.Assert(num_tokens <= max_tokens, [message])]
