"""Batches as numpy dictionaries, by the contract of DESIGN.md section 5.

Everything is a function of its arguments: the same call gives the same batches, and a stream that
is told how many examples have been read gives the tail of the uninterrupted one.
"""

import copy
import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import seqio
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import registry, training_rows
from instructrec_jax.pipeline.record_store import hide_accelerators
from instructrec_jax.pipeline.registry import GROUP_FIELDS, InstructionTask
from instructrec_jax.pipeline.rendering import ERROR_BEGIN, ERROR_END
from instructrec_jax.pipeline.training_rows import Selection

Batch = dict[str, np.ndarray]
_OUR_ERROR = re.compile(re.escape(ERROR_BEGIN) + "(.*?)" + re.escape(ERROR_END), re.DOTALL)
_FEW_CORES = 8
_DRAWS = 4096  # of a mixture, counted at once
# What an example tells of itself beside its features, where it is no example of ours.
_UNKNOWN = {"num_history_dropped": 0, "num_titles_cut": 0, "num_words_cut": 0, "example_id": ""}


class Batches(Iterator[Batch]):
    """An endless stream of batches that knows how far it has been read.

    Attributes:
      num_examples: examples of this process that have been read so far.
    """

    def __init__(
        self, batches: Iterable[Batch], *, num_examples: int, count: Callable[[Batch], int]
    ) -> None:
        """Begins after `num_examples`; `count` gives the examples of a batch."""
        self._batches, self._count = iter(batches), count
        self.num_examples = num_examples

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.num_examples += self._count(batch)
        return batch


def training_batches(
    mixture: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    pack: bool,
    num_examples_read: int = 0,
    process: tuple[int, int] = (0, 1),
    use_cached: bool = False,
) -> Batches:
    """Returns an endless stream of batches for maximum-likelihood training.

    Args:
      mixture: name of a registered task or mixture of `inputs` and `targets`.
      feature_lengths: tokens of "inputs" and "targets"; optionally "history" and "candidates",
        how many items of each to use.
      batch_size: rows of this process.
      seed: of order and draws.
      pack: whether several examples share a row.
      num_examples_read: where to begin: `Batches.num_examples` of the stream that stopped. They are
        left out before they are rendered, but for some of those packed last, at most as many as a
        row has tokens.
      process: index of this process and number of processes, each of which renders a share of every
        task's examples.
      use_cached: read tasks from elsewhere as SeqIO has cached them.

    Returns:
      int32 arrays: `encoder_input_tokens` [batch, inputs]; `decoder_input_tokens`,
      `decoder_target_tokens`, `decoder_loss_weights` [batch, targets]; packed also
      `encoder_segment_ids`, `encoder_positions` [batch, inputs] and `decoder_segment_ids`,
      `decoder_positions` [batch, targets]. `example_id` str [batch, most examples in a row].
    """
    lengths = {name: feature_lengths[name] for name in ("inputs", "targets")}
    # As in SeqIO, rows are packed of so many examples at a time: enough for a full row.
    size = max(lengths.values()) if pack else batch_size
    num_packed = num_examples_read % size if pack else 0
    ds = _endless(
        mixture,
        feature_lengths,
        _selection(process, num_examples_read - num_packed),
        seed=seed,
        extra_fields=("example_id",),
        use_cached=use_cached,
    )
    ds = ds.map(lambda example: {name: example[name] for name in (*lengths, "example_id")})
    groups = numpy_batches(ds.padded_batch(size))
    as_rows = training_rows.packed_rows if pack else training_rows.single_rows
    rows = _without_first((as_rows(group, lengths) for group in groups), num_packed)
    return Batches(
        training_rows.rebatched(rows, batch_size),
        num_examples=num_examples_read,
        count=lambda batch: int(training_rows.num_examples(batch).sum()),
    )


def _without_first(parts: Iterator[Batch], number: int) -> Iterator[Batch]:
    """Returns parts without the rows that hold the first examples."""
    if not number:
        return parts
    first = next(parts)
    is_left = np.cumsum(training_rows.num_examples(first)) > number
    return itertools.chain([{name: rows[is_left] for name, rows in first.items()}], parts)


