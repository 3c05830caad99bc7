"""How the templates of a family become SeqIO tasks and mixtures.

A template becomes a task of `inputs` and `targets`, "<dataset>.<variant>". One whose answer is an
item also gets "<task>.grouped", one row an example with its candidates side by side; one in the
evaluation pool also "<task>.rank", SeqIO's rank classification with HR and NDCG as score metrics.
"""

from collections.abc import Callable, Iterable
from typing import Any

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import Query, Slot, Template, Variant, variants
from instructrec_jax.pipeline import preprocessors, score_metrics
from instructrec_jax.pipeline.record_store import RecordSource
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.records import TaskForm
from instructrec_jax.seeds import stable_seed

GROUPED, RANK = "grouped", "rank"
# What the grouped form holds beside its output features; a mixture has to be told to keep it.
GROUP_FIELDS = (
    "candidate_ids",
    "candidate_num_chars",
    "target_index",
    "num_history_dropped",
    "example_id",
)


class InstructionTask(seqio.Task):
    """A task that shuffles in an order of its own.

    SeqIO gives every task of a mixture the same seed, so that all templates would show the same
    users at the same time.
    """

    def get_dataset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> tf.data.Dataset:
        """Returns the dataset as `seqio.Task` does, with the seed salted by the task's name."""
        if seed is not None:
            seed = stable_seed(seed, self.name) % 2**31
        kwargs["try_in_mem_cache"] = False  # a cache that is not read to its end only warns
        return super().get_dataset(*args, seed=seed, **kwargs)


def register_family(
    dataset: str, family: str, *, config: str, templates: Iterable[Template]
) -> None:
    """Registers a family's tasks in all their forms, and its mixtures; does nothing if it is there.

    Args:
      dataset: name of the dataset.
      family: name of the family, such as "sequential"; the mixture is "<dataset>.<family>".
      config: the records it renders, "leave_one_out" or "product_search".
      templates: its templates.
    """
    members = tuple(variants(templates))
    names = [_register_task(dataset, config, variant) for variant in members]
    rates = [1.0 / len(variant.template.queries or (None,)) for variant in members]
    register_mixture(f"{dataset}.{family}", zip(names, rates, strict=True))
    ranking = [
        (f"{name}.{GROUPED}", rate)
        for name, rate, variant in zip(names, rates, members, strict=True)
        if variant.template.task_form is TaskForm.RERANKING
    ]
    if ranking:
        register_mixture(f"{dataset}.{family}.{GROUPED}", ranking)


def num_training_examples(task: seqio.Task) -> float:
    """Returns a task's mixing rate by the number of its training records, read when it is used."""
    return float(task.num_input_examples("train"))


def register_mixture(
    name: str, tasks: Iterable[tuple[str, float | Callable[[seqio.Task], float]]]
) -> None:
    """Registers a mixture of (task, rate) pairs; does nothing if the name is there."""
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, list(tasks))


def _register_task(dataset: str, config: str, variant: Variant) -> str:
    """Registers the forms of one variant and returns the name of the first."""
    name = f"{dataset}.{variant.name}"
    if name in seqio.TaskRegistry.names():
        return name
    template = variant.template
    source = RecordSource(dataset, config, needs=_needed_field(variant))
    renderable = preprocessors.keep_renderable(variant)
    _add(name, source, [renderable, preprocessors.render_pair(variant, name)], pair_features())
    group = [renderable, preprocessors.render_group(variant, name)]
    if template.names_an_item:
        _add(f"{name}.{GROUPED}", source, group, group_features())
    if template.is_evaluated:
        _add(
            f"{name}.{RANK}",
            source,
            [*group, preprocessors.one_row_per_candidate],
            pair_features(),
            postprocess_fn=score_metrics.candidate_label,
            metric_fns=[score_metrics.hit_rate_and_ndcg],
        )
    return name


def pair_features() -> dict[str, seqio.Feature]:
    """Returns the output features of the forms with `inputs` and `targets`."""
    return {name: seqio.Feature(CorpusVocabulary()) for name in ("inputs", "targets")}


def group_features() -> dict[str, seqio.Feature]:
    """Returns the output features of the grouped form."""
    vocabulary = CorpusVocabulary()
    return {"inputs": seqio.Feature(vocabulary), "candidates": seqio.Feature(vocabulary, rank=2)}


def _add(
    name: str,
    source: RecordSource,
    steps: list[preprocessors.Preprocessor],
    output_features: dict[str, seqio.Feature],
    **more: Any,
) -> None:
    """Adds one task to SeqIO's registry."""
    seqio.TaskRegistry.add(
        name,
        source,
        output_features=output_features,
        preprocessors=steps,
        task_cls=InstructionTask,
        shuffle_buffer_size=None,  # the source shuffles
        **more,
    )


def _needed_field(variant: Variant) -> str:
    """Returns the record field without which no record can be rendered, or ""."""
    is_specific = variant.query is Query.SPECIFIC
    needs_query = Slot.QUERY in variant.template.required_slots
    return "specific_intention" if is_specific and needs_query else ""
