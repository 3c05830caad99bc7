"""Finds tasks and mixtures by name, after importing the module that registers them."""

import importlib
from collections.abc import Iterable
from types import ModuleType

import seqio

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.pipeline.task_registration import GROUPED, RANK


def import_task_module(module: str, dataset: str) -> ModuleType:
    """Imports a module of tasks, and has it register the dataset where it can.

    Args:
      module: dotted name, such as "tasks.mixtures" (the macro MIXTURE_OR_TASK_MODULE).
      dataset: passed to the module's `register`, if it has one.

    Returns:
      The module.

    Raises:
      UserError: if there is no such module.
    """
    try:
        found = importlib.import_module(module)
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


def get(name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name.

    Raises:
      UserError: if it is not registered, with the nearest names.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        raise unknown_name("task or mixture", name, known)
    return seqio.get_mixture_or_task(name)


def evaluated_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the grouped ranking tasks that tasks and mixtures stand for, each once.

    Args:
      names: a ranking task stands for itself, with or without ".grouped"; a mixture for those of
        its tasks that are in the evaluation pool.

    Raises:
      UserError: if a name is not registered, or stands for no ranking task.

    Example:
      `["ml_100k.product_search"]` stands for B7, B8 and B9 with a specific query.
    """
    found: dict[str, None] = {}
    for name in names:
        tasks = [task.name for task in seqio.get_subtasks(get(name))]
        plain = [task.removesuffix(f".{GROUPED}") for task in tasks]
        ranking = [task for task in plain if f"{task}.{RANK}" in seqio.TaskRegistry.names()]
        if not ranking:
            raise UserError(
                f"{name} holds no task of the evaluation pool; expected a template that chooses "
                "among candidates, such as A7, or a mixture of such"
            )
        found |= dict.fromkeys(f"{task}.{GROUPED}" for task in ranking)
    return tuple(found)
