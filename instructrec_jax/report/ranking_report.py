"""The results of ranking systems as the values and the tables of a report."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructrec_jax.manifest import Manifest
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.metrics.statistics import POWER, Interval
from instructrec_jax.report import details
from instructrec_jax.report.charts import IntervalChart, Mark
from instructrec_jax.report.results import (
    IndexRow,
    Report,
    ScenarioResult,
    SystemResult,
    corrected_p_values,
)
from instructrec_jax.report.tables import Document, Section, Table, figure
from instructrec_jax.report.users import Users
from instructrec_jax.report.validity import FAILED, NOT_RUN, PASSED, Check

FOREST = "paired_differences.png"  # beside the report
_HEADLINE_METRICS = ("hr@1", "ndcg@5")
_EXPECTED = "  expected"  # row below that of a system with ties


def values(report: Report) -> dict[str, Any]:
    """Returns every number with its interval and protocol, by scenario and system."""
    return {
        "dataset": report.dataset,
        "scenarios": {result.scenario: _scenario_values(result) for result in report.scenarios},
    }


def document(
    report: Report,
    *,
    training: tuple[str, Section] | None = None,
    users: Users | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Document:
    """Returns the tables of a report.

    Args:
      report: the report.
      training: the training curve: its picture's file name beside the report, and its section.
      users: single users to look through.
      facts: what the whole report depends on.
    """
    return Document(
        title=report.dataset,
        sections=[
            *(_section(report.dataset, result) for result in report.scenarios),
            *([] if training is None else [training[1]]),
        ],
        messages=[
            *_failures(report),
            *(
                ("warning", f"{result.scenario}: {text}")
                for result in report.scenarios
                for text in result.warnings
            ),
        ],
        pictures={
            "paired differences": FOREST,
            **({} if training is None else {"training curve": training[0]}),
        },
        users=users,
        facts=facts or {},
    )


def forest(report: Report) -> dict[str, list[IntervalChart]]:
    """Returns by scenario the pictures of the paired differences, a forest plot each."""
    return {
        result.scenario: [
            _forest([s for s in result.systems if s.chosen], metric) for metric in _HEADLINE_METRICS
        ]
        for result in report.scenarios
    }


def provenance(planned: Manifest) -> dict[str, Any]:
    """Returns what the whole report was made from and how, as its manifest has it."""
    return {
        "command": planned.command,
        **{f"sha256 of {name}": value for name, value in planned.inputs.items()},
        **{f"setting {name}": value for name, value in planned.settings.items()},
        **{f"version of {name}": value for name, value in planned.versions.items()},
    }


def _scenario_values(result: ScenarioResult) -> dict[str, Any]:
    """Returns the numbers of one scenario."""
    named = [system for system in result.systems if system.chosen]
    return {
        "protocol": {**result.facts, "systems": {system.name: system.facts for system in named}},
        "chosen": {system.name: system.chosen for system in named},
        "validation": {system.name: system.choices for system in named},
        "test": {system.name: system.metrics for system in result.systems},
        "ties": {system.name: system.ties for system in result.systems},
        "minus": {system.name: system.minus for system in named},
        "p_holm": corrected_p_values(named),
        "unsure": {system.name: system.unsure for system in named},
        "position_bias": {system.name: system.position_bias for system in named},
        "certain_hits": result.certain_hits,
        "validity": result.validity,
        **vars(result.details),
        "warnings": result.warnings,
    }


def _section(dataset: str, result: ScenarioResult) -> Section:
    """Returns the section of one scenario."""
    facts = result.facts
    named = [system for system in result.systems if system.chosen]
    return Section(
        title=f"{dataset} {result.scenario}: n={facts['num_examples']}, "
        f"{facts['num_candidates']} candidates"
        + (f" in {facts['num_draws']} draws" if facts["num_draws"] != "1" else ""),
        tables=[_results_table(result)],
        lines=[
            *(line for system in named for line in _system_lines(system)),
            badge(result.validity),
        ],
        details=[
            _validity_table(result.validity),
            _differences_table(named),
            _choices_table(named),
            *(_position_table(system) for system in named if system.position_bias),
            *details.tables(result.details),
        ],
        facts={
            **facts,
            **{f"{s.name}: {name}": value for s in named for name, value in s.facts.items()},
        },
        tally=_tally(result.validity),
    )


def _failures(report: Report) -> Iterator[tuple[str, str]]:
    """Yields what failed, with the examples."""
    for result in report.scenarios:
        for check in result.validity:
            if check.status == FAILED:
                named = f": {', '.join(check.ids)}" if check.ids else ""
                yield (
                    "error",
                    f"{result.scenario}: check '{check.check}' failed, {check.found}{named}",
                )


def badge(checks: Sequence[Check]) -> str:
    """Returns such as 'validity: 7 checks passed; not run: preferences, shuffled labels'."""
    by_status = {
        status: [check.check for check in checks if check.status == status]
        for status in (FAILED, NOT_RUN)
    }
    passed = len(checks) - sum(map(len, by_status.values()))
    parts = [f"{status}: {', '.join(names)}" for status, names in by_status.items() if names]
    return "; ".join([f"validity: {passed} checks passed", *parts])


def _tally(checks: Sequence[Check]) -> dict[str, int]:
    """Returns how many checks ended how, in a fixed order."""
    counts = Counter(check.status for check in checks)
    return {status: counts[status] for status in (PASSED, FAILED, NOT_RUN) if counts[status]}


def _validity_table(checks: Sequence[Check]) -> Table:
    """Returns what was checked."""
    return Table(
        title="Validity",
        note=f"{badge(checks).capitalize()}.",
        header=["check", "status", "found", "examples"],
        rows=[
            [check.check, check.status, check.found, ", ".join(check.ids) or "-"]
            for check in checks
        ],
    )


def _results_table(result: ScenarioResult) -> Table:
    """Returns metrics and intervals of every system."""
    unsure = {name for system in result.systems for name in system.unsure}
    marks = {
        name: name.upper()
        + ("*" if name in unsure else "")
        + ("!" if name in result.certain_hits else "")
        for name in METRIC_NAMES
    }
    rows = []
    for system in result.systems:
        rows.append([system.name, *_cells(system.metrics)])
        if system.ties.expected is not None:
            rows.append([_EXPECTED, *_cells(system.ties.expected)])
    return Table(
        title="Results",
        charts=[_results_chart(result.systems, name) for name in _HEADLINE_METRICS],
        note="Test split, mean and 95% bootstrap interval.",
        header=["system", *marks.values()],
        rows=rows,
        footnotes=[
            *(
                f"* not sure for {system.name}: the draw of groups can rank a target lower that "
                f"belongs among the first K ({system.facts['candidate_view']})"
                for system in result.systems
                if system.unsure
            ),
            *_tie_notes(result),
            *_coverage_notes(result),
            *(
                f"! any scorer has {name.upper()} 1 in {number} of "
                f"{result.facts['num_examples']} examples: no more candidates than K"
                for name, number in result.certain_hits.items()
                if name.startswith("hr")
            ),
        ],
    )


def _results_chart(systems: Sequence[SystemResult], metric: str) -> IntervalChart:
    """Returns the picture of a metric of all systems."""
    return IntervalChart(
        title=f"{metric.upper()}, test split",
        marks=[
            Mark(
                label=system.name,
                interval=system.metrics[metric],
                shown=figure(system.metrics[metric].estimate),
            )
            for system in systems
        ],
    )


def _forest(named: Sequence[SystemResult], metric: str) -> IntervalChart:
    """Returns the picture of a metric's differences; those that leave out 0 stand out."""
    return IntervalChart(
        title=f"{metric.upper()}, paired differences",
        marks=[
            Mark(
                label=f"{system.name} minus {other}",
                interval=(own := difference[metric]),
                shown=figure(own.estimate, "+"),
                is_notable=own.low > 0 or own.high < 0,
            )
            for system in named
            for other, difference in system.minus.items()
        ],
        reference=0.0,
    )


