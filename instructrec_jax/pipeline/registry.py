"""Finds tasks and mixtures by name, after importing the module that registers them."""

import importlib
from types import ModuleType

import seqio

from instructrec_jax.errors import UserError, unknown_name


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
