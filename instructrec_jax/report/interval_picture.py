"""Figures with their intervals as a PNG: the forest plot beside a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instructrec_jax.report.charts import IntervalChart, Mark

_PLAIN, _NOTABLE = "#6b7785", "#1f4e8c"  # intervals that hold the reference, and those that do not
_CHART, _ROW, _LETTER, _MARGIN = 3.2, 0.24, 0.075, 0.35  # inches
_Row = tuple[str, Mark | None]  # a label, and what is drawn there: nothing at a part's title


def plot_intervals(parts: Mapping[str, Sequence[IntervalChart]], path: Path | str) -> None:
    """Draws the charts of a part side by side, those of the next part below.

    Args:
      parts: by title as many charts each, alike but for their figures.
      path: PNG file to write.
    """
    columns = list(zip(*parts.values(), strict=True))
    rows = [
        [row for title, chart in zip(parts, column, strict=True) for row in _rows(title, chart)]
        for column in columns
    ]
    labels = [label for label, _ in rows[0]]
    left = _LETTER * max(map(len, labels)) + _MARGIN
    width, height = left + len(rows) * _CHART, _ROW * len(labels) + 2 * _MARGIN
    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.1 / width,
        bottom=_MARGIN / height,
        top=1 - _MARGIN / height,
        wspace=0.06,
    )
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, own, column in zip(panels, rows, columns, strict=True):
        _draw(axes, own, column[0])
    # A name may hold dollar signs, which are no formula.
    panels[0].set_yticks(range(len(labels)), labels, parse_math=False)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.savefig(path, format="png")


def _rows(title: str, chart: IntervalChart) -> list[_Row]:
    return [(f"{title}:", None), *((mark.label, mark) for mark in chart.marks)]


def _draw(axes: Axes, rows: Sequence[_Row], chart: IntervalChart) -> None:
    """Draws rows from top to bottom; title and reference are those of one of their charts."""
    drawn = [(place, mark) for place, (_, mark) in enumerate(rows) if mark is not None]
    places = [place for place, _ in drawn]
    colours = [_NOTABLE if mark.is_notable else _PLAIN for _, mark in drawn]
    found = [mark.interval for _, mark in drawn]
    low, high = [own.low for own in found], [own.high for own in found]
    axes.hlines(places, low, high, colors=colours, linewidth=1.6)
    axes.scatter([own.estimate for own in found], places, s=14, c=colours, zorder=2)
    if chart.reference is not None:
        axes.axvline(chart.reference, color="#333333", linewidth=0.8, linestyle=":")
    axes.set_title(chart.title, fontsize=9, loc="left", parse_math=False)
    axes.tick_params(labelsize=8, left=False)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
