"""The first examples of many tasks, each with the record it renders: for statistics of texts."""

from collections.abc import Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

from instructrec_jax.pipeline import loader, preprocessors
from instructrec_jax.pipeline.record_store import as_record
from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.records import InstructionRecord

Sample = Iterator[tuple[InstructionRecord, loader.Batch]]


def samples(
    tasks: Sequence[InstructionTask],
    *,
    split: str,
    feature_lengths: Mapping[str, int],
    max_examples: int,
) -> Iterator[tuple[InstructionTask, Sample]]:
    """Yields every task with its first examples of a split, in file order.

    Records that have what a task needs may be rare. They are looked for once for all tasks that
    need the same, which then run their own SeqIO pipelines on them.

    Args:
      tasks: tasks of ours, in any form; those without a record in the split are left out.
      split: "train", "validation" or "test".
      feature_lengths: tokens of "inputs" and "targets".
      max_examples: of each task; 0 for all.

    Yields:
      Pairs of a task and an iterator of (record, example), which is to be used up before the next.
      Examples hold what the task's form makes.
    """
    loader.hide_accelerators()
    groups: dict[tuple[str, frozenset[str]], list[InstructionTask]] = {}
    for task in tasks:
        if split in task.splits:
            groups.setdefault((task.config, task.variant.needs), []).append(task)
    for members in groups.values():
        ds = members[0].source.get_dataset(split, shuffle=False)
        ds = preprocessors.keep_renderable(members[0].variant)(ds)
        if not max_examples:
            for task in members:
                yield (
                    task,
                    zip(_records(ds), _examples(task, ds, split, feature_lengths), strict=True),
                )
            continue
        ds = ds.take(max_examples).cache()  # in memory, since there is an end to it
        records = list(_records(ds))
        for task in members:
            yield task, zip(records, _examples(task, ds, split, feature_lengths), strict=True)


def _records(ds: tf.data.Dataset) -> Iterator[InstructionRecord]:
    """Yields the records of a dataset."""
    return map(as_record, loader.numpy_batches(ds))


def _examples(
    task: InstructionTask, records: tf.data.Dataset, split: str, lengths: Mapping[str, int]
) -> Iterator[loader.Batch]:
    """Returns the examples that a task makes of some records, in their order."""
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: records, splits=(split,)
    )
    on_sample = InstructionTask(
        task.name,
        variant=task.variant,
        source=source,
        output_features=task.output_features,
        preprocessors=task.preprocessors,
        shuffle_buffer_size=None,
    )
    return loader.numpy_batches(on_sample.get_dataset(dict(lengths), split, shuffle=False, seed=0))
