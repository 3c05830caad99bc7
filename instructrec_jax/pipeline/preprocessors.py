"""SeqIO preprocessors: instruction records to tokens, in the three forms of a task.

Beside "inputs" and "targets", the feature lengths may hold "history" (most recent items to show)
and "candidates" (how many to keep, the target among them): they reach the preprocessors with every
run, while a task is registered once.
"""

from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import Query, Slot, Variant
from instructrec_jax.instructions.render import NO, YES
from instructrec_jax.pipeline import rendering
from instructrec_jax.pipeline.token_budget import TokenBudget, assert_fits, with_eos
from instructrec_jax.pipeline.vocabulary import EOS_ID

Record = dict[str, tf.Tensor]
Lengths = Mapping[str, int] | None
Preprocessor = Callable[..., tf.data.Dataset]

QUERY_FIELDS = {
    Query.PREFERENCE: "preference",
    Query.VAGUE: "vague_intention",
    Query.SPECIFIC: "specific_intention",
}


def keep_renderable(variant: Variant) -> Preprocessor:
    """Returns the filter of records that have text for every required slot of the variant."""
    required = variant.template.required_slots

    @tf.autograph.experimental.do_not_convert
    def has_text(record: Record) -> tf.Tensor:
        checks = [tf.constant(True)]
        if Slot.HISTORY in required:
            checks.append(tf.size(record["history"]) > 0)
        if Slot.QUERY in required:
            checks.append(tf.strings.length(_query_text(variant.query, record)) > 0)
        return tf.reduce_all(checks)

    return lambda dataset: dataset.filter(has_text)


def render_pair(variant: Variant, task: str) -> Preprocessor:
    """Returns the preprocessor to `inputs` and `targets`, both [length] int32 ending in EOS.

    Beside them it keeps `example_id` and `num_history_dropped`, for inspection.
    """

    @seqio.map_over_dataset(num_seeds=1)
    @tf.autograph.experimental.do_not_convert
    def render(
        record: Record,
        sequence_length: Lengths,
        output_features: Mapping[str, seqio.Feature],
        seed: tuple[tf.Tensor, tf.Tensor],
    ) -> Record:
        lengths = sequence_length or {}
        vocabulary = output_features["inputs"].vocabulary
        record = arrange(record, lengths, tf.stack(seed))
        values = slot_values(variant, record, tf.stack(seed))
        inputs, num_dropped = _inputs(variant, task, record, values, vocabulary, lengths)
        text = rendering.render(variant.template.target_segments, values)
        targets = with_eos(vocabulary.encode_tf(text))
        check = assert_fits(
            targets,
            lengths.get("targets"),
            feature="targets",
            what="the answer",
            task=task,
            example_id=record["example_id"],
        )
        with tf.control_dependencies(check):
            targets = tf.identity(targets)
        return {
            "inputs": inputs,
            "targets": targets,
            "num_history_dropped": num_dropped,
            "example_id": record["example_id"],
        }

    return render


def render_group(variant: Variant, task: str) -> Preprocessor:
    """Returns the preprocessor to one row an example with its candidates side by side.

    It makes `inputs` [length] and `candidates` [c, length], int32, every row ending in EOS and
    padded with 0; `candidate_ids` and `candidate_num_chars` [c] int32; `target_index` int32, -1
    where the target is not among them; `num_history_dropped` int32; `example_id` string.
    """

    @seqio.map_over_dataset(num_seeds=1)
    @tf.autograph.experimental.do_not_convert
    def render(
        record: Record,
        sequence_length: Lengths,
        output_features: Mapping[str, seqio.Feature],
        seed: tuple[tf.Tensor, tf.Tensor],
    ) -> Record:
        lengths = sequence_length or {}
        vocabulary = output_features["inputs"].vocabulary
        record = arrange(record, lengths, tf.stack(seed))
        values = slot_values(variant, record, tf.stack(seed))
        inputs, num_dropped = _inputs(variant, task, record, values, vocabulary, lengths)
        return {
            "inputs": inputs,
            "candidates": _candidate_tokens(task, record, vocabulary, lengths),
            "candidate_ids": record["candidate_ids"],
            "candidate_num_chars": tf.strings.length(record["candidates"], unit="UTF8_CHAR"),
            "target_index": _target_index(record),
            "num_history_dropped": num_dropped,
            "example_id": record["example_id"],
        }

    return render


