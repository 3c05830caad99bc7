"""The stage `templates`: the templates of a task module, in a table."""

import dataclasses
from collections.abc import Iterable

from instructrec_jax.instructions.language import Template, Variant, variants
from instructrec_jax.instructions.task_modules import SHIPPED, templates_of, variant_order
from instructrec_jax.report import tables

_HEADER = ("id", "cell", "kind", "family", "evaluated", "queries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateLine:
    """What is told of a template.

    Attributes:
      template: the template.
      cells: the paper's cells of its variants, those that differ in the intention alone as one,
        such as "<P0,I1/I2,T3>".
    """

    template: Template
    cells: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The texts of the line."""
        return (
            self.template.template_id,
            " ".join(self.cells),
            self.template.kind.value,
            self.template.family,
            "yes" if self.template.is_evaluated else "",
            " ".join(self.template.queries),
        )


def templates(*, task_module: str = SHIPPED) -> list[TemplateLine]:
    """Returns every template of a task module: A1 .. A17, B1 .., C1 ...

    Args:
      task_module: module that declares the templates.

    Raises:
      UserError: if there is no such module.
    """
    of_template: dict[Template, list[Variant]] = {}
    for variant in sorted(variants(templates_of(task_module)), key=variant_order):
        of_template.setdefault(variant.template, []).append(variant)
    return [
        TemplateLine(template=template, cells=joined_cells(members))
        for template, members in of_template.items()
    ]


def as_text(lines: Iterable[TemplateLine]) -> str:
    """Returns the lines as a table."""
    table = tables.Table(header=_HEADER, rows=[line.columns for line in lines])
    section = tables.Section(title="", tables=[table])
    return tables.as_text(tables.Document(title="", sections=[section]))


def joined_cells(members: list[Variant]) -> tuple[str, ...]:
    """Returns the cells of a template's variants, those that differ in the intention as one.

    Example: cells <P2,I0,T3>, <P0,I1,T3>, <P0,I2,T3> give `("<P2,I0,T3>", "<P0,I1/I2,T3>")`.
    """
    intentions: dict[tuple[str, str], dict[str, None]] = {}
    for variant in members:
        *preference, intention, task_form = variant.cell.strip("<>").split(",")
        ends = (",".join(preference), task_form)
        intentions.setdefault(ends, {})[intention] = None
    return tuple(
        f"<{preference},{'/'.join(found)},{task_form}>"
        for (preference, task_form), found in intentions.items()
    )
