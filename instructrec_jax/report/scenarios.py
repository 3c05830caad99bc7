"""The scenarios that the paper evaluates: a family of templates, by the kind of its query.

The paper's Table 7 is three of them: personalised search by preference, vague and specific
intention, each with the best template of its own.
"""

import re

from instructrec_jax.errors import UserError

FAMILIES = {"A": "sequential", "B": "product_search", "C": "personalized_search"}
_TEMPLATE = re.compile(r"(?:^|\.)([ABC])(\d+)(?=\.|$)(\.\w+)?")


def scenario_of(template_id: str) -> str:
    """Returns the scenario of a template: its family and, where it has one, its kind of query.

    Args:
      template_id: family letter and number, with or without dataset and query kind.

    Raises:
      UserError: if the id names no family.

    Example:
      `scenario_of("ml_100k.B7.specific")` is "product_search.specific".
    """
    letter, _, query = _match(template_id).groups()
    return FAMILIES[letter] + (query or "")


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
