"""A table of the paper beside the same one made here: figures, gains, and a verdict on orderings.

What the paper says (figures, systems, scenarios, orderings) is data: `paper.json`.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report.tables import Document, Section, Table, figure

AGREES, UNCLEAR, DISAGREES, NOT_TESTED = "agrees", "unclear", "disagrees", "not tested"
OURS = "InstructRec"  # the paper's name of its model
_FILE = Path(__file__).with_name("paper.json")


@functools.cache
def paper() -> Mapping[str, Any]:
    """Returns what the paper says: `models` and `tables` by name, as `paper.json` has them."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A system in one scenario.

    Attributes:
      system: its name in the paper, or here where the paper has none.
      name: what the figures of this run are called.
      paper: the paper's figures in the order of METRIC_NAMES; None where it has none.
      ours: by metric the figures measured here; None where it was not run.
      remark: why it was not run, or by which template it ranks.
      is_baseline: whether gains are over it.
    """

    system: str
    name: str
    paper: Sequence[float] | None = None
    ours: Mapping[str, Interval] | None = None
    remark: str = ""
    is_baseline: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One scenario of a table.

    Attributes:
      name: such as "sequential".
      label: the paper's cell, such as "<P1,I0,T3>".
      about: data, candidates and number of examples, or why nothing was run.
      rows: the systems.
      validity: what its report checked of itself.
      details: further tables, shown everywhere.
    """

    name: str
    label: str
    about: str
    rows: Sequence[Row]
    validity: str = ""
    details: Sequence[Table] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an ordering that the paper's figures show is seen here.

    Attributes:
      number: of the ordering among those that a reproduction should show.
      says: what it says.
      measures: the two sides, "PART/SYSTEM/METRIC".
      paper: the paper's difference of the two sides; None where it has none.
      ours: the difference here; None where a side was not run.
      is_paired: whether both sides are of the same events, and the interval is of pairs.
      within: the ordering says that the sides differ by this at most; None: that the first is
        higher.
      reason: why it was not tested.
    """

    number: int
    says: str
    measures: tuple[str, str]
    paper: float | None = None
    ours: Interval | None = None
    is_paired: bool = False
    within: float | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """One of AGREES, UNCLEAR, DISAGREES and NOT_TESTED, by the interval."""
        if self.ours is None:
            return NOT_TESTED
        low, high = self.ours.low, self.ours.high
        if self.within is None:
            return AGREES if low > 0 else DISAGREES if high < 0 else UNCLEAR
        if -self.within <= low and high <= self.within:
            return AGREES
        return DISAGREES if low > self.within or high < -self.within else UNCLEAR


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperTable:
    """A table of the paper, made here.

    Attributes:
      title: of the table.
      parts: its scenarios.
      verdicts: on the orderings that concern it.
      remarks: what else to know.
      counts: of Table 5: by data set the users, items and interactions.
      facts: what all of it depends on.
    """

    title: str
    parts: Sequence[Part] = ()
    verdicts: Sequence[Verdict] = ()
    remarks: Sequence[str] = ()
    counts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def gains(rows: Sequence[Row], *, of_paper: bool) -> dict[str, float] | None:
    """Returns by metric how far the model is above the best baseline of the column, relative.

    Args:
      rows: of a part; the first that is no baseline is the model.
      of_paper: whether the paper's figures are meant, or ours.

    Returns:
      Such as 0.0426 for 4.26 %; None where the model or every baseline lacks figures.
    """
    found = [(row.is_baseline, _means(row, of_paper)) for row in rows]
    best = [means for is_baseline, means in found if is_baseline and means]
    model = next((means for is_baseline, means in found if not is_baseline), None)
    if not best or not model:
        return None
    tops = {name: max(means[name] for means in best) for name in METRIC_NAMES}
    return {name: model[name] / top - 1.0 for name, top in tops.items() if top}


def values(table: PaperTable) -> dict[str, Any]:
    """Returns every figure of a table."""
    found = dataclasses.asdict(table)
    for part, own in zip(found["parts"], table.parts, strict=True):
        part["gain_of_paper"] = gains(own.rows, of_paper=True)
        part["gain"] = gains(own.rows, of_paper=False)
    for verdict, given in zip(found["verdicts"], table.verdicts, strict=True):
        verdict["verdict"] = given.verdict
    return found


def document(table: PaperTable) -> Document:
    """Returns the table as people read it."""
    sections = [_section(part) for part in table.parts]
    if table.counts:
        sections.append(_counts_section(table))
    if table.verdicts:
        sections.append(_verdict_section(table.verdicts))
    return Document(
        title=table.title,
        sections=sections,
        messages=[("note", remark) for remark in table.remarks],
        facts=table.facts,
    )


def _means(row: Row, of_paper: bool) -> dict[str, float] | None:
    """Returns a row's figures by metric."""
    if of_paper:
        return dict(zip(METRIC_NAMES, row.paper, strict=True)) if row.paper else None
    return {name: row.ours[name].estimate for name in METRIC_NAMES} if row.ours else None