def _tie_notes(result: ScenarioResult) -> Iterator[str]:
    """Yields what the rows of expected ranks are."""
    tied = [system for system in result.systems if system.ties.expected is not None]
    if tied:
        shares = ", ".join(f"{system.name} {system.ties.share:.1%}" for system in tied)
        yield (
            f"{_EXPECTED.strip()}: another candidate is equal to the target (examples: {shares}), "
            "and every order of equal ones counts alike; elsewhere ties count against the target"
        )


def _coverage_notes(result: ScenarioResult) -> Iterator[str]:
    """Yields which examples are compared, where some system scored more."""
    more = [(s.name, s.facts.get("num_examples_left_out", 0)) for s in result.systems]
    if left_out := ", ".join(f"{name} {number}" for name, number in more if number):
        yield f"examples that not every system scored are left out: {left_out}"


def _cells(metrics: Mapping[str, Interval]) -> list[str]:
    """Returns means and intervals."""
    return [mean_and_interval(metrics[name]) for name in METRIC_NAMES]


def _system_lines(system: SystemResult) -> Iterator[str]:
    """Yields what a terminal shows of a system below the results."""
    assert system.chosen is not None
    chosen = system.chosen
    what = "" if system.facts.get("parts") else "template "  # a fused system has weights
    yield f"{system.name}: {what}{chosen.template_id}, normaliser {chosen.normaliser}"
    if number := system.facts.get("runs"):
        yield f"{system.name}: mean of {number} runs, intervals over runs and events"
    if instances := system.facts.get("instances"):
        unusable = system.facts.get("unusable_answers") or "none"
        yield f"{system.name}: {instances}; answers of no use, counted as misses: {unusable}"
    for other, difference in system.minus.items():
        parts = [f"{name.upper()} {signed(difference[name])}" for name in _HEADLINE_METRICS]
        yield f"{system.name} minus {other}: " + ", ".join(parts)
    if bias := system.position_bias:
        rates = " ".join(_rate(row) for row in bias.rows)
        yield (
            f"{system.name}: HR@1 by the target's index {bias.rows[0].first}-{bias.rows[-1].last}: "
            f"{rates} (p {bias.p_value:.2g})"
        )


