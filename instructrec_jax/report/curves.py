"""The training curve: losses and validation metrics of a run, as one picture."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instructrec_jax.errors import UserError

_PREFIX = "validation/"
_SHOWN = ("ndcg@5", "hr@1")


def plot_training_curve(lines: Iterable[Mapping[str, float]], path: Path | str) -> None:
    """Draws the loss above and the validation metrics below, over the same steps.

    Args:
      lines: of a run's metrics.jsonl, each with "step"; of a step that a resumed run took twice the
        last values count.
      path: PNG file to write.

    Raises:
      UserError: if the run logged no loss.
    """
    metrics: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, int | float):
                metrics.setdefault(name, {})[int(line["step"])] = float(value)
    if "loss" not in metrics:
        raise UserError("the metrics file holds no training loss yet; let the run take some steps")
    shown = [_PREFIX + name for name in _SHOWN if _PREFIX + name in metrics]  # not each task's
    figure = Figure(figsize=(8, 6 if shown else 3.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if shown else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_loss(axes[0], metrics["loss"])
    if shown:
        _draw_validation(axes[1], {name: metrics[name] for name in shown})
    axes[-1].set_xlabel("step")
    figure.savefig(path, format="png")


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