def _section(part: Part) -> Section:
    """Returns the section of one scenario."""
    rows = [cells for row in part.rows for cells in _row_cells(row)]
    for name, of_paper in (("gain (paper)", True), ("gain", False)):
        if found := gains(part.rows, of_paper=of_paper):
            rows.append([name, *(_percent(found.get(metric)) for metric in METRIC_NAMES)])
    return Section(
        title=" ".join(filter(None, (f"{part.name}, {part.label}:", part.about))),
        tables=[
            Table(
                header=["system", *(name.upper() for name in METRIC_NAMES)],
                rows=rows,
                footnotes=[
                    *(f"{row.name}: {row.remark}" for row in part.rows if row.remark),
                    *filter(None, [part.validity]),
                ],
            ),
            *part.details,
        ],
    )


def _row_cells(row: Row) -> Iterator[list[str]]:
    """Yields the paper's figures, then ours with half the width of their intervals."""
    if row.paper:
        yield [f"{row.system} (paper)", *(figure(value, digits=4) for value in row.paper)]
    if row.ours:
        yield [row.name, *(_with_spread(row.ours[name]) for name in METRIC_NAMES)]


def _counts_section(table: PaperTable) -> Section:
    """Returns the counts of data sets, with what follows from them."""
    names = list(next(iter(table.counts.values())))
    rows = []
    for dataset, counts in table.counts.items():
        users, items, events = (counts[name] for name in names)
        sparsity, length = 1 - events / (users * items), events / users
        numbers = [f"{counts[name]:,}" for name in names]
        rows.append([dataset, *numbers, f"{sparsity:.3%}", f"{length:.2f}"])
    header = ["data set", *names, "sparsity", "average length"]
    return Section(title="", tables=[Table(header=header, rows=rows)])


def _verdict_section(verdicts: Sequence[Verdict]) -> Section:
    """Returns what the paper's orderings are here."""
    rows = []
    for verdict in verdicts:
        paper = "" if verdict.paper is None else figure(verdict.paper, "+")
        own = verdict.reason
        if verdict.ours is not None:
            low, high = (figure(end, "+") for end in (verdict.ours.low, verdict.ours.high))
            own = f"{figure(verdict.ours.estimate, '+')} [{low}, {high}]"
            own += "" if verdict.is_paired else ", not paired"
        limit = "" if verdict.within is None else f" (within {figure(verdict.within, digits=2)})"
        text = f"{verdict.number}. {verdict.says}{limit}"
        rows.append([text, paper, own, verdict.verdict])
    header = ["ordering", "paper", "here", "verdict"]
    return Section(
        title="Orderings that a reproduction should show: difference, 95% interval, verdict",
        tables=[Table(header=header, rows=rows)],
    )


def _with_spread(value: Interval) -> str:
    """Returns such as '.562±.025'."""
    return f"{figure(value.estimate)}±{figure((value.high - value.low) / 2)}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.2%}"