def ranking_training_batches(
    task_or_mixture: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    num_candidates: int,
    seed: int,
    buckets: Sequence[int] = (),
    num_examples_read: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Batches:
    """Returns an endless stream of batches with the candidates of each example side by side.

    Every pass shows fresh negatives in a fresh order.

    Args:
      task_or_mixture: a ranking task or mixture, with or without ".grouped".
      feature_lengths: tokens of "inputs" and "targets"; optionally "history", items to show.
      batch_size: rows of this process.
      num_candidates: how many to keep of each example, the target among them.
      seed: of order and draws.
      buckets: lengths to which the inputs may be trimmed, by the longest row of the batch.
      num_examples_read: where to begin, see `training_batches`.
      process: index of this process and number of processes.

    Returns:
      `encoder_input_tokens` [batch, inputs]; `candidate_tokens` [batch, candidates, targets], 0
      for padding; `candidate_ids` [batch, candidates], -1 for padding; `candidate_num_chars`
      [batch, candidates]; `target_index`, `num_history_dropped` [batch]; all int32; `example_id`
      [batch] str.
    """
    ds = _endless(
        registry.grouped_name(task_or_mixture),
        {**feature_lengths, "candidates": num_candidates},
        _selection(process, num_examples_read),
        seed=seed,
        extra_fields=GROUP_FIELDS,
    )
    batches = numpy_batches(_padded_groups(ds, feature_lengths, batch_size, num_candidates))
    return Batches(
        (_contract_batch(batch, buckets) for batch in batches),
        num_examples=num_examples_read,
        count=lambda _: batch_size,
    )


def examples(
    task_or_mixture: str,
    *,
    split: str,
    feature_lengths: Mapping[str, int] | None = None,
    seed: int | None = None,
) -> Iterator[Batch]:
    """Returns the single examples of a task or mixture, one pass.

    Args:
      task_or_mixture: its name.
      split: split of the dataset.
      feature_lengths: as for `training_batches`; None for no limit.
      seed: of order and draws; None for file order.

    Returns:
      `inputs`, `targets` [length] int32, ending in EOS and not padded; `num_history_dropped`,
      `num_titles_cut`, `num_words_cut` int32; `example_id` bytes, b"" for those of SeqIO tasks from
      elsewhere. Of a grouped one `candidates` [c, length], 0 for padding, and `target_index` int32
      in place of `targets`.
    """
    hide_accelerators()
    return numpy_batches(_examples(task_or_mixture, split, feature_lengths, seed))


def numpy_batches(ds: tf.data.Dataset) -> Iterator[Batch]:
    """Yields the dataset's elements as numpy dictionaries, a few ahead of the reader.

    Args:
      ds: a dataset of dictionaries.

    Raises:
      UserError: where an example does not fit, as `rendering` says it.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.threading.max_intra_op_parallelism = 1
    # Every map uses all cores, up to 16, without tuning, which on two cores took a quarter of the
    # processor time (measured); it pays where there are many.
    options.autotune.enabled = (os.cpu_count() or 1) > _FEW_CORES
    misfit = tf.errors.InvalidArgumentError  # a name of its own: modules go first at exit
    try:
        yield from ds.with_options(options).prefetch(4).as_numpy_iterator()
    except misfit as error:
        raise _user_error(error) from None


def _user_error(error: tf.errors.InvalidArgumentError) -> UserError:
    """Returns our message inside an error of TensorFlow; another error is raised as it is."""
    found = _OUR_ERROR.search(str(error))
    if not found:
        raise error
    escaped = found[1].encode("ascii", "backslashreplace")  # TensorFlow escapes the rest
    text = escaped.decode("unicode_escape").encode("latin-1", "replace")
    return UserError(text.decode("utf-8", "replace"))


def _examples(
    name: str, split: str, feature_lengths: Mapping[str, int] | None, seed: int | None
) -> tf.data.Dataset:
    """Returns the single examples of a task or mixture, with what there is to know of them."""
    provider = registry.get_for(split, name)
    told = (*_UNKNOWN, *(("target_index",) if name.endswith(f".{registry.GROUPED}") else ()))
    options: dict[str, Any] = {
        "split": split,
        "shuffle": seed is not None,
        "seed": 0 if seed is None else seed,
        "num_epochs": 1,
    }
    if isinstance(provider, seqio.Mixture):
        provider = _filled(provider)
        options["passthrough_features"] = told
    ds = provider.get_dataset(feature_lengths and dict(feature_lengths), **options)
    names = (*provider.output_features, *told)
    return ds.map(lambda example: {name: ({**_UNKNOWN, **example})[name] for name in names})


def _filled(mixture: seqio.Mixture) -> seqio.Mixture:
    """Returns a mixture whose tasks all tell what ours do, so that SeqIO can mix them.

    Those of tasks from elsewhere tell that it is unknown.
    """
    filled = copy.copy(mixture)

    def get_task_dataset(*args: Any, **kwargs: Any) -> tf.data.Dataset:
        ds = mixture.get_task_dataset(*args, **kwargs)
        return ds.map(lambda example: {**_UNKNOWN, **example})

    filled.get_task_dataset = get_task_dataset
    return filled


def _selection(process: tuple[int, int], num_skipped: int) -> Selection:
    index, num_shares = process
    return Selection(index=index, num_shares=num_shares, num_skipped=num_skipped)


def _endless(
    name: str,
    lengths: Mapping[str, int],
    selection: Selection,
    *,
    seed: int,
    extra_fields: Sequence[str],
    use_cached: bool = False,
) -> tf.data.Dataset:
    """Returns the endless, shuffled training examples of a task or mixture, with extra fields."""
    hide_accelerators()
    provider = registry.get_for("train", name)
    options: dict[str, Any] = {
        "split": "train",
        "shuffle": True,
        "seed": seed,
        "num_epochs": None,
        "use_cached": use_cached,
    }
    try:
        if not isinstance(provider, seqio.Mixture):
            ds = _task_dataset(provider, lengths, selection, **options)
            return ds.map(lambda example: {**_UNKNOWN, **example})
        mixture = _selected_mixture(_filled(provider), selection, split="train", seed=seed)
        return mixture.get_dataset(lengths, passthrough_features=extra_fields, **options)
    except AssertionError as error:
        if not use_cached:
            raise
        raise UserError(
            f"USE_CACHED_TASKS is True, but {str(error).rstrip('.')}; cache the task with "
            "`seqio_cache_tasks` and name the folder with `seqio.add_global_cache_dirs` in "
            "MIXTURE_OR_TASK_MODULE, or set USE_CACHED_TASKS to False"
        ) from None


def _task_dataset(
    task: seqio.Task, lengths: Mapping[str, int], selection: Selection, **options: Any
) -> tf.data.Dataset:
    """Returns a task's dataset of the selection, as `seqio.Task.get_dataset` otherwise."""
    if isinstance(task, InstructionTask):
        return task.get_dataset({**lengths, **selection.lengths()}, **options)
    return selection(task.get_dataset(lengths, **options))


def _selected_mixture(
    mixture: seqio.Mixture, selection: Selection, *, split: str, seed: int
) -> seqio.Mixture:
    """Returns an endless mixture that begins where `num_skipped` of its examples have been read.

    SeqIO draws a task for each example, whatever the tasks hold: the draws that were made say how
    many examples of each task were read.
    """
    tasks = [task for task in mixture.tasks if split in task.splits]
    rates = [float(mixture.get_rate(task)) for task in tasks]
    numbers = [tf.data.Dataset.from_tensors(tf.constant(i, tf.int64)) for i in range(len(tasks))]
    draws = mixture._sample_fn([number.repeat() for number in numbers], rates, seed)
    num_read = np.zeros(len(tasks), np.int64)
    for drawn in draws.take(selection.num_skipped).batch(_DRAWS).as_numpy_iterator():
        num_read += np.bincount(drawn, minlength=len(tasks))
    skipped = {task.name: int(number) for task, number in zip(tasks, num_read, strict=True)}
    draws = draws.skip(selection.num_skipped)
    selected = copy.copy(mixture)

    def get_task_dataset(task: seqio.Task, keys: Any, lengths: Any, *options: Any) -> Any:
        own = dataclasses.replace(selection, num_skipped=skipped[task.name])
        if isinstance(task, InstructionTask):
            return mixture.get_task_dataset(task, keys, {**lengths, **own.lengths()}, *options)
        return own(mixture.get_task_dataset(task, keys, lengths, *options))

    selected.get_task_dataset = get_task_dataset
    selected._sample_fn = lambda datasets, *_: tf.data.Dataset.choose_from_datasets(datasets, draws)
    return selected


def _padded_groups(
    ds: tf.data.Dataset,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    num_candidates: int,
) -> tf.data.Dataset:
    """Batches groups, padded to the feature lengths."""
    shapes = {
        "inputs": [feature_lengths["inputs"]],
        "candidates": [num_candidates, feature_lengths["targets"]],
        "candidate_ids": [num_candidates],
        "candidate_num_chars": [num_candidates],
        "target_index": [],
        "num_history_dropped": [],
        "example_id": [],
    }
    padding = {name: 0 for name in shapes} | {"candidate_ids": -1, "example_id": ""}
    ds = ds.map(lambda group: {name: group[name] for name in shapes})
    padding = {
        name: tf.constant(value, ds.element_spec[name].dtype) for name, value in padding.items()
    }
    return ds.padded_batch(batch_size, padded_shapes=shapes, padding_values=padding)


def _contract_batch(batch: Batch, buckets: Sequence[int]) -> Batch:
    """Returns a batch under the contract's names, its inputs trimmed."""
    return {
        "encoder_input_tokens": _trimmed(batch["inputs"], buckets),
        "candidate_tokens": batch["candidates"],
        "candidate_ids": batch["candidate_ids"],
        "candidate_num_chars": batch["candidate_num_chars"],
        "target_index": batch["target_index"],
        "num_history_dropped": batch["num_history_dropped"],
        "example_id": training_rows.decoded(batch["example_id"]),
    }


def _trimmed(tokens: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
    """Returns [batch, length] tokens cut to the smallest bucket that holds the longest row."""
    used = np.flatnonzero(tokens.any(axis=0))
    longest = int(used[-1]) + 1 if len(used) else 0
    fitting = [bucket for bucket in buckets if longest <= bucket < tokens.shape[1]]
    return tokens[:, : min(fitting)] if fitting else tokens


def check_records(name: str, split: str) -> int:
    """Opens the records of a task or mixture of ours, each kind once.

    Returns:
      The number of its examples, those of tasks from elsewhere as far as they say it.

    Raises:
      UserError: if it is not registered, has no examples in the split, or its records are damaged.
    """
    tasks = [
        task for task in seqio.get_subtasks(registry.get_for(split, name)) if split in task.splits
    ]
    kinds = {task.config: task for task in tasks if isinstance(task, registry.InstructionTask)}
    for task in kinds.values():
        task.source.open(split)
    return sum(task.source.num_input_examples(split) or 0 for task in tasks)
