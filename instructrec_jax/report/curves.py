"""The training curve: losses and validation metrics of a run's JSONL file, as one picture."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instructrec_jax.errors import UserError

_PREFIX = "validation/"
_SHOWN = ("ndcg@5", "hr@1")


def read_metrics(path: Path | str) -> dict[str, dict[int, float]]:
    """Returns every metric of a run as {name: {step: value}}.

    A run that was killed may leave a half-written last line, and one that was resumed logs some
    steps twice: the former is left out, of the latter the last value stands.

    Args:
      path: JSONL file with lines such as {"step": 10, "loss": 3.2}.

    Raises:
      UserError: if the file is missing, or a line before the last is damaged.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"metrics file {path} is not there; name the metrics.jsonl in the run's MODEL_DIR, "
            "or leave the flag out"
        ) from None
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        record = _parse(line, path, number=number, is_last=number == len(lines))
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, {})[int(record["step"])] = float(value)
    return found


def plot_training_curve(metrics: Mapping[str, Mapping[int, float]], path: Path | str) -> None:
    """Draws the loss above and the validation metrics below, over the same steps.

    Args:
      metrics: from `read_metrics`.
      path: PNG file to write.

    Raises:
      UserError: if the run logged no loss.
    """
    if not metrics.get("loss"):
        raise UserError("the metrics file holds no training loss yet; let the run take some steps")
    shown = _validation_names(metrics)
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
    """Draws one line a validation metric, its best step marked."""
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


def _validation_names(metrics: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Returns the names of the metrics worth drawing: means over the tasks, not each task's."""
    return [_PREFIX + name for name in _SHOWN if metrics.get(_PREFIX + name)]


def _label(name: str) -> str:
    """Returns a metric's name as the legend shows it."""
    return name.removeprefix(_PREFIX).replace("ndcg", "NDCG").replace("hr@", "HR@")


def _parse(line: str, path: Path, *, number: int, is_last: bool) -> dict:
    """Returns one line of the metrics file; {} for an empty or a half-written last one."""
    if not line.strip():
        return {}
    try:
        record = json.loads(line)
        int(record["step"])
    except (ValueError, TypeError, KeyError) as error:
        if is_last:
            return {}
        raise UserError(
            f"{path} line {number} is not a JSON object with a step ({error}): {line[:80]!r}; "
            "remove the line"
        ) from None
    return record
