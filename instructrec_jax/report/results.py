"""What a report says, computed from ranks: choices on validation, intervals and differences."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking, repeats, statistics
from instructrec_jax.metrics.statistics import Difference, Interval
from instructrec_jax.report.details import Details
from instructrec_jax.report.validity import Check
from instructrec_jax.seeds import stable_seed

RUN = "#"  # between the name of a system and the number of its run
MAX_INDEX_ROWS = 10
MAX_TIED_SHARE = 0.01  # of examples, without figures in expectation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A template under a normaliser, and how it did on the validation split."""

    template_id: str
    normaliser: str
    num_examples: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexRow:
    """How examples fared whose target has one of some indices in the prompt.

    Attributes:
      first: the first of these indices, counted from 1.
      last: the last of them.
      num_examples: how many there are.
      hit_rate: their HR@1; None where there is none.
    """

    first: int
    last: int
    num_examples: int
    hit_rate: float | None

    @property
    def name(self) -> str:
        """Such as "3" or "11-20"."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionBias:
    """HR@1 by the index of the target in the prompt.

    Attributes:
      rows: at most ten, in order.
      p_value: how often HR@1 would differ as much between rows if the index did not matter.
    """

    rows: Sequence[IndexRow]
    p_value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ties:
    """Candidates that a system finds as good as the target.

    Attributes:
      share: of the examples that have any.
      expected: the metrics in expectation over the order of equal candidates; None where the share
        is too small to matter.
    """

    share: float
    expected: Mapping[str, Interval] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SystemResult:
    """One system in one scenario.

    Attributes:
      name: of the system.
      metrics: mean and interval of each metric on the test split.
      minus: by the name of another system, the paired differences to it.
      choices: what validation chose among; () for a baseline, which has one way to score.
      chosen: the template and normaliser of the test result; None for a baseline.
      ties: how often the target is equal to another candidate, and what that does.
      unsure: metrics whose K is larger than the ranks that the candidate views make sure of.
      position_bias: None where prompts do not show all candidates once, all as many.
      facts: what the system's numbers depend on.
    """

    name: str
    metrics: Mapping[str, Interval]
    minus: Mapping[str, Mapping[str, Difference]]
    ties: Ties
    choices: Sequence[Choice] = ()
    chosen: Choice | None = None
    unsure: Sequence[str] = ()
    position_bias: PositionBias | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenarioResult:
    """All systems in one scenario: a family of tasks with one kind of query.

    The paper's Table 7 is three scenarios: personalised search by preference, by vague and by
    specific intention.

    Attributes:
      scenario: such as "sequential" or "personalized_search.vague".
      systems: baselines first.
      certain_hits: in how many examples any scorer has HR@K 1, by metric; see `caveats`.
      warnings: what makes the figures less telling than they look.
      details: slices of the events, and how the systems behave.
      validity: what was checked before the figures are believed.
      facts: what the numbers of all systems depend on.
    """

    scenario: str
    systems: Sequence[SystemResult]
    certain_hits: Mapping[str, int]
    warnings: Sequence[str]
    details: Details
    validity: Sequence[Check]
    facts: Mapping[str, Any]


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
        return -metrics["ndcg@5"], -metrics["hr@1"], template_order(choice.template_id)

    return min(choices, key=preference)


def template_order(template_id: str) -> tuple[str, int, str]:
    """Returns a sort key of template ids in which A9 comes before A10."""
    letters, number, rest = re.fullmatch(r"(\D*)(\d*)(.*)", template_id, re.DOTALL).groups()  # type: ignore[union-attr]
    return letters, int(number or 0), rest


def is_repeat(name: str) -> bool:
    """Returns whether a name is that of a second or later run of a system, such as "model#2"."""
    return RUN in name


def pooled(ranks_by_run: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Returns ranks by system: [runs, n] where it has several runs, else [n]."""
    found: dict[str, list[NDArray[np.int64]]] = {}
    for name, rank in ranks_by_run.items():
        found.setdefault(name.partition(RUN)[0], []).append(rank)
    return {name: own[0] if len(own) == 1 else np.stack(own) for name, own in found.items()}


