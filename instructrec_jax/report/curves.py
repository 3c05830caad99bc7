"""The training curve: losses and validation metrics of a run, as a picture and for a page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instructrec_jax.errors import UserError
from instructrec_jax.report.charts import Chart, LineChart
from instructrec_jax.report.tables import Section, Table

FILE_NAME = "training_curve.png"
_PREFIX = "validation/"
_SHOWN = ("ndcg@5", "hr@1")
_TIMES = {  # what of a step's time is drawn on a page
    "timing/seconds_per_step": "Seconds a step",
    "timing/data_wait_fraction": "Share of time waiting for data",
}
_MAX_POINTS, _MAX_ROWS = 300, 40  # of a line, of the table


def plot_training_curve(lines: Iterable[Mapping[str, float]], path: Path | str) -> None:
    """Draws the loss above and the validation metrics below, over the same steps.

    Args:
      lines: of a run's metrics.jsonl, each with "step"; of a step that a resumed run took twice the
        last values count.
      path: PNG file to write.

    Raises:
      UserError: if the run logged no loss.
    """
    losses, validation, _ = _read(lines)
    figure = Figure(figsize=(8, 6 if validation else 3.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if validation else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(axes[0], losses)
    if validation:
        _draw_validation(axes[1], validation)
    axes[-1].set_xlabel("step")
    figure.savefig(path, format="png")


def section(lines: Iterable[Mapping[str, float]]) -> Section:
    """Returns the curve as a section of a page; arguments and errors as `plot_training_curve`."""
    losses, validation, times = _read(lines)

    def means(name: str, curve: Mapping[int, float]) -> dict[str, list[tuple[float, float]]]:
        return {name: [*_means(curve).items()]}

    pictures: list[Chart] = [
        LineChart(title="Training loss", x_label="step", series=means("loss", losses))
    ]
    if validation:
        series = {_label(name): sorted(curve.items()) for name, curve in validation.items()}
        pictures.append(LineChart(title="Validation", x_label="step", series=series))
    for name, curve in times.items():
        pictures.append(LineChart(title=name, x_label="step", series=means(name, curve)))
    columns = {"loss": losses, **{_label(name): own for name, own in validation.items()}, **times}
    return Section(title="Training", tables=[], details=[_table(columns, pictures)])


def _table(columns: Mapping[str, Mapping[int, float]], pictures: Sequence[Chart]) -> Table:
    """Returns the figures of some steps, those of every column among them."""
    steps = sorted(set().union(*(_some(sorted(curve)) for curve in columns.values())))
    logged = set().union(*columns.values())
    return Table(
        title="Training curve",
        note=f"{len(steps)} of {len(logged)} steps that were logged; lines of more "
        f"than {_MAX_POINTS} points show means of neighbouring steps.",
        header=["step", *columns],
        rows=[
            [str(step), *(_shown(curve.get(step)) for curve in columns.values())] for step in steps
        ],
        charts=pictures,
    )


class _Curves(NamedTuple):
    """Figures by step: the losses; by name metrics of validation, not each task's, and times."""

    losses: Mapping[int, float]
    validation: Mapping[str, Mapping[int, float]]
    times: Mapping[str, Mapping[int, float]]


def _read(lines: Iterable[Mapping[str, float]]) -> _Curves:
    """Returns the figures of a metrics file."""
    metrics: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float):
                metrics.setdefault(name, {})[int(line["step"])] = float(value)
    if "loss" not in metrics:
        raise UserError("the metrics file holds no training loss yet; let the run take some steps")
    names = [_PREFIX + name for name in _SHOWN if _PREFIX + name in metrics]
    return _Curves(
        losses=metrics["loss"],
        validation={name: metrics[name] for name in names},
        times={
            shown: dict(sorted(metrics[name].items())[1:])  # the first step compiles
            for name, shown in _TIMES.items()
            if len(metrics.get(name, ())) > 1
        },
    )


def _means(curve: Mapping[int, float]) -> dict[int, float]:
    """Returns a curve of so many points at most, each the mean of neighbours at their last step."""
    steps = sorted(curve)
    size = -(-len(steps) // _MAX_POINTS)
    parts = [steps[begin : begin + size] for begin in range(0, len(steps), size)]
    return {part[-1]: sum(curve[step] for step in part) / len(part) for part in parts}


def _some(steps: Sequence[int]) -> list[int]:
    """Returns so many steps at most, the last among them."""
    stride = max(1, -(-len(steps) // _MAX_ROWS))
    return list(steps[::-1][::stride])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _draw_loss(axes: Axes, losses: Mapping[int, float]) -> None:
    """Draws the losses and, in front, their running mean."""
    steps = sorted(losses)
    values = [losses[step] for step in steps]
    window = min(len(values), max(5, len(values) // 30))
    smooth = [
        sum(part) / len(part)
        for part in (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    ]
    axes.plot(steps, values, color="#9db7d5", linewidth=1, label="as logged")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.8, label=f"mean of last {window}")
    axes.set_ylabel("training loss")
    _finish(axes)


def _draw_validation(axes: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Draws one line per validation metric, its best step marked."""
    for name, curve in curves.items():
        steps = sorted(curve)
        values = [curve[step] for step in steps]
        (line,) = axes.plot(steps, values, marker="o", markersize=3, label=_label(name))
        best = max(steps, key=lambda step: (curve[step], -step))
        axes.annotate(
            f"{curve[best]:.3f}",
            (best, curve[best]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            color=line.get_color(),
        )
    axes.margins(y=0.15)
    axes.set_ylabel("validation")
    _finish(axes)


def _finish(axes: Axes) -> None:
    """Gives a panel what every panel has."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _label(name: str) -> str:
    """Returns a metric's name as the legend shows it."""
    return name.removeprefix(_PREFIX).replace("ndcg", "NDCG").replace("hr@", "HR@")
