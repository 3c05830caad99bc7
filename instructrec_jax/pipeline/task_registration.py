"""How the templates of a family become SeqIO tasks and mixtures.

A template becomes a task of `inputs` and `targets`, "<dataset>.<variant>". One whose answer is an
item also gets "<task>.grouped", one row an example with its candidates side by side; one in the
evaluation pool also "<task>.rank", SeqIO's rank classification with HR and NDCG as score metrics.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from instructrec_jax.instructions.language import Template, Variant, variants
from instructrec_jax.pipeline import preprocessors, score_metrics
from instructrec_jax.pipeline.record_store import RecordSource
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.records import TaskForm
from instructrec_jax.seeds import stable_seed

GROUPED, RANK = "grouped", "rank"
MAX_RATE = 2**16  # training examples that a task's mixing rate counts at most
Rate = float | Callable[[seqio.Task], float]
# What the grouped form holds beside its output features; a mixture has to be told to keep it.
GROUP_FIELDS = (
    "candidate_ids",
    "candidate_num_chars",
    "target_index",
    "num_history_dropped",
    "example_id",
)


class InstructionTask(seqio.Task):
    """A task that renders one variant, and shuffles in an order of its own.

    SeqIO gives every task of a mixture the same seed, so that all templates would show the same
    users at the same time.

    Attributes:
      variant: what it renders.
      family: name of the family it was registered with.
      config: the records it renders, "leave_one_out" or "product_search".
    """

    def __init__(
        self, name: str, *, variant: Variant, family: str, config: str, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.variant, self.family, self.config = variant, family, config

    @property
    def splits(self) -> Sequence[str]:
        """The splits in which some record can be rendered; mixtures leave the others out."""
        return self.source.splits

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
    names = [_register_task(dataset, family, config, variant) for variant in members]
    register_mixture(f"{dataset}.{family}", names)


def register_mixture(name: str, tasks: Iterable[str | tuple[str, Rate]]) -> None:
    """Registers a mixture, and one of its reranking templates' grouped forms, "<name>.grouped".

    A task without a rate is mixed by its number of training examples, see `mixing_rate`. SeqIO
    tasks from elsewhere may be among them, if they have the features of `pair_features`. Does
    nothing if the name is there.

    Args:
      name: of the mixture.
      tasks: names of registered tasks, or (name, rate) pairs.
    """
    if name in seqio.MixtureRegistry.names():
        return
    rated = [(task, mixing_rate) if isinstance(task, str) else task for task in tasks]
    seqio.MixtureRegistry.add(name, rated)
    if grouped := [(f"{task}.{GROUPED}", rate) for task, rate in rated if _is_reranking(task)]:
        seqio.MixtureRegistry.add(f"{name}.{GROUPED}", grouped)


def mixing_rate(task: seqio.Task, *, maximum: int = MAX_RATE) -> float:
    """Returns the number of a task's training examples, at most `maximum`.

    A product-search template has one example an item, the others one a user's position: at equal
    rates the few items would come round many times an epoch, and at rates without a bound they
    would hardly come.
    """
    return float(min(task.num_input_examples("train"), maximum))


def _is_reranking(task: str) -> bool:
    """Returns whether a task of ours chooses among candidates."""
    variant = getattr(seqio.TaskRegistry.get(task), "variant", None)
    return variant is not None and variant.template.task_form is TaskForm.RERANKING


def _register_task(dataset: str, family: str, config: str, variant: Variant) -> str:
    """Registers the forms of one variant and returns the name of the first."""
    name = f"{dataset}.{variant.name}"
    if name in seqio.TaskRegistry.names():
        return name
    template = variant.template
    source = RecordSource(dataset, config, needs=variant.needs)
    renderable = preprocessors.keep_renderable(variant)
    same = {"variant": variant, "family": family, "config": config}
    pair = [renderable, preprocessors.render_pair(variant, name)]
    _add(name, source, pair, pair_features(), **same)
    group = [renderable, preprocessors.render_group(variant, name)]
    if template.names_an_item:
        _add(f"{name}.{GROUPED}", source, group, group_features(), **same)
    if variant.is_evaluated:
        _add(
            f"{name}.{RANK}",
            source,
            [*group, preprocessors.one_row_per_candidate],
            pair_features(),
            **same,
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