def one_row_per_candidate(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Expands groups to SeqIO's rank classification form.

    Example: a group of two candidates, the second the target, as the first example becomes
    `{idx: [0, 0], is_correct: False}` and `{idx: [0, 1], is_correct: True}`, each with the same
    `inputs` and its candidate as `targets`.
    """

    def expand(index: tf.Tensor, group: Record) -> tf.data.Dataset:
        num_candidates = tf.size(group["candidate_ids"])
        places = tf.range(num_candidates)
        rows = {
            "inputs": tf.repeat(group["inputs"][tf.newaxis], num_candidates, axis=0),
            "targets": group["candidates"],
            "idx": tf.stack([tf.repeat(tf.cast(index, tf.int32), num_candidates), places], axis=1),
            "is_correct": places == group["target_index"],
            "example_id": tf.repeat(group["example_id"], num_candidates),
            "candidate_id": group["candidate_ids"],
        }
        return tf.data.Dataset.from_tensor_slices(rows).map(_without_padding)

    return dataset.enumerate().flat_map(expand)


def arrange(record: Record, lengths: Mapping[str, int], seed: tf.Tensor) -> Record:
    """Returns the record with plain titles, the history capped and the candidates in order.

    In training the candidates are in a fresh order each time and, where fewer are asked for, a
    fresh draw; in evaluation they stand as in the record. The order never depends on which of them
    is the target.

    Args:
      record: an instruction record with `is_training`.
      lengths: "history" and "candidates", where the run sets them.
      seed: [2] integer.
    """
    candidate_ids = record["candidate_ids"]
    num_candidates = tf.size(candidate_ids)
    order = tf.cond(
        record["is_training"],
        lambda: tf.argsort(tf.random.stateless_uniform([num_candidates], seed)),
        lambda: tf.range(num_candidates),
    )
    if "candidates" in lengths:
        is_negative = tf.gather(candidate_ids, order) != record["target_id"]
        num_negatives = tf.cumsum(tf.cast(is_negative, tf.int32))
        order = order[~is_negative | (num_negatives < lengths["candidates"])]
    history = record["history"]
    if "history" in lengths:
        history = history[tf.maximum(0, tf.size(history) - lengths["history"]) :]
    return {
        **record,
        "history": rendering.plain_title(history),
        "target": rendering.plain_title(record["target"]),
        "candidate_ids": tf.gather(candidate_ids, order),
        "candidates": rendering.plain_title(tf.gather(record["candidates"], order)),
    }


def slot_values(variant: Variant, record: Record, seed: tf.Tensor) -> dict[Slot, tf.Tensor]:
    """Returns the scalar string of every slot but the history.

    Args:
      variant: decides what the query is.
      record: an arranged record.
      seed: [2] integer; decides which candidate a pointwise template asks about.
    """
    values = {
        Slot.CANDIDATES: rendering.join_titles(record["candidates"]),
        Slot.QUERY: _query_text(variant.query, record),
        Slot.TARGET: record["target"],
    }
    if Slot.CANDIDATE in variant.template.required_slots:
        place = _asked_about(record, seed)
        values[Slot.CANDIDATE] = record["candidates"][place]
        values[Slot.ANSWER] = tf.where(place == _target_index(record), YES, NO)
    return values


def _asked_about(record: Record, seed: tf.Tensor) -> tf.Tensor:
    """Returns the place of the target or of a negative, one time in two each."""
    example = tf.strings.to_hash_bucket_fast(record["example_id"], 2**31 - 1)
    fixed = tf.stack([example, tf.constant(0, tf.int64)])
    seed = tf.where(record["is_training"], tf.cast(seed, tf.int64), fixed)
    is_negative = tf.random.stateless_uniform([], seed) < 0.5
    num_candidates = tf.size(record["candidate_ids"])
    step = tf.random.stateless_uniform(
        [], seed, minval=1, maxval=tf.maximum(num_candidates, 2), dtype=tf.int32
    )
    step = tf.where(is_negative, step, 0)
    return (_target_index(record) + step) % num_candidates


def _target_index(record: Record) -> tf.Tensor:
    """Returns the target's place among the candidates, scalar int32; -1 if it is not there."""
    is_target = record["candidate_ids"] == record["target_id"]
    place = tf.argmax(tf.cast(is_target, tf.int32), output_type=tf.int32)
    return tf.where(tf.reduce_any(is_target), place, -1)


def _inputs(
    variant: Variant,
    task: str,
    record: Record,
    values: dict[Slot, tf.Tensor],
    vocabulary: seqio.Vocabulary,
    lengths: Mapping[str, int],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the instruction's tokens and the number of history items dropped for them."""
    budget = TokenBudget(
        segments=variant.template.input_segments,
        vocabulary=vocabulary,
        max_tokens=lengths.get("inputs"),
        task=task,
    )
    return budget.fit(values, record["history"], record["example_id"])


def _candidate_tokens(
    task: str, record: Record, vocabulary: seqio.Vocabulary, lengths: Mapping[str, int]
) -> tf.Tensor:
    """Returns [c, length] tokens of the candidates, each ending in EOS, padded with 0."""
    ragged = vocabulary.encode_tf(record["candidates"])
    ends = tf.fill([tf.size(record["candidates"]), 1], EOS_ID)
    tokens = tf.concat([ragged, ends], axis=1).to_tensor()
    check = assert_fits(
        tokens,
        lengths.get("targets"),
        feature="targets",
        what="a candidate",
        task=task,
        example_id=record["example_id"],
    )
    with tf.control_dependencies(check):
        return tf.identity(tokens)


def _query_text(query: Query | None, record: Record) -> tf.Tensor:
    """Returns the text of the query slot, "" where the record has none."""
    if query is None:
        return tf.constant("")
    text = record[QUERY_FIELDS[query]]
    if query is not Query.SPECIFIC:
        text = tf.strings.reduce_join(text[:1])  # the first of the teacher's texts, if any
    return rendering.plain_text(text)


def _without_padding(row: Record) -> Record:
    """Returns the row with the padding of its targets removed, as SeqIO's converters expect."""
    return {**row, "targets": row["targets"][: tf.math.count_nonzero(row["targets"])]}
