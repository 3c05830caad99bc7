"""Batches as numpy dictionaries, by the contract of DESIGN.md section 5.

Everything is a function of its arguments: the same call gives the same batches, whatever the number
of processes and threads, and a stream may begin at any position of another one.
"""

import copy
import itertools
import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import seqio
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import registry, tfrecords, training_rows
from instructrec_jax.pipeline.record_store import data_dir_in_use, hide_accelerators
from instructrec_jax.pipeline.training_examples import Batch, TrainingExamples, user_error

_FEW_CORES = 8
_WINDOW = 128  # examples that are packed together
_GROUP = 8  # most rows of a row group
Position = list[list[int]]
_NO_LIMIT = 2**14  # tokens that examples without a limit may have
# What an example tells of itself beside its features, where it is no example of ours.
_UNKNOWN = {"num_history_dropped": 0, "num_titles_cut": 0, "num_words_cut": 0, "example_id": ""}


class Batches(Iterator[Batch]):
    """An endless stream of batches that may begin at any position.

    The rows of a batch are cut into groups of equal size. Each group takes its rows from windows of
    its own, of consecutive examples: the w-th window of group g among n is window w n + g of all.
    So a process makes only the windows of its own rows, and no row depends on who makes it.

    Attributes:
      position: of each row group the window that it is at, and how many of its rows are taken; it
        stays [0, 0] for groups without a row in this process.
    """

    def __init__(
        self,
        window: Callable[[int], Batch],
        *,
        batch_size: int,
        rows: Sequence[int] | None = None,
        position: Position | None = None,
        finish: Callable[[Batch], Batch] = lambda batch: batch,
    ) -> None:
        """Begins to make windows, in as many threads as the machine has cores.

        Args:
          window: makes the rows of a window, at least one, by its number.
          batch_size: rows of a batch of all processes.
          rows: those of this process, ascending; None: all.
          position: where to begin; None for the beginning.
          finish: makes a batch of this process's rows.
        """
        own = np.arange(batch_size) if rows is None else np.asarray(rows)
        self._size = row_group_size(batch_size)
        self._num_groups = batch_size // self._size
        groups, inverse = np.unique(own // self._size, return_inverse=True)
        self._held = groups.tolist()
        self._rows = inverse * self._size + own % self._size  # among those of the groups held
        self._window, self._finish = window, finish
        self.position: Position = [[0, 0] for _ in range(self._num_groups)]
        if position is not None:
            for group in self._held:
                self.position[group] = list(position[group])
        num_threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="render")
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._made: dict[int, deque[Future[Batch]]] = {group: deque() for group in self._held}
        # While one window of each group is taken, every thread has work.
        for _ in range(1 + -(-num_threads // len(self._held))):
            for group in self._held:
                self._begin_window(group)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        parts = [part for group in self._held for part in self._taken(group)]
        batch = training_rows.concatenated(parts)
        return self._finish({name: values[self._rows] for name, values in batch.items()})

    def close(self) -> None:
        """Ends the threads, after the windows that they are at."""
        self._pool.shutdown(cancel_futures=True)

    def _begin_window(self, group: int) -> None:
        """Has the window after those begun made for a row group."""
        number = self.position[group][0] + len(self._made[group])
        task = self._pool.submit(self._window, number * self._num_groups + group)
        self._made[group].append(task)

    def _taken(self, group: int) -> Iterator[Batch]:
        """Yields the next rows of a row group, in parts."""
        missing, place = self._size, self.position[group]
        while missing:
            window = self._made[group][0].result()
            num_rows = len(window["example_id"])
            end = min(place[1] + missing, num_rows)
            yield {name: values[place[1] : end] for name, values in window.items()}
            missing -= end - place[1]
            place[1] = end
            if end == num_rows:
                self._begin_window(group)
                self._made[group].popleft()
                place[:] = [place[0] + 1, 0]


def row_group_size(batch_size: int) -> int:
    """Returns the rows of a row group, the same on any number of processes and devices."""
    return math.gcd(batch_size, _GROUP)


def training_batches(
    mixture: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    pack: bool,
    position: Position | None = None,
    rows: Sequence[int] | None = None,
    use_cached: bool = False,
) -> Batches:
    """Returns an endless stream of batches for maximum-likelihood training.

    Args:
      mixture: name of a registered task or mixture of `inputs` and `targets`.
      feature_lengths: tokens of "inputs" and "targets"; optionally "history" and "candidates",
        how many items of each to use.
      batch_size: rows of all processes.
      seed: of order and draws.
      pack: whether several examples share a row.
      position: where to begin: `Batches.position` of the stream that stopped.
      rows: those of this process, ascending; None: all.
      use_cached: read tasks from elsewhere as SeqIO has cached them.

    Returns:
      int32 arrays: `encoder_input_tokens` [batch, inputs]; `decoder_input_tokens`,
      `decoder_target_tokens`, `decoder_loss_weights` [batch, targets]; packed also
      `encoder_segment_ids`, `encoder_positions` [batch, inputs] and `decoder_segment_ids`,
      `decoder_positions` [batch, targets]. `example_id` str and `example_number` int64 [batch, most
      examples in a row], see `training_examples`.
    """
    lengths = {name: feature_lengths[name] for name in ("inputs", "targets")}
    blank = {name: np.zeros(length, np.int32) for name, length in lengths.items()}
    blank["example_id"] = np.array(b"", object)
    examples = TrainingExamples(mixture, feature_lengths, blank, seed=seed, use_cached=use_cached)
    size = _WINDOW if pack else row_group_size(batch_size)
    as_rows = training_rows.packed_rows if pack else training_rows.single_rows
    return Batches(
        lambda window: as_rows(examples.read(window * size, size), lengths),
        batch_size=batch_size,
        rows=rows,
        position=position,
    )


def ranking_training_batches(
    task_or_mixture: str,
    *,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    num_candidates: int,
    seed: int,
    position: Position | None = None,
    rows: Sequence[int] | None = None,
) -> Batches:
    """Returns an endless stream of batches with the candidates of each example side by side.

    Every pass shows fresh negatives in a fresh order.

    Args:
      task_or_mixture: a ranking task or mixture, with or without ".grouped".
      feature_lengths: tokens of "inputs" and "targets"; optionally "history", items to show.
      batch_size: rows of all processes.
      num_candidates: how many to keep of each example, the target among them.
      seed: of order and draws.
      position: where to begin, see `training_batches`.
      rows: those of this process, ascending; None: all.

    Returns:
      `encoder_input_tokens` [batch, inputs]; `candidate_tokens` [batch, candidates, targets], 0
      for padding; `candidate_ids` [batch, candidates], -1 for padding; `candidate_num_chars`
      [batch, candidates]; `target_index`, `num_history_dropped` [batch]; all int32; `example_id`
      str and `example_number` int64 [batch].
    """
    blank = {
        "inputs": np.zeros(feature_lengths["inputs"], np.int32),
        "candidates": np.zeros((num_candidates, feature_lengths["targets"]), np.int32),
        "candidate_ids": np.full(num_candidates, -1, np.int32),
        "candidate_num_chars": np.zeros(num_candidates, np.int32),
        "target_index": np.array(0, np.int32),
        "num_history_dropped": np.array(0, np.int32),
        "example_id": np.array(b"", object),
    }
    examples = TrainingExamples(
        registry.grouped_name(task_or_mixture),
        {**feature_lengths, "candidates": num_candidates},
        blank,
        seed=seed,
    )
    size = row_group_size(batch_size)
    return Batches(
        lambda window: examples.read(window * size, size),
        batch_size=batch_size,
        rows=rows,
        position=position,
        finish=_contract_batch,
    )


def training_examples(
    task_or_mixture: str,
    *,
    feature_lengths: Mapping[str, int],
    seed: int,
    numbers: Iterable[int] | None = None,
) -> Iterator[Batch]:
    """Returns single examples of training by number, which decides all of them.

    Args:
      task_or_mixture: its name.
      feature_lengths: as for `training_batches`, with "candidates"; other entries may be missing.
      seed: of order and draws.
      numbers: from 0; None: all, in the order of training, without end.

    Returns:
      As `examples`.
    """
    most = {name: feature_lengths.get(name, _NO_LIMIT) for name in ("inputs", "targets")}
    blank = {name: np.array(0, np.int32) for name in _UNKNOWN}
    blank |= {"inputs": np.zeros(most["inputs"], np.int32), "example_id": np.array(b"", object)}
    if is_grouped := task_or_mixture.endswith(f".{registry.GROUPED}"):
        shape = feature_lengths["candidates"], most["targets"]
        blank |= {"candidates": np.zeros(shape, np.int32), "target_index": np.array(0, np.int32)}
    else:
        blank["targets"] = np.zeros(most["targets"], np.int32)
    found = TrainingExamples(task_or_mixture, feature_lengths, blank, seed=seed)
    for number in itertools.count() if numbers is None else numbers:
        example = {name: values[0] for name, values in found.read(number, 1).items()}
        for name in ("inputs",) if is_grouped else ("inputs", "targets"):
            example[name] = np.trim_zeros(example[name], "b")
        yield example


def examples(
    task_or_mixture: str, *, split: str, feature_lengths: Mapping[str, int] | None = None
) -> Iterator[Batch]:
    """Returns the single examples of a task or mixture, one pass in file order.

    Args:
      task_or_mixture: its name.
      split: split of the dataset.
      feature_lengths: as for `training_batches`; None for no limit.

    Returns:
      `inputs`, `targets` [length] int32, ending in EOS and not padded; `num_history_dropped`,
      `num_titles_cut`, `num_words_cut` int32; `example_id` bytes, b"" for those of SeqIO tasks from
      elsewhere. Of a grouped one `candidates` [c, length], 0 for padding, and `target_index` int32
      in place of `targets`.
    """
    hide_accelerators()
    return numpy_batches(_examples(task_or_mixture, split, feature_lengths))


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
    # Names of their own: modules go first at exit.
    misfit, loss = tf.errors.InvalidArgumentError, tf.errors.DataLossError
    try:
        yield from ds.with_options(options).prefetch(4).as_numpy_iterator()
    except misfit as error:
        raise user_error(error) from None
    except loss as error:
        tfrecords.check_records(sorted(data_dir_in_use().rglob("*.tfrecord-*")))
        problem = error.message.splitlines()[0]
        raise UserError(f"a task from elsewhere reads a damaged file: {problem}") from None


def _examples(name: str, split: str, feature_lengths: Mapping[str, int] | None) -> tf.data.Dataset:
    """Returns the single examples of a task or mixture, with what there is to know of them."""
    provider = registry.get_for(split, name)
    told = (*_UNKNOWN, *(("target_index",) if name.endswith(f".{registry.GROUPED}") else ()))
    options: dict[str, Any] = {"split": split, "shuffle": False, "seed": 0, "num_epochs": 1}
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


def _contract_batch(batch: Batch) -> Batch:
    """Returns a batch under the contract's names."""
    return {
        "encoder_input_tokens": batch["inputs"],
        "candidate_tokens": batch["candidates"],
        "candidate_ids": batch["candidate_ids"],
        "candidate_num_chars": batch["candidate_num_chars"],
        "target_index": batch["target_index"],
        "num_history_dropped": batch["num_history_dropped"],
        "example_id": training_rows.decoded(batch["example_id"]),
        "example_number": batch["example_number"],
    }


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