def _differences_table(named: list[SystemResult]) -> Table:
    """Returns the paired differences between systems."""
    corrected = corrected_p_values(named)
    return Table(
        title="Paired differences",
        charts=[_forest(named, name) for name in _HEADLINE_METRICS],
        note="Differences, paired by example. p: two-sided randomisation test, by Holm's "
        "correction for the rows of a column. Detectable: the smallest true difference that so "
        f"many events show with {POWER:.0%} probability.",
        header=["system", "minus", *(name.upper() for name in METRIC_NAMES), "detectable HR@1"],
        rows=[
            [
                system.name,
                other,
                *(
                    f"{signed(difference[name])} {p_text(corrected[system.name][other][name])}"
                    for name in METRIC_NAMES
                ),
                figure(difference["hr@1"].detectable),
            ]
            for system in named
            for other, difference in system.minus.items()
        ],
    )


def p_text(value: float) -> str:
    """Returns such as 'p .012', 'p <.001'."""
    return "p <.001" if value < 0.001 else f"p {figure(value)}"


def _choices_table(named: list[SystemResult]) -> Table:
    """Returns what validation chose among."""
    return Table(
        title="Choice on validation",
        note="Choice of template and normaliser, validation split.",
        header=["system", "template", "normaliser", "n", *(name.upper() for name in METRIC_NAMES)],
        rows=[
            [
                system.name,
                choice.template_id + (" (chosen)" if choice == system.chosen else ""),
                choice.normaliser,
                str(choice.num_examples),
                *(figure(choice.metrics[name]) for name in METRIC_NAMES),
            ]
            for system in named
            for choice in system.choices
        ],
    )


def _position_table(system: SystemResult) -> Table:
    """Returns HR@1 by the index of the target."""
    bias = system.position_bias
    assert bias is not None
    return Table(
        title=f"Index of the target: {system.name}",
        note=f"{system.name}: HR@1 by the index of the target in the prompt, "
        f"p = {bias.p_value:.2g}.",
        header=["index", "n", "HR@1"],
        rows=[[row.name, str(row.num_examples), _rate(row)] for row in bias.rows],
    )


def _rate(row: IndexRow) -> str:
    """Returns HR@1 at some indices, a dash where no target has one of them."""
    return "-" if row.hit_rate is None else figure(row.hit_rate)


def mean_and_interval(value: Interval) -> str:
    """Returns such as '.484 .452-.516'."""
    return f"{figure(value.estimate)} {figure(value.low)}-{figure(value.high)}"


def signed(value: Interval) -> str:
    """Returns such as '+.142 [+.101, +.183]'."""
    return f"{figure(value.estimate, '+')} [{figure(value.low, '+')}, {figure(value.high, '+')}]"
