"""Renders templates inside a TensorFlow graph, from the same parsed segments as plain Python.

`instructions.render` is the oracle: tests hold both to the same bytes.
"""

from collections.abc import Mapping

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
)


def plain_text(text: tf.Tensor) -> tf.Tensor:
    """Returns texts in one line each, as `language.plain_text`; any shape, string."""
    return tf.strings.strip(tf.strings.regex_replace(text, BLANKS, " "))


def plain_title(title: tf.Tensor) -> tf.Tensor:
    """Returns titles as prompts and targets spell them, as `language.plain_title`; any shape."""
    return tf.strings.regex_replace(plain_text(title), LIST_SEPARATOR, SEPARATOR_STAND_IN)


def join_titles(titles: tf.Tensor) -> tf.Tensor:
    """Returns [n] plain titles as one list, a scalar string."""
    return tf.strings.reduce_join(titles, separator=LIST_SEPARATOR)


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
