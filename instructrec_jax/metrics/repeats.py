"""Several runs of one system, such as seeds: means and intervals over runs and events.

Two levels are drawn with replacement, runs and events: what another training run would give varies
too, and with few runs most of the interval is theirs. Where a system has one run, events alone are
drawn.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.statistics import (
    NUM_RESAMPLES,
    Difference,
    Interval,
    detectable_difference,
    intervals,
)

_MAX_DRAWN = 1 << 22  # numbers held at once


def intervals_over_runs(
    rank: ArrayLike, *, seed: int, event: ArrayLike | None = None
) -> dict[str, Interval]:
    """Returns every metric, averaged over runs and events, with its two-level interval.

    Args:
      rank: [runs, n] int, 1 = best.
      seed: of the resamples.
      event: [n] int, which event an example belongs to; None: each is an event of its own.
    """
    values = _by_run_and_event(rank, event)
    drawn = _resampled([values], seed)
    return dict(zip(ranking.METRIC_NAMES, intervals(values.mean(axis=(0, 1)), drawn), strict=True))


def differences_over_runs(
    rank: ArrayLike, other_rank: ArrayLike, *, seed: int, event: ArrayLike | None = None
) -> dict[str, Difference]:
    """Returns the difference of every metric between two systems with several runs each.

    Events are drawn in pairs, the runs of each system apart. The p-value is that of the resamples:
    twice the share of differences on the other side of 0.

    Args:
      rank: [runs, n], or [n] of one run.
      other_rank: [other runs, n], or [n], on the same examples.
      seed: of the resamples.
      event: [n] int, which event an example belongs to; None: each is an event of its own.
    """
    ours, theirs = _by_run_and_event(rank, event), _by_run_and_event(other_rank, event)
    drawn = _resampled([ours, -theirs], seed)
    per_event = ours.mean(axis=0) - theirs.mean(axis=0)
    named = zip(ranking.METRIC_NAMES, intervals(per_event.mean(axis=0), drawn), strict=True)
    deviation = per_event.std(axis=0, ddof=1) if len(per_event) > 1 else np.zeros(drawn.shape[1])
    found = {}
    for index, (name, own) in enumerate(named):
        below, above = (drawn[:, index] <= 0).sum(), (drawn[:, index] >= 0).sum()
        found[name] = Difference(
            own.estimate,
            own.low,
            own.high,
            p_value=float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn)))),
            effect_size=float(own.estimate / deviation[index]) if deviation[index] else 0.0,
            detectable=detectable_difference(float(deviation[index]), len(per_event)),
        )
    return found


def _by_run_and_event(rank: ArrayLike, event: ArrayLike | None) -> NDArray[np.float64]:
    """Returns [runs, events, metrics] the metrics, averaged over the examples of each event."""
    runs = np.atleast_2d(np.asarray(rank, dtype=np.int64))
    values = np.stack([np.stack(list(ranking.per_example(own).values()), axis=1) for own in runs])
    if event is None:
        return values
    _, event_of, sizes = np.unique(event, return_inverse=True, return_counts=True)
    totals = [
        np.stack([np.bincount(event_of, weights=column) for column in own.T], axis=1)
        for own in values
    ]
    return np.stack(totals) / sizes[:, None]


def _resampled(parts: list[NDArray[np.float64]], seed: int) -> NDArray[np.float64]:
    """Returns [resamples, metrics] sums over the parts of what draws of runs and events give.

    Args:
      parts: [runs, events, metrics] each; all are of the same events.
      seed: of the draws.
    """
    num_metrics = parts[0].shape[2]
    columns = np.concatenate([np.moveaxis(own, 0, 1).reshape(own.shape[1], -1) for own in parts], 1)
    kinds, counts = np.unique(columns, axis=0, return_counts=True)  # events with equal metrics
    number, generator = int(counts.sum()), np.random.default_rng(seed)
    block, drawn = max(_MAX_DRAWN // len(counts), 1), []
    for begin in range(0, NUM_RESAMPLES, block):
        size = min(block, NUM_RESAMPLES - begin)
        means = generator.multinomial(number, counts / number, size=size) @ kinds / number
        total, end = np.zeros((size, num_metrics)), 0
        for own in parts:
            num_runs = len(own)
            first, end = end, end + num_runs * num_metrics
            of_runs = means[:, first:end].reshape(size, num_runs, num_metrics)
            weights = generator.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=size)
            total += (weights[:, :, None] * of_runs).sum(axis=1) / num_runs
        drawn.append(total)
    return np.concatenate(drawn)
