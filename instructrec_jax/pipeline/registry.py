"""Templates as SeqIO tasks and mixtures: registered, as a task module does, and found by name.

A template becomes a task of `inputs` and `targets`, "<dataset>.<variant>". One whose answer is an
item also gets "<task>.grouped", one row per example with its candidates side by side; one in the
evaluation pool also "<task>.rank", SeqIO's rank classification with HR and NDCG as score metrics.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

import seqio
import tensorflow as tf

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.instructions import task_modules
from instructrec_jax.instructions.language import Template, Variant, variants
from instructrec_jax.metrics import ranking
from instructrec_jax.pipeline import preprocessors
from instructrec_jax.pipeline.record_store import RecordSource, as_record
from instructrec_jax.pipeline.vocabulary import CorpusVocabulary
from instructrec_jax.records import InstructionRecord, TaskForm
from instructrec_jax.seeds import stable_seed

GROUPED, RANK = "grouped", "rank"
_DATASET = re.compile(r"[\w:#]+")
_HOW_TO_DECLARE = (
    "declare it with output_features=pair_features(), see instructrec_jax.pipeline.registry"
)
MAX_RATE = 2**16  # training examples that a task's mixing rate counts at most
Rate = float | Callable[[seqio.Task], float]


class InstructionTask(seqio.Task):
    """A task that renders one variant, and shuffles in an order of its own.

    SeqIO gives every task of a mixture the same seed, so that all templates would show the same
    users at the same time.

    Attributes:
      variant: what it renders.
      form: makes an example of a record; None where a record makes several.
    """

    def __init__(
        self, name: str, *, variant: Variant, form: preprocessors.Form | None, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.variant, self.form = variant, form

    @property
    def family(self) -> str:
        """The family of its template."""
        return self.variant.template.family

    @property
    def config(self) -> str:
        """The records it renders, "leave_one_out" or "product_search"."""
        return self.variant.template.records

    @property
    def splits(self) -> Sequence[str]:
        """The splits in which some record can be rendered; mixtures leave the others out."""
        return self.source.splits

    def records(self, split: str) -> Iterator[InstructionRecord]:
        """Yields the records of a split that it can render, in file order; SeqIO has no part in it.

        Raises:
          UserError: if there is none.
        """
        return map(as_record, self.source.rows(split))

    def get_dataset(self, *args: Any, seed: int | None = None, **kwargs: Any) -> tf.data.Dataset:
        """Returns the dataset as `seqio.Task` does, with the seed salted by the task's name."""
        if seed is not None:
            seed = stable_seed(seed, self.name) % 2**31
        kwargs["try_in_mem_cache"] = False  # a cache that is not read to its end only warns
        return super().get_dataset(*args, seed=seed, **kwargs)


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
    """Registers a mixture, and one of the grouped forms that its tasks have, "<name>.grouped".

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
    if grouped := [(f"{task}.{GROUPED}", rate) for task, rate in rated if _names_an_item(task)]:
        seqio.MixtureRegistry.add(f"{name}.{GROUPED}", grouped)


def mixing_rate(task: seqio.Task, *, maximum: int = MAX_RATE) -> float:
    """Returns the number of a task's training examples, at most `maximum`.

    A product-search template has one example per item, the others one per position of a user. At
    equal rates the few items would repeat many times in an epoch; at rates without a bound they
    would be rare.
    """
    return float(min(task.num_input_examples("train"), maximum))


def _names_an_item(task: str) -> bool:
    """Returns whether a task of ours answers with an item, so that candidates can be ranked."""
    variant = getattr(seqio.TaskRegistry.get(task), "variant", None)
    return variant is not None and variant.template.names_an_item


def _register_variant(dataset: str, variant: Variant) -> str:
    """Registers the forms of one variant and returns the name of the first."""
    name = f"{dataset}.{variant.name}"
    if name in seqio.TaskRegistry.names():
        return name
    source = RecordSource(dataset, variant.template.records, needs=variant.needs)
    renderable = preprocessors.keep_renderable(variant)
    pair = functools.partial(preprocessors.pair, variant=variant, task=name)
    group = functools.partial(preprocessors.group, variant=variant, task=name)
    pairs = [renderable, preprocessors.render(pair)]
    groups = [renderable, preprocessors.render(group)]
    _add(name, source, pairs, pair_features(), variant=variant, form=pair)
    if variant.template.names_an_item:
        _add(f"{name}.{GROUPED}", source, groups, group_features(), variant=variant, form=group)
    if variant.is_evaluated:
        _add(
            f"{name}.{RANK}",
            source,
            [*groups, preprocessors.one_row_per_candidate(variant)],
            pair_features(),
            variant=variant,
            form=None,
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


def import_task_module(module: str, dataset: str) -> ModuleType:
    """Imports a module of tasks, and has it register the dataset where it can.

    Args:
      module: dotted name, such as `task_modules.SHIPPED` (the macro MIXTURE_OR_TASK_MODULE).
      dataset: passed to the module's `register`, if it has one.

    Returns:
      The module.

    Raises:
      UserError: as `task_modules.import_task_module`, and if the dataset's name is none.
    """
    if not _DATASET.fullmatch(dataset):
        raise UserError(
            f"{dataset!r} is no name of a dataset; tasks are named as in ml_100k.A7, "
            "the dataset first"
        )
    found = task_modules.import_task_module(module)
    if hasattr(found, "register"):
        found.register(dataset)
    return found


def get(name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name.

    Raises:
      UserError: if it is not registered, with the nearest names; or if one of its tasks has another
        vocabulary than the run's, or other features than ours.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise unknown_name("task or mixture", name, known)
    provider = seqio.get_mixture_or_task(name)
    for task in seqio.get_subtasks(provider):
        check_features(task)
        for feature in task.output_features.values():
            if not _is_of_the_run(feature.vocabulary):
                raise UserError(
                    f"task {task.name!r} has the vocabulary {type(feature.vocabulary).__name__}, "
                    f"which is not the run's {CorpusVocabulary()}; {_HOW_TO_DECLARE}"
                )
    return provider


def check_features(task: seqio.Task) -> None:
    """Checks that a task has the features of ours.

    Raises:
      UserError: if it has no "inputs", or neither "targets" nor "candidates".
    """
    features = set(task.output_features)
    if features not in ({"inputs", "targets"}, {"inputs", "candidates"}):
        named = ", ".join(sorted(features)) or "none"
        raise UserError(
            f"task {task.name!r} has the output features {named}; expected inputs and targets: "
            f"{_HOW_TO_DECLARE}"
        )


def _is_of_the_run(vocabulary: seqio.Vocabulary) -> bool:
    """Returns whether a task's vocabulary is the run's; False where its file cannot be read."""
    try:
        return vocabulary == CorpusVocabulary()
    except (tf.errors.OpError, OSError, RuntimeError):
        return False


def instruction_tasks(dataset: str | None = None) -> list[InstructionTask]:
    """Returns the tasks that render a template to `inputs` and `targets`, A2 before A10.

    Args:
      dataset: whose tasks; None for one task of each variant, whichever dataset's it is.
    """
    found: dict[str, InstructionTask] = {}
    for name in sorted(seqio.TaskRegistry.names()):
        task = seqio.TaskRegistry.get(name)
        if not isinstance(task, InstructionTask):
            continue
        owner, _, rest = name.partition(".")
        if rest == task.variant.name and dataset in (None, owner):
            found.setdefault(rest, task)
    return sorted(found.values(), key=lambda task: task_modules.variant_order(task.variant))


def get_for(split: str, name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name, having checked that it has examples in a split.

    Raises:
      UserError: if it is not registered, or no record of the split can be said in it.
    """
    provider = get(name)
    base = split.split("[")[0]
    if isinstance(provider, seqio.Mixture) and base not in provider.splits:
        raise UserError(
            f"{name} has no {base} examples: no {base} record has the texts that its templates "
            "need; `instructrec lint` shows what the dataset has texts for"
        )
    return provider


