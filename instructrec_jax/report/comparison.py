"""Two runs on the same examples: who got better or worse, and what they share."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.metrics import statistics
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.metrics.statistics import Difference, Interval
from instructrec_jax.report.charts import IntervalChart, Mark
from instructrec_jax.report.ranking_report import mean_and_interval, p_text, signed
from instructrec_jax.report.slices import METRICS, MIN_EVENTS, Groups
from instructrec_jax.report.tables import Document, Section, Table, figure
from instructrec_jax.report.users import Users
from instructrec_jax.seeds import stable_seed

NUM_CHANGED = 10  # that gained most, and that lost most, are named
_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """How a part of the events changed.

    Attributes:
      by: what the events are divided by, such as "history length".
      group: the part.
      num_events: in it.
      num_better: events whose target has a better rank in the second run.
      num_worse: likewise a worse one.
      minus: HR@1 and NDCG@5 of the second run minus those of the first, paired.
      p_holm: of NDCG@5, corrected for the number of parts.
      stands_out: of at least 100 events, and the interval of NDCG@5 leaves out the whole's.
    """

    by: str
    group: str
    num_events: int
    num_better: int
    num_worse: int
    minus: Mapping[str, Difference]
    p_holm: float
    stands_out: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changed:
    """An event whose target has another rank; ranks are means over the event's draws.

    Attributes:
      example_id: of its first example.
      target: title.
      ranks: in the first and in the second run.
    """

    example_id: str
    target: str
    ranks: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs in one scenario; differences are the second minus the first.

    Attributes:
      scenario: such as "sequential".
      names: of the runs.
      num_events: how many both ranked.
      metrics: of each run, with intervals.
      minus: paired differences by metric.
      num_better: events whose target has a better rank in the second run.
      num_worse: likewise a worse one.
      parts: of the events.
      gained: the events that gained most ranks, the most first.
      lost: those that lost most.
      facts: what the numbers depend on.
    """

    scenario: str
    names: tuple[str, str]
    num_events: int
    metrics: tuple[Mapping[str, Interval], Mapping[str, Interval]]
    minus: Mapping[str, Difference]
    num_better: int
    num_worse: int
    parts: Sequence[Part]
    gained: Sequence[Changed]
    lost: Sequence[Changed]
    facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranks:
    """The target's ranks in two runs.

    Attributes:
      ranks: int64 [n] of each run, on the same examples.
      event: int64 [n] which event each example is of.
      example_ids: [events] of the first example of each.
      targets: [events] titles.
    """

    ranks: tuple[NDArray[np.int64], NDArray[np.int64]]
    event: NDArray[np.int64]
    example_ids: Sequence[str]
    targets: Sequence[str]

    def of_events(self) -> NDArray[np.float64]:
        """Returns [events, 2] mean ranks."""
        sizes = np.bincount(self.event)
        return np.stack([np.bincount(self.event, weights=r) / sizes for r in self.ranks], axis=1)

    def difference(self, is_in: NDArray[np.bool_], seed: int) -> dict[str, Difference]:
        """Returns the paired differences over some events, [events] True."""
        rows = is_in[self.event]
        first, second = (own[rows] for own in self.ranks)
        return statistics.paired_differences(second, first, event=self.event[rows], seed=seed)


def compare_ranks(
    scenario: str,
    names: tuple[str, str],
    found: Ranks,
    groups: Iterable[tuple[str, Groups]],
    *,
    facts: Mapping[str, Any],
) -> Comparison:
    """Returns who got better or worse from the first run to the second, and what they share.

    Args:
      scenario: its name.
      names: of the runs.
      found: their ranks.
      groups: by what the events are divided, and the group of each.
      facts: what the numbers depend on.
    """
    by_event = found.of_events()
    change = by_event[:, 1] - by_event[:, 0]
    whole = found.difference(np.ones(len(change), bool), stable_seed(_SEED, "whole", scenario))

    def changed(key: NDArray[np.float64]) -> list[Changed]:
        """Returns the events with the lowest keys below 0."""
        rows = np.argsort(key, kind="stable")[:NUM_CHANGED]
        return [
            Changed(
                example_id=found.example_ids[row],
                target=found.targets[row],
                ranks=(float(by_event[row, 0]), float(by_event[row, 1])),
            )
            for row in rows[key[rows] < 0].tolist()
        ]

    return Comparison(
        scenario=scenario,
        names=names,
        num_events=len(change),
        metrics=(_metrics(found, 0, names[0]), _metrics(found, 1, names[1])),
        minus=whole,
        num_better=int((change < 0).sum()),
        num_worse=int((change > 0).sum()),
        parts=_parts(found, change, groups, whole),
        gained=changed(change),
        lost=changed(-change),
        facts=facts,
    )


def _metrics(found: Ranks, number: int, name: str) -> dict[str, Interval]:
    seed = stable_seed(_SEED, "bootstrap", name)
    return statistics.bootstrap_intervals(found.ranks[number], event=found.event, seed=seed)


