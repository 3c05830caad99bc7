"""Registers templates as SeqIO tasks and mixtures; what a task module of one's own calls.

A template becomes a task of `inputs` and `targets`, "<dataset>.<variant>". One whose answer is an
item also gets "<task>.grouped", one row per example with its candidates side by side; one in the
evaluation pool also "<task>.rank", SeqIO's rank classification with HR and NDCG as score metrics.
"""

from collections.abc import Callable, Iterable
from typing import Any

import seqio

from instructrec_jax.errors import unknown_name
from instructrec_jax.instructions.language import Template, Variant, variants
from instructrec_jax.metrics import ranking
from instructrec_jax.pipeline import preprocessors
from instructrec_jax.pipeline.record_store import RecordSource
from instructrec_jax.pipeline.registry import GROUPED, RANK, InstructionTask, check_features
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.records import TaskForm

MAX_RATE = 2**16  # training examples that a task's mixing rate counts at most
Rate = float | Callable[[seqio.Task], float]


def register_templates(dataset: str, templates: Iterable[Template]) -> None:
    """Registers templates in all their forms, and the mixture of each family they belong to.

    Does nothing for what is there already.

    Args:
      dataset: name of the dataset.
      templates: all templates of their families; the mixture of one is "<dataset>.<family>".
    """
    families: dict[str, list[str]] = {}
    for variant in variants(templates):
        name = _register_variant(dataset, variant)
        families.setdefault(variant.template.family, []).append(name)
    for family, names in families.items():
        register_mixture(f"{dataset}.{family}", names)


def register_mixture(name: str, tasks: Iterable[str | tuple[str, Rate]]) -> None:
    """Registers a mixture, and one of its reranking templates' grouped forms, "<name>.grouped".

    A task without a rate is mixed by its number of training examples, see `mixing_rate`. SeqIO
    tasks from elsewhere may be among them, if they have the features of `pair_features` and, when
    the mixture is opened, a vocabulary that equals the run's. Does nothing if the name is there.

    Args:
      name: of the mixture.
      tasks: names of registered tasks, or (name, rate) pairs.

    Raises:
      UserError: if a task is not registered, or has other features.
    """
    if name in seqio.MixtureRegistry.names():
        return
    rated = [(task, mixing_rate) if isinstance(task, str) else task for task in tasks]
    known = set(seqio.TaskRegistry.names())
    for task, _ in rated:
        if task not in known:
            raise unknown_name(f"task of mixture {name!r}", task, known)
        check_features(seqio.TaskRegistry.get(task))
    seqio.MixtureRegistry.add(name, rated)
    if grouped := [(f"{task}.{GROUPED}", rate) for task, rate in rated if _is_reranking(task)]:
        seqio.MixtureRegistry.add(f"{name}.{GROUPED}", grouped)


def mixing_rate(task: seqio.Task, *, maximum: int = MAX_RATE) -> float:
    """Returns the number of a task's training examples, at most `maximum`.

    A product-search template has one example per item, the others one per position of a user. At
    equal rates the few items would repeat many times in an epoch; at rates without a bound they
    would be rare.
    """
    return float(min(task.num_input_examples("train"), maximum))


def _is_reranking(task: str) -> bool:
    """Returns whether a task of ours chooses among candidates."""
    variant = getattr(seqio.TaskRegistry.get(task), "variant", None)
    return variant is not None and variant.template.task_form is TaskForm.RERANKING


def _register_variant(dataset: str, variant: Variant) -> str:
    """Registers the forms of one variant and returns the name of the first."""
    name = f"{dataset}.{variant.name}"
    if name in seqio.TaskRegistry.names():
        return name
    source = RecordSource(dataset, variant.template.records, needs=variant.needs)
    renderable = preprocessors.keep_renderable(variant)
    pair = [renderable, preprocessors.render_pair(variant, name)]
    _add(name, source, pair, pair_features(), variant=variant)
    group = [renderable, preprocessors.render_group(variant, name)]
    if variant.template.names_an_item:
        _add(f"{name}.{GROUPED}", source, group, group_features(), variant=variant)
    if variant.is_evaluated:
        _add(
            f"{name}.{RANK}",
            source,
            [*group, preprocessors.one_row_per_candidate(variant)],
            pair_features(),
            variant=variant,
            postprocess_fn=ranking.candidate_label,
            metric_fns=[ranking.hit_rate_and_ndcg],
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
