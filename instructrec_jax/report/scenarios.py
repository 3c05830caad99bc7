"""The three scenarios that the paper evaluates, told apart by the template's family letter."""

import re

from instructrec_jax.errors import UserError

SCENARIOS = {"A": "sequential", "B": "product_search", "C": "personalized_search"}
_TEMPLATE = re.compile(r"(?:^|\.)([ABC])(\d+)(?=\.|$)")


def scenario_of(template_id: str) -> str:
    """Returns the scenario of a template.

    Args:
      template_id: family letter and number, with or without dataset and query kind.

    Raises:
      UserError: if the id names no family.

    Example:
      `scenario_of("ml_100k.B7.specific")` is "product_search".
    """
    return SCENARIOS[_match(template_id).group(1)]


def template_order(template_id: str) -> tuple[str, int, str]:
    """Returns a sort key in which A9 comes before A10."""
    found = _match(template_id)
    return found.group(1), int(found.group(2)), template_id


def _match(template_id: str) -> re.Match[str]:
    """Returns the family letter and number of a template id."""
    found = _TEMPLATE.search(template_id)
    if found is None:
        raise UserError(
            f"template id {template_id!r} names no family; expected a letter A, B or C and a "
            "number, such as 'A7' or 'B7.specific'"
        )
    return found
