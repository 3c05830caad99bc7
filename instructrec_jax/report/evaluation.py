"""What a report holds, and how it is computed from ranks: plain arrays in, records out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax import seeds
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking, statistics
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report import scenarios
from instructrec_jax.report.position_bias import PositionBias

MODEL = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A template under a normaliser, and how it did on the validation split."""

    template_id: str
    normaliser: str
    num_examples: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemRow:
    """One system in one scenario, on the test split.

    Attributes:
      system: "random", "popularity", "cooccurrence" or "model".
      metrics: mean and interval by metric.
      difference: model minus this system with its paired interval; {} for the model itself.
    """

    system: str
    metrics: Mapping[str, Interval]
    difference: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """Everything reported of one scenario.

    Attributes:
      scenario: such as "sequential" or "personalized_search.vague".
      chosen: the template and normaliser whose test result is reported.
      choices: all that validation chose among.
      rows: the systems, ours last.
      protocol: what a number needs beside it to mean something.
      unsure: metrics whose K lies beyond what the ballots make sure of, see `scoring.ballots`.
      position_bias: None where prompts do not show all candidates once, all as many.
    """

    scenario: str
    chosen: Choice
    choices: Sequence[Choice]
    rows: Sequence[SystemRow]
    protocol: Mapping[str, Any]
    unsure: Sequence[str] = ()
    position_bias: PositionBias | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Artefact F before it is written."""

    dataset: str
    scenarios: Sequence[ScenarioResult]


def choose(choices: Sequence[Choice]) -> Choice:
    """Returns the choice with the best validation NDCG@5, ties by HR@1, then by lower id.

    Args:
      choices: at least one; where all else is equal the earlier normaliser wins.

    Raises:
      UserError: if there is none.
    """
    if not choices:
        raise UserError("no template was scored on the validation split; score that split first")

    def preference(choice: Choice) -> tuple[float, float, tuple[str, int, str]]:
        metrics = choice.metrics
        order = scenarios.template_order(choice.template_id)
        return -metrics["ndcg@5"], -metrics["hr@1"], order

    return min(choices, key=preference)


def compare_systems(
    ranks_by_system: Mapping[str, NDArray[np.int64]], *, seed: int
) -> list[SystemRow]:
    """Returns a row a system, each with its interval and the model's paired lead over it.

    Args:
      ranks_by_system: by system [n] ranks on the same examples in the same order, with "model".
      seed: seed of the bootstrap.
    """
    ours = ranks_by_system[MODEL]
    rows = []
    for system, rank in ranks_by_system.items():
        difference: dict[str, Interval] = {}
        if system != MODEL:
            difference = statistics.paired_difference_intervals(
                ours, rank, seed=seeds.stable_seed(seed, "paired bootstrap", system)
            )
        metrics = statistics.bootstrap_intervals(
            rank, seed=seeds.stable_seed(seed, "bootstrap", system)
        )
        rows.append(SystemRow(system=system, metrics=metrics, difference=difference))
    return sorted(rows, key=lambda row: row.system == MODEL)


def evaluate_choice(template_id: str, normaliser: str, rank: NDArray[np.int64]) -> Choice:
    """Returns a template's validation result under a normaliser."""
    return Choice(
        template_id=template_id,
        normaliser=normaliser,
        num_examples=len(rank),
        metrics=ranking.evaluate(rank),
    )


def stack_rows(rows: Sequence[NDArray], fill: float) -> NDArray:
    """Returns ragged rows as one matrix [n, longest], `fill` behind the shorter ones.

    Example:
      `stack_rows([np.array([1, 2]), np.array([3])], -1)` is `[[1, 2], [3, -1]]`.
    """
    width = max((len(row) for row in rows), default=0)
    dtype = rows[0].dtype if rows else np.float32
    matrix = np.full((len(rows), width), fill, dtype=dtype)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if rows:
        matrix[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    return matrix
