"""Finds tasks and mixtures by name, after importing the module that registers them."""

import importlib
import itertools
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import seqio

from instructrec_jax import instructions
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.pipeline.task_registration import GROUPED, RANK, InstructionTask
from instructrec_jax.records import TaskForm

_LANGUAGE = Path(instructions.__file__).parent  # where templates are checked, not declared


def import_task_module(module: str, dataset: str) -> ModuleType:
    """Imports a module of tasks, and has it register the dataset where it can.

    Args:
      module: dotted name, such as "tasks.mixtures" (the macro MIXTURE_OR_TASK_MODULE).
      dataset: passed to the module's `register`, if it has one.

    Returns:
      The module.

    Raises:
      UserError: if there is no such module, or one of its templates contradicts itself.
    """
    try:
        found = importlib.import_module(module)
    except UserError as error:
        raise UserError(f"{_where(error)}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module exists and misses something itself
        raise UserError(
            f"task module {module!r} cannot be imported; give a dotted name such as "
            "'tasks.mixtures', and run from the folder that holds it"
        ) from None
    if hasattr(found, "register"):
        found.register(dataset)
    return found


def _where(error: UserError) -> str:
    """Returns file and line of the declaration that an error comes from."""
    files = [(Path(f.filename), f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    is_inside = (_LANGUAGE in path.parents for path, _ in files)
    callers = itertools.takewhile(lambda pair: not pair[1], zip(files, is_inside, strict=True))
    *_, (path, line) = (place for place, _ in callers if place[0].is_file())
    return f"{path} line {line}"


def get(name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name.

    Raises:
      UserError: if it is not registered, with the nearest names.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise unknown_name("task or mixture", name, known)
    return seqio.get_mixture_or_task(name)


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
    return sorted(found.values(), key=_place)


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
    """Returns the grouped ranking tasks that tasks and mixtures stand for, each once.

    Args:
      names: a ranking task stands for itself, with or without ".grouped"; a mixture for those of
        its tasks that are in the evaluation pool and have examples in the split.
      split: "validation" or "test".

    Raises:
      UserError: if a name is not registered, or stands for no ranking task.

    Example:
      `["ml_100k.product_search"]` stands for B7, B8 and B9 with a specific query.
    """
    found: dict[str, None] = {}
    for name in names:
        provider = get(name)
        members = seqio.get_subtasks(provider)
        if isinstance(provider, seqio.Mixture):
            members = [task for task in members if split in task.splits]
        tasks = [task.name for task in members]
        plain = [task.removesuffix(f".{GROUPED}") for task in tasks]
        ranking = [task for task in plain if f"{task}.{RANK}" in seqio.TaskRegistry.names()]
        if not ranking:
            raise UserError(
                f"{name} holds no task of the evaluation pool; expected a template that chooses "
                "among candidates, such as A7, or a mixture of such"
            )
        found |= dict.fromkeys(f"{task}.{GROUPED}" for task in ranking)
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


def records_of(task: str) -> str:
    """Returns the records that a task of ours renders, "leave_one_out" or "product_search"."""
    provider = get(task)
    if not isinstance(provider, InstructionTask):
        raise UserError(f"{task} renders no instruction records; expected a task such as A7")
    return provider.config


def _is_matching(task: seqio.Task) -> bool:
    """Returns whether a task of ours gives an instruction and the title of an item."""
    if not isinstance(task, InstructionTask) or "targets" not in task.output_features:
        return False
    template = task.variant.template
    return template.task_form is TaskForm.MATCHING and template.names_an_item


def _place(task: InstructionTask) -> tuple[str, int, int]:
    """Returns what tasks are sorted by: letters, number and place of the query."""
    template = task.variant.template
    letters = template.template_id.rstrip("0123456789")
    number = int(template.template_id.removeprefix(letters) or 0)
    return letters, number, (None, *template.queries).index(task.variant.query)
