"""Which records of its tasks a run renders: those not read yet, a process's share, or a sample.

Records are left out before they are rendered, which takes most of the pipeline's time. What is left
is rendered as if nothing had been left out: every record has its random seed before.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import seqio
import tensorflow as tf

from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.seeds import stable_seed

_BATCH = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which examples of a stream are kept; of a mixture, those of each of its tasks.

    Attributes:
      index: of this process; of every `num_shares` examples of a task it keeps one.
      num_shares: number of processes.
      num_skipped: examples of this process that were read before.
      num_sampled: examples to draw of one pass over a task; None for all.
      num_records: examples of that pass.
    """

    index: int = 0
    num_shares: int = 1
    num_skipped: int = 0
    num_sampled: int | None = None
    num_records: int = 0

    def lengths(self) -> dict[str, int]:
        """Returns the fields as entries of `sequence_length`, which reaches every preprocessor."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def of(cls, lengths: Mapping[str, int]) -> Self:
        """Returns the selection that `lengths` gave."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: lengths[name] for name in names & lengths.keys()})

    def __call__(self, ds: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the dataset of the kept elements, in their order."""
        if self.num_sampled is not None and self.num_sampled < self.num_records:
            rng = np.random.default_rng(stable_seed("examples of an evaluation"))
            is_drawn = np.zeros(self.num_records, bool)
            is_drawn[rng.choice(self.num_records, self.num_sampled, replace=False)] = True
            drawn = tf.constant(is_drawn)
            ds = ds.enumerate().filter(lambda number, _: drawn[number])
            ds = ds.map(lambda _, element: element)
        return ds.shard(self.num_shares, self.index).skip(self.num_skipped)


def task_dataset(
    task: seqio.Task, lengths: Mapping[str, int], selection: Selection, **options: Any
) -> tf.data.Dataset:
    """Returns a task's dataset of the selection, as `seqio.Task.get_dataset` otherwise."""
    if isinstance(task, InstructionTask):
        return task.get_dataset({**lengths, **selection.lengths()}, **options)
    return selection(task.get_dataset(lengths, **options))


def selected_mixture(
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
    for drawn in draws.take(selection.num_skipped).batch(_BATCH).as_numpy_iterator():
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