def about_runs(rank: NDArray[np.int64]) -> dict[str, Any]:
    """Returns what to tell of the runs of a system: nothing where it has one."""
    if rank.ndim == 1:
        return {}
    found = [ranking.evaluate(own) for own in rank]
    return {"runs": len(rank)} | {
        f"{name} of runs": [round(own[name], 4) for own in found] for name in ("hr@1", "ndcg@5")
    }


def compare(
    ranks_by_system: Mapping[str, NDArray[np.int64]],
    name: str,
    *,
    others: Sequence[str],
    event: NDArray[np.int64] | None,
    seed: int,
) -> tuple[dict[str, Interval], dict[str, dict[str, Difference]]]:
    """Returns a system's metrics with intervals, and its paired differences to others.

    Args:
      ranks_by_system: by system [n] ranks on the same examples in the same order, or [runs, n] of
        a system with several runs, see `pooled`.
      name: the system.
      others: systems to subtract.
      event: [n] which event an example belongs to; None: each is an event of its own.
      seed: of the bootstrap.
    """
    own = ranks_by_system[name]

    def several(*systems: str) -> bool:
        return any(ranks_by_system[system].ndim > 1 for system in systems)

    intervals = repeats.intervals_over_runs if several(name) else statistics.bootstrap_intervals
    metrics = intervals(own, event=event, seed=stable_seed(seed, "bootstrap", name))
    minus = {
        other: (
            repeats.differences_over_runs if several(name, other) else statistics.paired_differences
        )(
            own,
            ranks_by_system[other],
            event=event,
            seed=stable_seed(seed, "paired bootstrap", other),
        )
        for other in others
    }
    return metrics, minus


def corrected_p_values(systems: Sequence[SystemResult]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns Holm's p-values of all differences of a scenario, each metric a table of its own.

    Returns:
      By system, by the system that is subtracted, by metric.
    """
    pairs = [(system.name, other) for system in systems for other in system.minus]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for metric in ranking.METRIC_NAMES:
        raw = [s.minus[other][metric].p_value for s in systems for other in s.minus]
        for (name, other), p_value in zip(pairs, statistics.holm(raw), strict=True):
            found.setdefault(name, {}).setdefault(other, {})[metric] = p_value
    return found


def ties(
    rank: NDArray[np.int64],
    num_tied: NDArray[np.int64],
    *,
    name: str,
    event: NDArray[np.int64] | None,
    seed: int,
) -> Ties:
    """Returns how often a system has ties with the target, and its metrics in expectation.

    Args:
      rank: [n] ranks, ties counted against the target.
      num_tied: [n] other candidates that are equal to the target.
      name: of the system.
      event: [n] which event an example belongs to; None: each is an event of its own.
      seed: of the bootstrap.
    """
    share = float((num_tied > 0).mean())
    if share <= MAX_TIED_SHARE:
        return Ties(share=share, expected=None)
    seed = stable_seed(seed, "bootstrap of expected ranks", name)
    expected = statistics.bootstrap_intervals(rank, num_tied=num_tied, event=event, seed=seed)
    return Ties(share=share, expected=expected)


def position_bias(
    target_index: ArrayLike, rank: ArrayLike, *, num_candidates: int, seed: int
) -> PositionBias:
    """Returns HR@1 by the index of the target, and whether it depends on it.

    Args:
      target_index: [n] int, index of the target in the prompt, from 0.
      rank: [n] int, rank of the target, 1 = best.
      num_candidates: how many each prompt shows.
      seed: of the draws for the p-value.
    """
    hits = ranking.hits(rank, 1)
    index = np.asarray(target_index, dtype=np.int64)
    groups = np.array_split(np.arange(num_candidates), min(num_candidates, MAX_INDEX_ROWS))
    row_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])[index]
    counts = np.bincount(row_of, minlength=len(groups))
    num_hits = np.bincount(row_of, weights=hits, minlength=len(groups)).astype(np.int64)
    return PositionBias(
        rows=[
            IndexRow(
                first=int(group[0]) + 1,
                last=int(group[-1]) + 1,
                num_examples=int(count),
                hit_rate=float(number / count) if count else None,
            )
            for group, count, number in zip(groups, counts, num_hits, strict=True)
        ],
        p_value=statistics.homogeneity_p_value(num_hits, counts, seed=seed),
    )
