"""A report as JSON, Markdown and a table for a terminal or a log of 100 columns."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report.evaluation import MODEL, Report, ScenarioResult, SystemRow
from instructrec_jax.report.position_bias import PlaceRow

WIDTH = 100
_HEADLINE_METRICS = ("hr@1", "ndcg@5")


def as_json(report: Report) -> dict[str, Any]:
    """Returns the report as plain JSON values: every number with its interval and protocol."""
    return {
        "dataset": report.dataset,
        "scenarios": {
            result.scenario: {
                "protocol": dict(result.protocol),
                "chosen": dataclasses.asdict(result.chosen),
                "validation": [dataclasses.asdict(choice) for choice in result.choices],
                "test": {row.system: _intervals(row.metrics) for row in result.rows},
                "model_minus": {
                    row.system: _intervals(row.difference)
                    for row in result.rows
                    if row.system != MODEL
                },
                "unsure": list(result.unsure),
                "position_bias": result.position_bias and dataclasses.asdict(result.position_bias),
            }
            for result in report.scenarios
        },
    }


def as_text(report: Report) -> str:
    """Returns the tables as plain text that fits 100 columns and needs no terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=WIDTH, color_system=None, force_terminal=False)
    for result in report.scenarios:
        chosen = result.chosen
        console.print(
            f"{report.dataset} {result.scenario}: template {chosen.template_id}, normaliser "
            f"{chosen.normaliser}, n={result.protocol['num_examples']}, "
            f"{result.protocol['num_candidates']} candidates",
            highlight=False,
            markup=False,
        )
        console.print(_text_table(result))
        lines = [_lead(row) for row in result.rows if row.system != MODEL]
        for line in [*lines, *_unsure_note(result), *_places_line(result)]:
            console.print(line, highlight=False, markup=False)
        console.print()
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def as_markdown(report: Report, *, curve: str | None) -> str:
    """Returns the report as Markdown.

    Args:
      report: the report.
      curve: file name of the training curve's picture beside the Markdown file, if there is one.
    """
    parts = [f"# {report.dataset}", ""]
    for result in report.scenarios:
        parts += _markdown_scenario(result)
    if curve is not None:
        parts += ["## Training", "", f"![training curve]({curve})", ""]
    return "\n".join(parts)


def _markdown_scenario(result: ScenarioResult) -> list[str]:
    """Returns the lines of one scenario: results, leads, choice of template, protocol."""
    names = _metric_names(result)
    leads = [row for row in result.rows if row.system != MODEL]
    lines = [f"## {result.scenario}", "", "Test split, mean and 95% bootstrap interval.", ""]
    lines += _markdown_table(
        ["system", *names],
        [
            [row.system, *(_mean_and_interval(row.metrics[m]) for m in METRIC_NAMES)]
            for row in result.rows
        ],
    )
    lines += ["", "Lead of the model, paired by example.", ""]
    lines += _markdown_table(
        ["model minus", *names],
        [[row.system, *(_signed(row.difference[m]) for m in METRIC_NAMES)] for row in leads],
    )
    lines += ["", "Choice of template and normaliser, validation split.", ""]
    lines += _markdown_table(
        ["template", "normaliser", "n", *names],
        [
            [
                choice.template_id + (" (chosen)" if choice == result.chosen else ""),
                choice.normaliser,
                str(choice.num_examples),
                *(_short(choice.metrics[m]) for m in METRIC_NAMES),
            ]
            for choice in result.choices
        ],
    )
    lines += [part for note in _unsure_note(result) for part in ("", note)]
    if result.position_bias is not None:
        p_value = result.position_bias.p_value
        lines += ["", f"HR@1 by the place of the target in the prompt, p = {p_value:.2g}.", ""]
        lines += _markdown_table(
            ["place", "n", "HR@1"],
            [[row.name, str(row.num_examples), _rate(row)] for row in result.position_bias.rows],
        )
    lines += ["", "Protocol:", ""]
    lines += [f"* {name}: `{value}`" for name, value in result.protocol.items()]
    return [*lines, ""]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _metric_names(result: ScenarioResult) -> list[str]:
    """Returns the metrics' names as headers, those that are not sure with a mark."""
    return [name.upper() + ("*" if name in result.unsure else "") for name in METRIC_NAMES]


def _unsure_note(result: ScenarioResult) -> list[str]:
    """Returns what the mark means, if there is one."""
    if not result.unsure:
        return []
    return [
        "* not sure for the model: the draw of groups can rank a target lower that belongs among "
        f"the first K ({result.protocol['ballots']})"
    ]


def _places_line(result: ScenarioResult) -> list[str]:
    """Returns one line with HR@1 by place, if it was measured."""
    if result.position_bias is None:
        return []
    rows, p_value = result.position_bias.rows, result.position_bias.p_value
    rates = " ".join(_rate(row) for row in rows)
    return [
        f"HR@1 by the target's place {rows[0].first}-{rows[-1].last}: {rates} (p {p_value:.2g})"
    ]


def _rate(row: PlaceRow) -> str:
    """Returns HR@1 at some places, a dash where no target stood there."""
    return "-" if row.hit_rate is None else _short(row.hit_rate)


def _text_table(result: ScenarioResult) -> Table:
    """Returns the table of one scenario for a terminal."""
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    table.add_column("system", no_wrap=True)
    for name in _metric_names(result):
        table.add_column(f"{name} (95%)", no_wrap=True)
    for row in result.rows:
        cells = [_mean_and_interval(row.metrics[name]) for name in METRIC_NAMES]
        table.add_row(row.system, *cells)
    return table


def _lead(row: SystemRow) -> str:
    """Returns one line: how far the model is ahead of a system."""
    parts = [f"{name.upper()} {_signed(row.difference[name])}" for name in _HEADLINE_METRICS]
    return f"model minus {row.system}: " + ", ".join(parts)


def _intervals(values: Any) -> dict[str, dict[str, float]]:
    """Returns intervals as JSON values."""
    return {name: dataclasses.asdict(interval) for name, interval in values.items()}


def _mean_and_interval(value: Interval) -> str:
    """Returns such as '.484 .452-.516'."""
    return f"{_short(value.estimate)} {_short(value.low)}-{_short(value.high)}"


def _signed(value: Interval) -> str:
    """Returns such as '+.142 [+.101, +.183]'."""
    return f"{_short(value.estimate, '+')} [{_short(value.low, '+')}, {_short(value.high, '+')}]"


def _short(value: float, sign: str = "") -> str:
    """Returns three decimals without the leading zero."""
    return (
        f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 0.9995 else f"{value:{sign}.2f}"
    )
