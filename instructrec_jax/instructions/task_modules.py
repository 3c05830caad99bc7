"""Task modules: where a run's templates are declared, read without SeqIO.

A task module has `TEMPLATES` and a function `register(dataset)`, which registers their SeqIO tasks.
The shipped one is `SHIPPED`.
"""

import importlib
import itertools
import re
import traceback
from pathlib import Path
from types import ModuleType

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.instructions.language import Template, Variant, variants

SHIPPED = "instructrec_jax.tasks.mixtures"
_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LANGUAGE = Path(__file__).parent  # where templates are checked, not declared


def import_task_module(module: str) -> ModuleType:
    """Imports a module of tasks.

    Args:
      module: dotted name, such as `SHIPPED` (the macro MIXTURE_OR_TASK_MODULE).

    Raises:
      UserError: if there is no such module, or one of its templates contradicts itself.
    """
    if not _DOTTED_NAME.fullmatch(module):
        raise UserError(
            f"task module {module!r} is not a dotted name; expected one such as {SHIPPED!r}"
        )
    try:
        found = importlib.import_module(module)
    except UserError as error:
        raise UserError(f"{_where(error)}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module exists and misses something itself
        raise UserError(
            f"task module {module!r} cannot be imported; give a dotted name such as "
            f"{SHIPPED!r}, and run a module of your own from the folder that holds it"
        ) from None
    return found


def templates_of(module: str) -> tuple[Template, ...]:
    """Returns the templates that a task module declares.

    Raises:
      UserError: as `import_task_module`, and if its `TEMPLATES` is missing or holds something else.
    """
    found = getattr(import_task_module(module), "TEMPLATES", None)
    if not isinstance(found, tuple | list) or not all(isinstance(t, Template) for t in found):
        raise UserError(
            f"task module {module!r} has no TEMPLATES, a tuple of Template; add one, such as "
            "TEMPLATES = mixtures.TEMPLATES with `from instructrec_jax.tasks import mixtures`"
        )
    return tuple(found)


def find_variant(module: str, name: str) -> Variant:
    """Returns the variant of a name, such as "A7" or "B7.specific".

    Its family, query and records are `variant.template.family`, `variant.query` and
    `variant.template.records`.

    Raises:
      UserError: as `templates_of`, and if no template of the module has the name.
    """
    known = {variant.name: variant for variant in variants(templates_of(module))}
    if with_query := [other for other in known if other.startswith(f"{name}.")]:
        raise UserError(f"template {name} has a query: name one of {', '.join(with_query)}")
    if name not in known:
        raise unknown_name(f"template (of task module {module!r})", name, known)
    return known[name]


def ranking_variant(module: str, name: str) -> Variant:
    """Returns a variant that ranks candidates, by its name such as "A7" or "B7.specific"."""
    variant = find_variant(module, name)
    if not variant.template.names_an_item:
        raise UserError(
            f"template {name} does not choose among candidates; name one that does, such as A7 "
            "(`instructrec templates` shows them all)"
        )
    return variant


def variant_order(variant: Variant) -> tuple[str, int, int]:
    """Returns a sort key in which A2 comes before A10: letters, number, index of the query."""
    template = variant.template
    letters = template.template_id.rstrip("0123456789")
    number = int(template.template_id.removeprefix(letters) or 0)
    return letters, number, (None, *template.queries).index(variant.query)


def _where(error: UserError) -> str:
    """Returns file and line of the declaration that an error comes from."""
    _, *frames = traceback.extract_tb(error.__traceback__)  # the first is this file's own
    files = [(Path(frame.filename), frame.lineno) for frame in frames]
    is_inside = (_LANGUAGE in path.parents for path, _ in files)
    callers = itertools.takewhile(lambda pair: not pair[1], zip(files, is_inside, strict=True))
    *_, (path, line) = (place for place, _ in callers if place[0].is_file())
    return f"{path} line {line}"
