"""The pictures of a page: what they show, and where it stands in the drawing."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from instructrec_jax.metrics.statistics import Interval

WIDTH = 360  # units of a drawing, as wide as a phone
_ROW = 26  # height of a mark with its label
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 10, 30  # margins of a line chart
_HEIGHT = 210
_MAX_LABEL = 44
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """A figure with its interval.

    Attributes:
      label: what it is the figure of.
      interval: the figure and the ends around it.
      shown: the figure as text.
      is_notable: whether it is drawn in another colour.
    """

    label: str
    interval: Interval
    shown: str
    is_notable: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class IntervalChart:
    """Figures with their intervals on one axis, one below the other: a forest plot.

    Attributes:
      title: of the picture.
      marks: from top to bottom.
      reference: where a line stands across, such as 0 for differences; None for no line.
      ends: of the axis; None for those of the marks.
    """

    title: str
    marks: Sequence[Mark]
    reference: float | None = None
    ends: Point | None = None

    @property
    def height(self) -> int:
        """Of the drawing."""
        return len(self.marks) * _ROW + 22

    def rows(self) -> list[tuple[Mark, str, int]]:
        """Returns the marks, their labels cut to the width, and the upper end of each."""
        return [
            (mark, _cut(mark.label), number * _ROW + 4) for number, mark in enumerate(self.marks)
        ]

    def x(self, value: float) -> float:
        """Returns where a value stands."""
        low, high = self._range()
        return round(8 + (WIDTH - 16) * (value - low) / (high - low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Returns the marks of the axis: where they stand, and what they say."""
        return [(self.x(value), text) for value, text in _ticks(*self._range())]

    def _range(self) -> Point:
        if self.ends is not None:
            return self.ends
        values = [end for mark in self.marks for end in (mark.interval.low, mark.interval.high)]
        return _widened([*values, *([] if self.reference is None else [self.reference])])


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineChart:
    """Lines over one axis.

    Attributes:
      title: of the picture.
      x_label: what the horizontal axis is.
      series: points of each line, by its name; at least one line with a point.
    """

    title: str
    x_label: str
    series: Mapping[str, Sequence[Point]]
    height = _HEIGHT

    def lines(self) -> list[tuple[str, list[Point]]]:
        """Returns the lines with their points in the drawing."""
        return [
            (name, [(self.x(x), self.y(y)) for x, y in points])
            for name, points in self.series.items()
        ]

    def x(self, value: float) -> float:
        """Returns where a value of the horizontal axis stands."""
        low, high = self._range(0)
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low), 1)

    def y(self, value: float) -> float:
        """Returns where a value of the vertical axis stands."""
        low, high = self._range(1)
        return round(
            _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low), 1
        )

    def x_ticks(self) -> list[tuple[float, str]]:
        """Returns the marks of the horizontal axis."""
        return [(self.x(value), text) for value, text in _ticks(*self._range(0))]

    def y_ticks(self) -> list[tuple[float, str]]:
        """Returns the marks of the vertical axis."""
        return [(self.y(value), text) for value, text in _ticks(*self._range(1))]

    def _range(self, axis: int) -> Point:
        return _widened([point[axis] for points in self.series.values() for point in points])


Chart = IntervalChart | LineChart


def _widened(values: Sequence[float]) -> Point:
    """Returns the ends of an axis that shows all values and has a width."""
    low, high = min(values), max(values)
    width = (high - low) or abs(high) or 1.0
    return low - 0.03 * width, high + 0.03 * width


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Returns about four round numbers between two, and their texts."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [(n * step, f"{n * step:.{digits}f}") for n in range(first, last + 1)]


def _cut(label: str) -> str:
    """Returns a label that fits."""
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
