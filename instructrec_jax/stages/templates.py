"""The stage `templates`: the templates that a module of tasks registers, one line each."""

import dataclasses
import logging

from instructrec_jax.instructions.language import Template, Variant
from instructrec_jax.pipeline import registry

logger = logging.getLogger(__name__)
_LISTED = "listed"  # a dataset of its own name, so that nothing depends on what is shipped
_HEADER = ("id", "cell", "kind", "family", "evaluated", "queries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateLine:
    """What is told of a template.

    Attributes:
      template: the template.
      family: the family it was registered with.
      cells: the paper's cells of its variants, those that differ in the intention alone as one,
        such as "<P0,I1/I2,T3>".
    """

    template: Template
    family: str
    cells: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts of the line."""
        return (
            self.template.template_id,
            " ".join(self.cells),
            self.template.kind.value,
            self.family,
            "yes" if self.template.is_evaluated else "",
            " ".join(self.template.queries),
        )


def templates(*, task_module: str = "tasks.mixtures") -> list[TemplateLine]:
    """Shows every template that a module registers: A1 .. A17, B1 .., C1 ...

    Args:
      task_module: module that registers the tasks.

    Returns:
      The lines, which are also shown.

    Raises:
      UserError: if there is no such module.
    """
    registry.import_task_module(task_module, _LISTED)
    of_template: dict[str, list[Variant]] = {}
    families = {}
    for task in registry.instruction_tasks():
        template_id = task.variant.template.template_id
        of_template.setdefault(template_id, []).append(task.variant)
        families[template_id] = task.family
    lines = [
        TemplateLine(
            template=members[0].template, family=families[template_id], cells=joined_cells(members)
        )
        for template_id, members in of_template.items()
    ]
    rows = [_HEADER, *(line.columns for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        logger.info("%s", "  ".join(padded).rstrip())
    return lines


def joined_cells(variants: list[Variant]) -> tuple[str, ...]:
    """Returns the cells of a template's variants, those that differ in the intention as one.

    Example: cells <P2,I0,T3>, <P0,I1,T3>, <P0,I2,T3> give `("<P2,I0,T3>", "<P0,I1/I2,T3>")`.
    """
    intentions: dict[tuple[str, str], dict[str, None]] = {}
    for variant in variants:
        *preference, intention, task_form = variant.cell.strip("<>").split(",")
        ends = (",".join(preference), task_form)
        intentions.setdefault(ends, {})[intention] = None
    return tuple(
        f"<{preference},{'/'.join(found)},{task_form}>"
        for (preference, task_form), found in intentions.items()
    )
