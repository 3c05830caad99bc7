"""Verdicts on the orderings of the paper's figures, from the ranks of each test example."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.metrics import ranking, statistics
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.report.paper_table import Verdict
from instructrec_jax.seeds import stable_seed
from instructrec_jax.stages.report.exports import RANKS_FILE

_SEED = 0
Events = Mapping[str, float]  # a value of each event


class _Side(NamedTuple):
    """One side of an ordering."""

    part: str
    system: str
    metric: str


def verdict_of(
    ordering: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
    reports: Mapping[str, Path],
) -> Verdict:
    """Returns the verdict on an ordering.

    Args:
      ordering: as the paper's data has it.
      parts: of the table, likewise.
      reports: by part the folder of its report; parts that were not run are left out.
    """
    sides = [_Side(*ordering[name].split("/")) for name in ("higher", "lower")]
    paper = [_paper_figure(side, parts) for side in sides]
    told: dict[str, Any] = {
        "number": ordering["number"],
        "says": ordering["says"],
        "measures": (ordering["higher"], ordering["lower"]),
        "paper": None if paper[0] is None or paper[1] is None else paper[0] - paper[1],
        "within": ordering.get("within"),
    }
    found = []
    for side in sides:
        if (events := _events(side, reports)) is None:
            return Verdict(**told, reason=f"no {side.system} in {side.part}")
        found.append(events)
    higher, lower = found
    shared = sorted(higher.keys() & lower.keys())
    is_paired = bool(shared)
    ours = [_values(own, shared if is_paired else sorted(own)) for own in (higher, lower)]
    seed = stable_seed(_SEED, "verdict", *told["measures"])
    difference = statistics.mean_difference(*ours, is_paired=is_paired, seed=seed)
    return Verdict(**told, ours=difference, is_paired=is_paired)


def _values(events: Events, names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([events[name] for name in names])


def _events(side: _Side, reports: Mapping[str, Path]) -> dict[str, float] | None:
    """Returns a metric of each event, the mean over its draws; None where it was not measured."""
    if side.part not in reports:
        return None
    ranks: dict[str, list[int]] = {}
    for line in (reports[side.part] / RANKS_FILE).read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        if side.system not in example["ranks"]:
            return None
        event = f"{example['user_id']}:{example['position']}:{example['target_id']}"
        ranks.setdefault(event, []).append(example["ranks"][side.system])
    return {
        event: float(ranking.per_example(own)[side.metric].mean()) for event, own in ranks.items()
    }


def _paper_figure(side: _Side, parts: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns what the paper has for a side."""
    for part in parts:
        for row in part["paper"]:
            if part["name"] == side.part and row.get("ours") == side.system:
                return row["figures"][METRIC_NAMES.index(side.metric)]
    return None
