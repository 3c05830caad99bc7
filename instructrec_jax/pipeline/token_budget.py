"""Fits an instruction into its number of tokens without cutting what the answer depends on.

SeqIO would cut the tail of a prompt, where the candidates stand. Here the oldest history items are
dropped whole, as few as possible, and the newest is kept; then its title is shortened by whole
words. Nothing else is ever cut: what still does not fit is an error that names the example.
"""

import dataclasses

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import LIST_SEPARATOR, Segments, Slot, slots_of
from instructrec_jax.pipeline import rendering
from instructrec_jax.pipeline.vocabulary import EOS_ID

# Begins and ends our message inside the text of a TensorFlow error; the loader takes it out.
ERROR_BEGIN, ERROR_END = "[[instructrec: ", " :instructrec]]"

_WHAT = {
    "inputs": "the instruction without all history that may go",
    "targets": "the answer",
}

Values = dict[Slot, tf.Tensor]


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

    def fit(
        self, values: Values, history: tf.Tensor, example_id: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the instruction's tokens and how many history items had to go.

        Args:
          values: scalar strings of all slots but the history.
          history: [n] plain titles, oldest first.
          example_id: scalar string, for messages.

        Returns:
          tokens [length] int32, EOS included, of the longest rendering that fits; number of
          history items dropped, scalar int32.
        """
        tokens = self._tokens(values, history)
        num_dropped = tf.constant(0)
        if self.max_tokens is not None and Slot.HISTORY in slots_of(self.segments):
            tokens, num_dropped = tf.cond(
                self._fits(tokens) | (tf.size(history) == 0),
                lambda: (tokens, num_dropped),
                lambda: self._shorten(values, history, tf.size(tokens)),
            )
        tokens = with_eos(tokens)
        check = assert_fits(
            tokens,
            self.max_tokens,
            feature=self.feature,
            what=_WHAT[self.feature],
            task=self.task,
            example_id=example_id,
        )
        with tf.control_dependencies(check):
            return tf.identity(tokens), num_dropped

    def _shorten(
        self, values: Values, history: tf.Tensor, num_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Drops history items from the oldest on, then words of the newest title."""
        dropped = self._estimated_drops(history, num_tokens)
        one_row = tf.TensorShape([None])
        tokens, dropped = tf.while_loop(
            lambda tokens, dropped: ~self._fits(tokens) & (dropped < tf.size(history) - 1),
            lambda _, dropped: (self._tokens(values, history[dropped + 1 :]), dropped + 1),
            (self._tokens(values, history[dropped:]), dropped),
            shape_invariants=(one_row, dropped.shape),
        )
        words = tf.strings.split(history[-1], " ")

        def cut_a_word(_: tf.Tensor, num_words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            title = tf.strings.reduce_join(words[: num_words - 1], separator=" ")
            return self._tokens(values, title[tf.newaxis]), num_words - 1

        tokens, _ = tf.while_loop(
            lambda tokens, num_words: ~self._fits(tokens) & (num_words > 1),
            cut_a_word,
            (tokens, tf.size(words)),
            shape_invariants=(one_row, tf.TensorShape([])),
        )
        return tokens, dropped

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
) -> list[tf.Operation]:
    """Returns an operation that fails where a row of tokens is longer than its feature.

    Args:
      tokens: [length] or, padded, [n, length]; EOS included.
      max_tokens: how many the feature may have; None for no limit.
      feature: "inputs" or "targets".
      what: the thing that has to fit, for the message.
      task: name for the message.
      example_id: scalar string for the message.
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
            f"TASK_FEATURE_LENGTHS{ERROR_END}",
        ]
    )
    return [tf.debugging.Assert(num_tokens <= max_tokens, [message])]
