"""SeqIO preprocessors: instruction records to tokens, in the three forms of a task.

Beside "inputs" and "targets", the feature lengths may hold "history" (most recent items to show),
"candidates" (how many to keep, the target among them), "title" (most tokens of a title) and
"preference" (1: the optional clause appears, 0: it does not; without it, half of the time in
training and never in evaluation): they reach the preprocessors with every run, while a task is
registered once.
"""

from collections.abc import Callable, Mapping

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import QUERY_FIELDS, Query, Slot, Variant
from instructrec_jax.instructions.render import NO, NUM_ANSWER_TITLES, YES
from instructrec_jax.instructions.token_budget import title_limit
from instructrec_jax.pipeline import rendering
from instructrec_jax.pipeline.rendering import BudgetedRenderer, Fitted, assert_fits
from instructrec_jax.tokenizer import EOS_ID

Record = dict[str, tf.Tensor]
Lengths = Mapping[str, int] | None
Preprocessor = Callable[..., tf.data.Dataset]
Form = Callable[..., Record]  # of a record, `pair` or `group` of one variant and task
# One seed a purpose, so that no draw tells of another.
_CANDIDATE, _IS_NEGATIVE, _IS_FIRST, _TEXT, _STATES_PREFERENCE = range(1, 6)


def keep_renderable(variant: Variant) -> Preprocessor:
    """Returns the filter of records that have text for every required slot of the variant."""

    @tf.autograph.experimental.do_not_convert
    def has_text(record: Record) -> tf.Tensor:
        texts = [tf.strings.reduce_join(record[name]) for name in sorted(variant.needs)]
        return tf.reduce_all([tf.constant(True), *(tf.strings.length(text) > 0 for text in texts)])

    return lambda dataset: dataset.filter(has_text)


def render(form: Form) -> Preprocessor:
    """Returns the preprocessor that makes an example of each record: a `pair` or a `group`."""

    def over_records(
        dataset: tf.data.Dataset,
        sequence_length: Lengths,
        output_features: Mapping[str, seqio.Feature],
    ) -> tf.data.Dataset:
        how = {
            "vocabulary": output_features["inputs"].vocabulary,
            "lengths": sequence_length or {},
        }

        @tf.autograph.experimental.do_not_convert
        def rendered(record: Record) -> Record:
            return form(record, **how, seed=record["seed"])

        return _with_seed(dataset).map(rendered, num_parallel_calls=tf.data.AUTOTUNE)

    return over_records


@seqio.map_over_dataset(num_seeds=1)
def _with_seed(record: Record, seed: tuple[tf.Tensor, tf.Tensor]) -> Record:
    return {**record, "seed": tf.stack(seed)}


def pair(
    record: Record,
    variant: Variant,
    task: str,
    *,
    vocabulary: seqio.SentencePieceVocabulary,
    lengths: Mapping[str, int],
    seed: tf.Tensor,
) -> Record:
    """Returns `inputs` and `targets` of a record, both [length] int32 ending in EOS.

    Beside them stand `example_id`, `num_history_dropped`, `num_titles_cut` and `num_words_cut`.
    """
    record = arrange(record, lengths, seed, vocabulary)
    values = slot_values(variant, record, lengths, seed)
    how = {"values": values, "vocabulary": vocabulary, "lengths": lengths}
    inputs = fit("inputs", variant, task, record, **how)
    targets = fit("targets", variant, task, record, **how)
    return {
        "inputs": inputs.tokens,
        "targets": targets.tokens,
        "num_history_dropped": inputs.num_history_dropped,
        "num_titles_cut": record["num_titles_cut"],
        "num_words_cut": inputs.num_words_cut + targets.num_words_cut,
        "example_id": record["example_id"],
    }


def group(
    record: Record,
    variant: Variant,
    task: str,
    *,
    vocabulary: seqio.SentencePieceVocabulary,
    lengths: Mapping[str, int],
    seed: tf.Tensor,
) -> Record:
    """Returns one row of a record with its candidates side by side.

    It holds `inputs` [length] and `candidates` [c, length], int32, every row ending in EOS and
    padded with 0; `candidate_ids` and `candidate_num_chars` [c] int32; `target_index` int32, -1
    where the target is not among them; `num_history_dropped`, `num_titles_cut`, `num_words_cut`
    int32; `example_id` string.
    """
    record = arrange(record, lengths, seed, vocabulary)
    values = slot_values(variant, record, lengths, seed)
    how = {"values": values, "vocabulary": vocabulary, "lengths": lengths}
    inputs = fit("inputs", variant, task, record, **how)
    return {
        "inputs": inputs.tokens,
        "candidates": _candidate_tokens(variant, task, record, vocabulary, lengths),
        "candidate_ids": record["candidate_ids"],
        "candidate_num_chars": tf.strings.length(record["candidates"], unit="UTF8_CHAR"),
        "target_index": _target_index(record),
        "num_history_dropped": inputs.num_history_dropped,
        "num_titles_cut": record["num_titles_cut"],
        "num_words_cut": inputs.num_words_cut,
        "example_id": record["example_id"],
    }