def _parts(
    found: Ranks,
    change: NDArray[np.float64],
    groups: Iterable[tuple[str, Groups]],
    whole: Mapping[str, Difference],
) -> list[Part]:
    """Returns the change of each part; what is not divided has none."""
    cells = [
        (by, name, own.of == number)
        for by, own in groups
        if len(own.names) > 1
        for number, name in enumerate(own.names)
    ]
    differences = [found.difference(i, stable_seed(_SEED, by, name)) for by, name, i in cells]
    corrected = statistics.holm([own["ndcg@5"].p_value for own in differences])
    middle = whole["ndcg@5"].estimate
    return [
        Part(
            by=by,
            group=name,
            num_events=(number := int(is_in.sum())),
            num_better=int((change[is_in] < 0).sum()),
            num_worse=int((change[is_in] > 0).sum()),
            minus={metric: minus[metric] for metric in METRICS},
            p_holm=p_value,
            stands_out=number >= MIN_EVENTS
            and not minus["ndcg@5"].low <= middle <= minus["ndcg@5"].high,
        )
        for (by, name, is_in), minus, p_value in zip(cells, differences, corrected, strict=True)
    ]


def document(
    dataset: str,
    comparisons: Sequence[Comparison],
    *,
    users: Users | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Document:
    """Returns the tables of a comparison.

    Args:
      dataset: its name.
      comparisons: of each scenario.
      users: single users to look through.
      facts: what the whole depends on.
    """
    first, second = comparisons[0].names
    return Document(
        title=f"{dataset}: {second} against {first}",
        sections=[_section(own) for own in comparisons],
        users=users,
        facts=facts or {},
    )


def _section(own: Comparison) -> Section:
    first, second = own.names
    return Section(
        title=f"{own.scenario}: n={own.num_events}, {second} minus {first}",
        tables=[
            _results(own),
            _changed("Gained most", own.gained, own.names),
            _changed("Lost most", own.lost, own.names),
        ],
        lines=[*_outstanding(own)],
        details=[_parts_table(own)],
        facts=own.facts,
    )


def _results(own: Comparison) -> Table:
    first, second = own.names
    equal = own.num_events - own.num_better - own.num_worse
    return Table(
        title="Results",
        note="Test split, mean and 95% bootstrap interval; differences paired by example, p of a "
        "two-sided randomisation test.",
        header=["metric", first, second, f"{second} minus {first}", "p"],
        rows=[
            [
                name.upper(),
                *(mean_and_interval(metrics[name]) for metrics in own.metrics),
                signed(own.minus[name]),
                p_text(own.minus[name].p_value),
            ]
            for name in METRIC_NAMES
        ],
        footnotes=[
            f"the target's rank is better in {second} for {own.num_better} of {own.num_events}, "
            f"worse for {own.num_worse}, equal for {equal}"
        ],
        charts=[
            IntervalChart(
                title=f"{second} minus {first}",
                marks=[
                    Mark(
                        label=name.upper(),
                        interval=(value := own.minus[name]),
                        shown=figure(value.estimate, "+"),
                        is_notable=value.low > 0 or value.high < 0,
                    )
                    for name in METRIC_NAMES
                ],
                reference=0.0,
            )
        ],
    )


def _changed(title: str, rows: Sequence[Changed], names: tuple[str, str]) -> Table:
    return Table(
        title=title,
        note=f"{title}: rank of the target, the mean of an event's draws.",
        header=["example", *(f"rank in {name}" for name in names), "target"],
        rows=[[row.example_id, *(f"{rank:.3g}" for rank in row.ranks), row.target] for row in rows],
    )


def _outstanding(own: Comparison) -> Iterable[str]:
    """Yields the parts that changed otherwise than the whole, for a terminal."""
    found = [part for part in own.parts if part.stands_out]
    if found:
        yield "parts that changed otherwise than the whole, the lowest first:"
    for part in sorted(found, key=lambda part: part.minus["ndcg@5"].estimate):
        change = f"NDCG@5 {signed(part.minus['ndcg@5'])}"
        numbers = f"n={part.num_events}, better {part.num_better}, worse {part.num_worse}"
        yield f"  {part.by} {part.group}: {change} ({numbers})"
    if not found:
        yield f"no part of at least {MIN_EVENTS} events changed otherwise than the whole"


def _parts_table(own: Comparison) -> Table:
    first, second = own.names
    return Table(
        title="What they share",
        note=f"{second} minus {first} by part of the events, paired; * is a part of at least "
        f"{MIN_EVENTS} events whose interval of NDCG@5 leaves out that of the whole, "
        f"{figure(own.minus['ndcg@5'].estimate, '+')}; p of NDCG@5 by Holm's correction for the "
        "number of parts.",
        header=["by", "group", "n", "better", "worse", "HR@1", "NDCG@5", "p"],
        rows=[
            [
                part.by,
                part.group,
                *map(str, (part.num_events, part.num_better, part.num_worse)),
                signed(part.minus["hr@1"]),
                signed(part.minus["ndcg@5"]) + (" *" if part.stands_out else ""),
                p_text(part.p_holm),
            ]
            for part in own.parts
        ],
        charts=[
            IntervalChart(
                title=f"NDCG@5, {second} minus {first}, by part",
                marks=[
                    Mark(
                        label=f"{part.by}: {part.group}",
                        interval=part.minus["ndcg@5"],
                        shown=figure(part.minus["ndcg@5"].estimate, "+"),
                        is_notable=part.stands_out,
                    )
                    for part in own.parts
                ],
                reference=own.minus["ndcg@5"].estimate,
            )
        ],
    )
