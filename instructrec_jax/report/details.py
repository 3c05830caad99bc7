"""What a report tells beyond its first table: slices, and how each system behaves."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.metrics import behaviour
from instructrec_jax.report.charts import IntervalChart, LineChart, Mark
from instructrec_jax.report.slices import SliceRow
from instructrec_jax.report.tables import Table, figure

TARGET = "target"  # stands for a system that ranks every target first
TEMPLATE = "template"  # what rows of templates are divided by
_SHOWN = ("Gini", "coverage", "head", "tail", "popularity", "calibration", "index p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BehaviourRow:
    """How a system behaves, see `metrics.behaviour`.

    Attributes:
      system: its name; "target" for one that ranks every target first.
      num_examples: over how many, each draw of negatives counted.
      gini: of first ranks over items.
      coverage: share of items that are ever first.
      head_share: of first ranks, those of the most popular fifth of the catalogue.
      tail_share: those of its less popular half.
      popularity_correlation: Spearman's, in each list; None where no list has one.
      calibration_error: of the softmax over candidates; None for scores that are no
        log-likelihoods, or of several rounds.
      index_p_value: whether first ranks depend on the index in the prompt; None where no prompt
        shows all candidates, or examples are too few.
    """

    system: str
    num_examples: int
    gini: float
    coverage: float
    head_share: float
    tail_share: float
    popularity_correlation: float | None
    calibration_error: float | None
    index_p_value: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExposureRow:
    """How often items of a group are ranked first, beside how often they are the target.

    Attributes:
      system: its name.
      by: what the items are divided by, such as "brand".
      group: the part.
      exposure: share of first ranks that go to it.
      relevance: share of targets that belong to it.
    """

    system: str
    by: str
    group: str
    exposure: float
    relevance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReliabilityRow:
    """A bin of `metrics.behaviour.reliability` of a system; attributes as there."""

    system: str
    low: float
    high: float
    num_examples: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstRankRow:
    """How often a system ranks the candidate at an index of the prompt first.

    Attributes:
      system: its name.
      index: in the prompt, counted from 1.
      num_examples: prompts, one of each event.
      share: of these in which this candidate is first.
      expected: the share that each index has where it does not matter.
    """

    system: str
    index: int
    num_examples: int
    share: float
    expected: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Details:
    """What a scenario's report tells beyond its first table.

    Attributes:
      slices: a row for each system and part of the events.
      behaviour: a row for each system, that of the targets first.
      exposure: a row for each system and group of items.
      reliability: ten rows for each system that gives log-likelihoods.
      first_ranks: a row for each system and index, of those whose prompts show all candidates.
      left_out: what could not be computed, and why.
    """

    slices: Sequence[SliceRow] = ()
    behaviour: Sequence[BehaviourRow] = ()
    exposure: Sequence[ExposureRow] = ()
    reliability: Sequence[ReliabilityRow] = ()
    first_ranks: Sequence[FirstRankRow] = ()
    left_out: Sequence[str] = ()


def reliability_rows(
    system: str, log_likelihood: NDArray[np.floating], target_index: NDArray[np.integer]
) -> tuple[list[ReliabilityRow], float]:
    """Returns the bins of a system and its calibration error; arguments as in `reliability`."""
    bins = behaviour.reliability(log_likelihood, target_index)
    rows = [ReliabilityRow(system=system, **own._asdict()) for own in bins]
    return rows, behaviour.calibration_error(bins)


def first_rank_rows(system: str, shares: NDArray[np.float64]) -> list[FirstRankRow]:
    """Returns how often each index is ranked first; arguments as in `index_p_value`."""
    number, width = shares.shape
    return [
        FirstRankRow(
            system=system,
            index=index,
            num_examples=number,
            share=float(share),
            expected=1 / width,
        )
        for index, share in enumerate(shares.mean(axis=0), start=1)
    ]


def tables(details: Details) -> list[Table]:
    """Returns all of it as tables for Markdown and HTML."""
    found = [
        _behaviour_table(details),
        _slices_table(details.slices),
        _exposure_table(details.exposure),
    ]
    if details.reliability:
        found.append(_reliability_table(details.reliability))
    if details.first_ranks:
        found.append(_first_ranks_table(details.first_ranks))
    return found


def _behaviour_table(details: Details) -> Table:
    return Table(
        title="Behaviour at rank 1",
        note="Behaviour at rank 1: Gini and coverage over all candidate items, share of the most "
        "popular fifth (head) and the less popular half (tail) of the catalogue; Spearman's "
        "correlation of scores with popularity; expected calibration error of the softmax over "
        "candidates; chi-square test of the index in the prompt. The first row is that of the "
        "targets.",
        header=["system", *_SHOWN],
        rows=[
            [
                row.system,
                *map(figure, (row.gini, row.coverage, row.head_share, row.tail_share)),
                figure(row.popularity_correlation),
                figure(row.calibration_error),
                "-" if row.index_p_value is None else f"{row.index_p_value:.2g}",
            ]
            for row in details.behaviour
        ],
        footnotes=[f"left out: {text}" for text in details.left_out],
    )


def _slices_table(rows: Sequence[SliceRow]) -> Table:
    """Returns NDCG@5 by part, a column for each system."""
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.by, row.group, row.system): row for row in rows}
    parts = {(row.by, row.group): row.num_events for row in rows}
    chosen = {(row.system, row.by) for row in rows}  # what is no baseline has a template
    return Table(
        title="Parts of the events",
        charts=[_slices_chart(rows, system) for system in systems if (system, TEMPLATE) in chosen],
        note="NDCG@5 of parts of the events, mean and 95% interval (1.96 standard errors); * is "
        "below the whole by more than the interval.",
        header=["by", "group", "n", *systems],
        rows=[
            [*part, str(number), *(_slice(cells.get((*part, system))) for system in systems)]
            for part, number in parts.items()
        ],
    )


def _exposure_table(rows: Sequence[ExposureRow]) -> Table:
    """Returns exposure by group of items, a column for each system."""
    systems = list(dict.fromkeys(row.system for row in rows))
    cells = {(row.by, row.group, row.system): row.exposure for row in rows}
    relevance = {(row.by, row.group): row.relevance for row in rows}
    return Table(
        title="Exposure against relevance",
        note="Share of first ranks that each group of items gets, beside its share of targets; in "
        "brackets the first divided by the second: above 1 a group is shown more often than it is "
        "wanted.",
        header=["by", "group", "targets", *systems],
        rows=[
            [*part, figure(wanted), *(_exposed(cells.get((*part, s)), wanted) for s in systems)]
            for part, wanted in relevance.items()
        ],
    )


def _exposed(exposure: float | None, relevance: float) -> str:
    """Returns such as '.120 (0.80)'."""
    if exposure is None or not relevance:
        return figure(exposure or 0.0)
    return f"{figure(exposure or 0.0)} ({exposure / relevance:.2f})"


def _slice(row: SliceRow | None) -> str:
    if row is None:
        return "-"
    value = row.metrics["ndcg@5"]
    shown = f"{figure(value.estimate)} {figure(value.low)}-{figure(value.high)}"
    return shown + (" *" if row.is_below else "")


def _slices_chart(rows: Sequence[SliceRow], system: str) -> IntervalChart:
    """Returns the picture of a system's NDCG@5 by what has parts; those below it stand out."""
    number = Counter(row.by for row in rows if row.system == system)
    own = [
        (row, row.metrics["ndcg@5"]) for row in rows if row.system == system and number[row.by] > 1
    ]
    return IntervalChart(
        title=f"{system}: NDCG@5 by part",
        marks=[
            Mark(
                label=f"{row.by}: {row.group}",
                interval=value,
                shown=figure(value.estimate),
                is_notable=row.is_below,
            )
            for row, value in own
        ],
        ends=(0.0, 1.0),
    )