def one_row_per_candidate(variant: Variant) -> Preprocessor:
    """Returns a function that expands groups to SeqIO's rank classification form.

    Example: a group of two candidates, the second the target, as the first example becomes
    `{idx: [0, 0], is_correct: False}` and `{idx: [0, 1], is_correct: True}`, each with the same
    `inputs` and its candidate as `targets`.

    Args:
      variant: each row names its family and its kind of query, "none" where it takes none, for
        readers of T5X's scores.
    """
    family, query = variant.template.family, str(variant.query or "none")

    def expand(index: tf.Tensor, group: Record) -> tf.data.Dataset:
        num_candidates = tf.size(group["candidate_ids"])
        indices = tf.range(num_candidates)
        rows = {
            "inputs": tf.repeat(group["inputs"][tf.newaxis], num_candidates, axis=0),
            "targets": group["candidates"],
            "idx": tf.stack([tf.repeat(tf.cast(index, tf.int32), num_candidates), indices], axis=1),
            "is_correct": indices == group["target_index"],
            "example_id": tf.repeat(group["example_id"], num_candidates),
            "candidate_id": group["candidate_ids"],
            "candidate_num_chars": group["candidate_num_chars"],
            "family": tf.repeat(family, num_candidates),
            "query": tf.repeat(query, num_candidates),
        }
        return tf.data.Dataset.from_tensor_slices(rows).map(_without_padding)

    return lambda dataset: dataset.enumerate().flat_map(expand)


def arrange(
    record: Record,
    lengths: Mapping[str, int],
    seed: tf.Tensor,
    vocabulary: seqio.SentencePieceVocabulary,
) -> Record:
    """Returns the record with plain and cut titles, capped history and candidates in order.

    In training the candidates are in a fresh order each time and, where fewer are asked for, a
    fresh draw; in evaluation they stand as in the record. The order never depends on which of them
    is the target. Beside its own fields stands `num_titles_cut`.

    Args:
      record: an instruction record with `is_training`.
      lengths: "history", "candidates", and what `token_budget.title_limit` reads, where the run
        sets them.
      seed: [2] integer.
      vocabulary: how to tokenise.
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
    limit = title_limit(lengths)
    candidates = tf.gather(record["candidates"], order)
    parts = [tf.size(history), tf.size(candidates), 1]
    titles = tf.concat([history, candidates, record["target"][tf.newaxis]], axis=0)
    plain = rendering.plain_title(titles)
    cut = rendering.cut_titles(plain, vocabulary, limit)
    (history, shown, target), (_, whole, _) = (
        tf.split(cut, parts, num=3),
        tf.split(plain, parts, num=3),
    )
    with tf.control_dependencies(
        rendering.assert_distinct(whole, shown, limit, example_id=record["example_id"])
    ):
        return {
            **record,
            "history": history,
            "target": target[0],
            "candidate_ids": tf.gather(candidate_ids, order),
            "candidates": tf.identity(shown),
            # That of the target is counted where it is a candidate.
            "num_titles_cut": tf.reduce_sum(tf.cast(plain[:-1] != cut[:-1], tf.int32)),
        }


def slot_values(
    variant: Variant, record: Record, lengths: Mapping[str, int], seed: tf.Tensor
) -> dict[Slot, tf.Tensor]:
    """Returns the scalar string of every slot but the history.

    Args:
      variant: decides what the query is.
      record: an arranged record.
      lengths: "preference", where the run sets it.
      seed: [2] integer; decides what `render.Draw` holds.
    """
    required = variant.template.required_slots
    values = {
        Slot.CANDIDATES: rendering.join_titles(record["candidates"]),
        Slot.QUERY: _query_text(variant.query, record, seed),
        Slot.CONTEXT: rendering.plain_text(record["context"]),
        Slot.TARGET: record["target"],
    }
    if Slot.PREFERENCE in required:
        values[Slot.PREFERENCE] = _one_of(record["preference"], record, seed)
    elif variant.may_state_preference:
        text = _one_of(record["preference"], record, seed)
        values[Slot.PREFERENCE] = tf.where(_states_preference(record, lengths, seed), text, "")
    if Slot.CANDIDATE in required:
        is_negative = _uniform(record, seed, _IS_NEGATIVE) < 0.5
        index = tf.where(is_negative, _negative(record, seed), _target_index(record))
        values[Slot.CANDIDATE] = record["candidates"][index]
        values[Slot.ANSWER] = tf.where(is_negative, NO, YES)
    if Slot.FIRST in required:
        pair = tf.stack([record["target"], record["candidates"][_negative(record, seed)]])
        index = tf.cast(_uniform(record, seed, _IS_FIRST) < 0.5, tf.int32)
        values[Slot.FIRST], values[Slot.SECOND] = pair[index], pair[1 - index]
    return values


def _negative(record: Record, seed: tf.Tensor) -> tf.Tensor:
    """Returns the index of a random candidate that is not the target."""
    num_candidates = tf.size(record["candidate_ids"])
    share = _uniform(record, seed, _CANDIDATE)
    step = 1 + tf.cast(share * tf.cast(num_candidates - 1, tf.float32), tf.int32)
    return (_target_index(record) + step) % num_candidates


def _states_preference(
    record: Record, lengths: Mapping[str, int], seed: tf.Tensor
) -> tf.Tensor | bool:
    """Returns whether the optional clause appears."""
    if "preference" in lengths:
        return bool(lengths["preference"])
    return record["is_training"] & (_uniform(record, seed, _STATES_PREFERENCE) < 0.5)


def _uniform(record: Record, seed: tf.Tensor, purpose: int) -> tf.Tensor:
    """Returns a number in [0, 1): fresh each time in training, the example's own in evaluation."""
    example = tf.strings.to_hash_bucket_fast(record["example_id"], 2**31 - 1)
    fixed = tf.stack([example, tf.constant(0, tf.int64)])
    seed = tf.where(record["is_training"], tf.cast(seed, tf.int64), fixed)
    return tf.random.stateless_uniform([], tf.random.experimental.stateless_fold_in(seed, purpose))


