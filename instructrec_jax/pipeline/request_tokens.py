"""Single records as token groups, to be scored one shard of a set at a time.

The rendering is that of the grouped tasks. Records come one after another and are rendered only
when asked for, so those of other shards are passed over cheaply, and one that does not fit spoils
no other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Query, Template, Variant
from instructrec_jax.pipeline import loader, preprocessors, registry
from instructrec_jax.pipeline.record_store import features
from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.pipeline.task_registration import group_features
from instructrec_jax.records import InstructionRecord, TaskForm

Record = Mapping[str, Any]
Group = dict[str, np.ndarray]
# What writes instructions that are whole already: they stand in a record as its specific intention.
INSTRUCTION = Variant(
    Template(
        template_id="instruction",
        inputs="{query}",
        targets="{target}",
        task_form=TaskForm.MATCHING,
        queries=(Query.SPECIFIC,),
    ),
    Query.SPECIFIC,
)


def task_records(task: str, *, split: str) -> Iterator[Record]:
    """Returns the records that a ranking task renders, not yet rendered, in file order.

    Args:
      task: name of a registered task of ours.
      split: "validation" or "test".
    """
    loader.hide_accelerators()
    provider = _instruction_task(task, split)
    records = provider.source.get_dataset(split, shuffle=False)
    records = preprocessors.keep_renderable(provider.variant)(records)
    return loader.numpy_batches(records)


def num_task_records(task: str, *, split: str) -> int:
    """Returns the number of records of `task_records`, without reading them."""
    return _instruction_task(task, split).source.num_input_examples(split)


def task_variant(task: str, *, split: str) -> Variant:
    """Returns what a registered task of ours renders."""
    return _instruction_task(task, split).variant


def ranking_variant(dataset: str, name: str) -> Variant:
    """Returns a variant that ranks candidates, by its name such as "A7" or "B7.specific".

    Raises:
      UserError: if no task of the dataset renders it, or its answer is no item.
    """
    task = registry.get(f"{dataset}.{name}")
    if not isinstance(task, InstructionTask) or not task.variant.template.names_an_item:
        raise UserError(
            f"template {name} does not choose among candidates; name one that does, such as A7 "
            "(`instructrec templates` shows them all)"
        )
    return task.variant


def as_arrays(record: InstructionRecord) -> Record:
    """Returns a record of evaluation as `GroupRenderer` takes it."""
    values = {name: _plain(getattr(record, name)) for name in features()}
    return {**values, "is_training": False}


def with_fewer_candidates(record: Record, number: int) -> Record:
    """Returns a record with the first candidates alone, the target among them.

    Args:
      record: of `task_records` or `as_arrays`.
      number: how many to keep at most.
    """
    ids = np.asarray(record["candidate_ids"])
    is_negative = ids != record["target_id"]
    kept = np.flatnonzero(~is_negative | (np.cumsum(is_negative) < number))
    titles = [record["candidates"][place] for place in kept]
    return {**record, "candidate_ids": ids[kept], "candidates": titles}


class GroupRenderer:
    """Renders records as the grouped form of a task does."""

    def __init__(self, variant: Variant, task: str, feature_lengths: Mapping[str, int]) -> None:
        """Builds the graph, which takes a second.

        Args:
          variant: what is rendered.
          task: name for messages.
          feature_lengths: tokens of "inputs" and "targets"; optionally "history", items to show.
        """
        loader.hide_accelerators()
        self._records: Sequence[Record] = ()
        signature = {
            name: tf.TensorSpec(feature.shape, feature.tf_dtype)
            for name, feature in features().get_tensor_info().items()
        }
        signature["is_training"] = tf.TensorSpec([], tf.bool)
        ds = tf.data.Dataset.from_generator(lambda: iter(self._records), output_signature=signature)
        self._groups = preprocessors.render_group(variant, task)(
            ds, sequence_length=dict(feature_lengths), output_features=group_features()
        )

    def __call__(self, records: Sequence[Record]) -> list[Group | UserError]:
        """Renders some records.

        Args:
          records: of `task_records` or `as_arrays`.

        Returns:
          For each what `preprocessors.render_group` makes of it, or why it does not fit.
        """
        self._records = records
        return list(loader.results(self._groups))


def _instruction_task(name: str, split: str) -> InstructionTask:
    """Returns a task that renders a template, having checked that it has examples in a split."""
    task = registry.get_for(split, name)
    if not isinstance(task, InstructionTask):
        raise UserError(f"{name} renders no template; expected a ranking task such as ml_100k.A7")
    return task


def _plain(value: Any) -> Any:
    """Returns a field's value with its texts as bytes."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.encode() if isinstance(value, str) else value