def _reliability_chart(rows: Sequence[ReliabilityRow]) -> LineChart:
    """Returns the picture of accuracy by probability; on the diagonal both are equal."""
    series = {"equal": [(0.0, 0.0), (1.0, 1.0)]}
    for row in rows:
        if row.confidence is not None and row.accuracy is not None:
            series.setdefault(row.system, []).append((row.confidence, row.accuracy))
    return LineChart(title="Accuracy by probability", x_label="probability", series=series)


def _first_ranks_chart(rows: Sequence[FirstRankRow]) -> LineChart:
    """Returns the picture of the shares by index."""
    series: dict[str, list[tuple[float, float]]] = {"expected": []}
    for row in rows:
        series.setdefault(row.system, []).append((row.index, row.share))
        if row.system == rows[0].system:
            series["expected"].append((row.index, row.expected))
    return LineChart(title="Share of first ranks by index", x_label="index", series=series)


def _reliability_table(rows: Sequence[ReliabilityRow]) -> Table:
    return Table(
        title="Reliability",
        charts=[_reliability_chart(rows)],
        note="Reliability: how often the likeliest candidate is the target, by its probability.",
        header=["system", "probability", "n", "mean probability", "accuracy"],
        rows=[
            [
                row.system,
                f"{row.low:.1f}-{row.high:.1f}",
                str(row.num_examples),
                figure(row.confidence),
                figure(row.accuracy),
            ]
            for row in rows
            if row.num_examples
        ],
    )


def _first_ranks_table(rows: Sequence[FirstRankRow]) -> Table:
    return Table(
        title="Index in the prompt",
        charts=[_first_ranks_chart(rows)],
        note="Share of first ranks by the index of the candidate in the prompt.",
        header=["system", "index", "n", "share", "expected"],
        rows=[
            [
                row.system,
                str(row.index),
                str(row.num_examples),
                figure(row.share),
                figure(row.expected),
            ]
            for row in rows
        ],
    )