def _target_index(record: Record) -> tf.Tensor:
    """Returns the target's index among the candidates, scalar int32; -1 if it is not there."""
    is_target = record["candidate_ids"] == record["target_id"]
    index = tf.argmax(tf.cast(is_target, tf.int32), output_type=tf.int32)
    return tf.where(tf.reduce_any(is_target), index, -1)


def fit(
    feature: str,
    variant: Variant,
    task: str,
    record: Record,
    *,
    values: dict[Slot, tf.Tensor],
    vocabulary: seqio.SentencePieceVocabulary,
    lengths: Mapping[str, int],
) -> Fitted:
    """Returns the instruction ("inputs") or the answer ("targets") within its budget.

    Args:
      feature: which of the two; the history in an answer is that of its last titles.
      variant: what is rendered.
      task: name for messages.
      record: an arranged record.
      values: of all slots but the history, see `slot_values`.
      vocabulary: how to tokenise.
      lengths: tokens of the feature, no limit where it is not there.
    """
    renderer = BudgetedRenderer(
        variant=variant,
        vocabulary=vocabulary,
        max_tokens=lengths.get(feature),
        task=task,
        feature=feature,
    )
    is_answer = feature == "targets"
    history = record["history"][-NUM_ANSWER_TITLES:] if is_answer else record["history"]
    return renderer.fit(values, history, record["example_id"])


def _candidate_tokens(
    variant: Variant,
    task: str,
    record: Record,
    vocabulary: seqio.SentencePieceVocabulary,
    lengths: Mapping[str, int],
) -> tf.Tensor:
    """Returns [c, length] tokens of the candidates, each ending in EOS, padded with 0."""
    ragged = vocabulary.encode_tf(record["candidates"])
    ends = tf.fill([tf.size(record["candidates"]), 1], EOS_ID)
    tokens = tf.concat([ragged, ends], axis=1).to_tensor()
    check = assert_fits(
        tokens,
        lengths.get("targets"),
        variant,
        "candidates",
        task=task,
        example_id=record["example_id"],
    )
    with tf.control_dependencies(check):
        return tf.identity(tokens)


def _query_text(query: Query | None, record: Record, seed: tf.Tensor) -> tf.Tensor:
    """Returns the text of the query slot, "" where the record has none."""
    if query is None:
        return tf.constant("")
    if query is Query.SPECIFIC:
        return rendering.plain_text(record[QUERY_FIELDS[query]])
    return _one_of(record[QUERY_FIELDS[query]], record, seed)


def _one_of(texts: tf.Tensor, record: Record, seed: tf.Tensor) -> tf.Tensor:
    """Returns one of [k] texts, the first in evaluation; "" if there is none."""
    number = tf.cast(tf.size(texts), tf.float32)
    index = tf.cast(_uniform(record, seed, _TEXT) * number, tf.int32)
    index = tf.where(record["is_training"], index, 0)
    return rendering.plain_text(tf.strings.reduce_join(texts[index : index + 1]))


def _without_padding(row: Record) -> Record:
    """Returns the row with the padding of its targets removed, as SeqIO's converters expect."""
    return {**row, "targets": row["targets"][: tf.math.count_nonzero(row["targets"])]}