def evaluated_tasks(names: Iterable[str], *, split: str) -> tuple[str, ...]:
    """Returns the grouped tasks that tasks and mixtures stand for, each once.

    Args:
      names: a task whose answer is an item stands for itself, with or without ".grouped"; a mixture
        for those of its tasks that are in the evaluation pool and have examples in the split.
      split: "validation" or "test".

    Raises:
      UserError: if a name is not registered, or stands for no such task.

    Example:
      `["ml_100k.product_search"]` stands for B7, B8 and B9 with a specific query;
      `["ml_100k.A1"]`, which shows no candidates, for itself.
    """
    found: dict[str, None] = {}
    for name in names:
        provider = get(name)
        form = GROUPED
        members = seqio.get_subtasks(provider)
        if isinstance(provider, seqio.Mixture):
            members, form = [task for task in members if split in task.splits], RANK
        plain = [task.name.removesuffix(f".{GROUPED}") for task in members]
        ranked = [task for task in plain if f"{task}.{form}" in seqio.TaskRegistry.names()]
        if not ranked:
            raise UserError(
                f"{name} holds no task to rank candidates by; expected a mixture with templates of "
                "the evaluation pool, or a template whose answer is an item, such as A7 or A1"
            )
        found |= dict.fromkeys(f"{task}.{GROUPED}" for task in ranked)
    return tuple(found)


def matching_tasks(names: Iterable[str], *, split: str) -> tuple[str, ...]:
    """Returns the T2 tasks that tasks and mixtures stand for, each once.

    Args:
      names: a task whose answer is an item, chosen from the whole catalogue, stands for itself; a
        mixture for all such that have examples in the split.
      split: "validation" or "test".

    Raises:
      UserError: if a name is not registered, or stands for no such task.

    Example:
      `["ml_100k.sequential"]` stands for A1, A2, A4 and others, but not for A7, which chooses among
      candidates.
    """
    found: dict[str, None] = {}
    for name in names:
        members = [task for task in seqio.get_subtasks(get(name)) if split in task.splits]
        matching = [task.name for task in members if _is_matching(task)]
        if not matching:
            raise UserError(
                f"{name} holds no task with {split} examples that asks for an item of the whole "
                "catalogue; expected a template of task form T2, such as A1, or a mixture of such"
            )
        found |= dict.fromkeys(matching)
    return tuple(found)


def instruction_task(name: str) -> InstructionTask:
    """Returns a task of ours, which knows its family, its variant and the records it renders.

    Raises:
      UserError: if it is not registered, or renders no instruction records.
    """
    provider = get(name)
    if not isinstance(provider, InstructionTask):
        raise UserError(f"{name} renders no instruction records; expected a task such as A7")
    return provider


def grouped_name(name: str) -> str:
    """Returns the name of the grouped form of a task or mixture."""
    return name if name.endswith(f".{GROUPED}") else f"{name}.{GROUPED}"


def ranking_task(name: str) -> InstructionTask:
    """Returns a task of ours whose candidates can be ranked, with or without ".grouped".

    Raises:
      UserError: if there is none.
    """
    return instruction_task(grouped_name(name))


def _is_matching(task: seqio.Task) -> bool:
    """Returns whether a task of ours gives an instruction and the title of an item."""
    if not isinstance(task, InstructionTask) or "targets" not in task.output_features:
        return False
    template = task.variant.template
    return template.task_form is TaskForm.MATCHING and template.names_an_item
