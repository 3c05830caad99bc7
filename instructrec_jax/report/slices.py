"""Metrics of parts of the examples: by history length, popularity and other things."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.statistics import Interval

METRICS = ("hr@1", "ndcg@5")
MIN_EVENTS = 100  # of a slice that a warning names
_NUM_GROUPS = 4
_HALF_WIDTH = 1.959963984540054  # of a 95 % interval, in standard errors
_MAX_NAMED = 3
_MAX_NAMES = 8  # groups that bear a name of their own
OTHERS, NO_NAME = "(others)", "(none)"


class Groups(NamedTuple):
    """Which of some groups each event belongs to.

    Attributes:
      of: int64 [n] number of the group.
      names: of the groups, in order.
    """

    of: NDArray[np.int64]
    names: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceRow:
    """How a system did on a part of the events.

    Attributes:
      system: its name.
      by: what the events are divided by, such as "history length".
      group: the part, such as "3-5".
      num_events: in the part.
      metrics: HR@1 and NDCG@5, each mean with 1.96 standard errors to both sides.
      is_below: of at least 100 events, and NDCG@5 over all lies above the whole interval.
    """

    system: str
    by: str
    group: str
    num_events: int
    metrics: Mapping[str, Interval]
    is_below: bool


def by_number(values: NDArray[np.integer], *, unit: str = "") -> Groups:
    """Returns up to four groups of about as many events, neighbouring numbers together.

    Args:
      values: [n] int.
      unit: follows each name.

    Example:
      [1, 2, 2, 9] gives the groups "1", "2" and "9".
    """
    bounds = np.unique(
        np.quantile(values, np.arange(1, _NUM_GROUPS) / _NUM_GROUPS, method="inverted_cdf")
    )
    of = np.unique(np.searchsorted(bounds, values, side="left"), return_inverse=True)[1]
    parts = [values[of == number] for number in range(int(of.max()) + 1)]
    names = [
        f"{part.min()}" if part.min() == part.max() else f"{part.min()}-{part.max()}"
        for part in parts
    ]
    return Groups(of, [f"{name}{unit}" for name in names])


def by_flag(values: NDArray[np.bool_], *, no: str, yes: str) -> Groups:
    """Returns two groups, or one where all events are alike."""
    kinds, of = np.unique(values, return_inverse=True)
    return Groups(of, [yes if kind else no for kind in kinds])


def by_name(names: Sequence[str], weights: NDArray[np.integer]) -> Groups:
    """Returns a group for each of the heaviest names, one for the others and one for no name.

    Args:
      names: [n], "" for none.
      weights: [n] what each adds to its name's weight, such as training events.
    """
    found, of = np.unique(np.asarray(names, dtype=object), return_inverse=True)
    heaviest = np.argsort(-np.bincount(of, weights=weights + 1.0), kind="stable").tolist()
    chosen = [number for number in heaviest if found[number]][:_MAX_NAMES]
    group_of = np.full(len(found), len(chosen))
    group_of[chosen] = np.arange(len(chosen))
    group_of[found == ""] = len(chosen) + 1
    return Groups(group_of[of], [*(found[number] for number in chosen), OTHERS, NO_NAME])


def of_targets(groups: Groups, targets: NDArray[np.integer]) -> Groups:
    """Returns the groups of the items that events have for targets, without empty groups.

    Args:
      groups: of all items.
      targets: [n] item ids.
    """
    kept, of = np.unique(groups.of[targets], return_inverse=True)
    return Groups(of, [groups.names[number] for number in kept])


def event_metrics(rank: NDArray[np.int64], event: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Returns [events, 2] HR@1 and NDCG@5 of every event, averaged over its examples.

    Args:
      rank: [n], or [seeds, n] of several runs, which are averaged.
      event: [n] the event of each example; None where each is an event of its own.
    """
    runs = np.atleast_2d(rank)
    found = [ranking.per_example(own) for own in runs]
    columns = [np.mean([own[name] for own in found], axis=0) for name in METRICS]
    if event is None:
        return np.stack(columns, axis=1)
    sizes = np.bincount(event)
    return np.stack([np.bincount(event, weights=column) / sizes for column in columns], axis=1)


def slice_rows(
    system: str, by: str, groups: Groups, metrics: NDArray[np.float64]
) -> list[SliceRow]:
    """Returns how a system did in each group.

    Args:
      system: its name.
      by: what the events are divided by.
      groups: of n events.
      metrics: [n, 2] of `event_metrics`.
    """
    number = len(groups.names)
    counts = np.bincount(groups.of, minlength=number)
    means, halves = [], []
    for column in metrics.T:
        mean = np.bincount(groups.of, weights=column, minlength=number) / counts
        squares = (column - mean[groups.of]) ** 2
        variance = np.bincount(groups.of, weights=squares, minlength=number)
        means.append(mean)
        halves.append(_HALF_WIDTH * np.sqrt(variance / np.maximum(counts - 1, 1) / counts))
    low = np.clip(np.array(means) - halves, 0.0, 1.0)
    high = np.clip(np.array(means) + halves, 0.0, 1.0)
    whole = metrics[:, METRICS.index("ndcg@5")].mean()
    return [
        SliceRow(
            system=system,
            by=by,
            group=name,
            num_events=int(counts[g]),
            metrics={
                metric: Interval(float(means[m][g]), float(low[m, g]), float(high[m, g]))
                for m, metric in enumerate(METRICS)
            },
            is_below=bool(counts[g] >= MIN_EVENTS and high[METRICS.index("ndcg@5"), g] < whole),
        )
        for g, name in enumerate(groups.names)
    ]


def warning(rows: Iterable[SliceRow], system: str) -> str | None:
    """Returns what to say of the parts on which a system is worse than on the whole."""
    below = sorted(
        (row for row in rows if row.is_below and row.system == system),
        key=lambda row: row.metrics["ndcg@5"].estimate,
    )
    if not below:
        return None
    named = ", ".join(
        f"{row.by} {row.group} ({row.metrics['ndcg@5'].estimate:.3f}, n={row.num_events})"
        for row in below[:_MAX_NAMED]
    )
    more = f" and {len(below) - _MAX_NAMED} more" if len(below) > _MAX_NAMED else ""
    return f"{system}: NDCG@5 is below the whole, by more than the interval, for {named}{more}"
