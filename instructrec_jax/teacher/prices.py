"""What a teacher's tokens cost: a small table, as data, which the user overrides."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.settings import NotNegative, Share, check_fields
from instructrec_jax.teacher.questions import Question

TABLE = Path(__file__).with_name("prices.json")
_MILLION = 1e6
_MESSAGE_TOKENS = 64  # at most, around the texts of a request
_DAY = re.compile(r"-\d{4}(-?\d{2}){2}$")  # of a model's name: gpt-4o-mini-2024-07-18


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """What a model costs.

    Attributes:
      input_usd: USD per million tokens that it reads.
      output_usd: USD per million tokens that it writes.
      batch_discount: share of the price that the Batch API takes off.
    """

    input_usd: NotNegative
    output_usd: NotNegative
    batch_discount: Share = 0.5

    def __post_init__(self) -> None:
        check_fields(self)

    def usd(self, input_tokens: float, output_tokens: float, *, is_batch: bool = False) -> float:
        """Returns what tokens cost."""
        full = (input_tokens * self.input_usd + output_tokens * self.output_usd) / _MILLION
        return full * (1 - self.batch_discount if is_batch else 1)

    def worst_usd(self, question: Question, *, is_batch: bool = False) -> float:
        """Returns the most that a question can cost.

        No tokenizer makes more tokens than there are bytes; a server without schemas reads the
        schema as text.
        """
        schema = json.dumps(question.schema) if question.schema else ""
        num_bytes = len((question.text + 2 * schema).encode())
        return self.usd(num_bytes + _MESSAGE_TOKENS, question.max_tokens, is_batch=is_batch)


def price_of(model: str, path: Path | str | None = None) -> Price | None:
    """Returns what a model costs; None where no table knows it.

    Args:
      model: its name, with or without the day of its version.
      path: a JSON file of the user, {"model": {"input_usd": 0.15, "output_usd": 0.6}}, which comes
        before the table of the package.

    Raises:
      UserError: if the file is not so.
    """
    for table in _tables(path):
        for name in (model, _DAY.sub("", model)):
            if name in table:
                return _price(table[name], f"{path or TABLE}: {name}")
    return None


def known_models(path: Path | str | None = None) -> list[str]:
    """Returns the names of the models with a price, in the user's table and in the package's."""
    return sorted({name for table in _tables(path) for name in table})


def _tables(path: Path | str | None) -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = [json.loads(TABLE.read_text(encoding="utf-8"))["models"]]
    if path is not None:
        remedy = (
            'expected {"model": {"input_usd": 0.15, "output_usd": 0.6}}, USD per million tokens'
        )
        tables.insert(0, files.read_json(path, dict[str, Any], remedy=remedy))
    return tables


def _price(entry: Any, where: str) -> Price:
    try:
        return Price(**entry)
    except (TypeError, UserError) as error:
        raise UserError(
            f"{where}: {error}; expected input_usd and output_usd, USD per million tokens, and "
            "perhaps batch_discount"
        ) from None
