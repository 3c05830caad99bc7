"""Intervals and tests over examples: percentile bootstrap, and whether groups differ.

The bootstrap is exact in memory of the distinct ranks only.

An example enters every metric through its rank, and ranks take few values (at most the number of
candidates). Drawing n examples with replacement is therefore the same as drawing how often each
distinct rank comes, which is one multinomial draw: 10,000 resamples of 50,000 examples take
10,000 x 10 numbers, not 10,000 x 50,000.

Where an event has several examples, each with other negatives, they are averaged first and drawn
together: what is resampled is the event, such as a user's last choice.

Whether two systems differ is tested by randomisation: where they do not, each event's difference
might as well have the other sign (Smucker, Allan and Carterette, CIKM 2007). Of many comparisons in
one table some seem to differ by chance: Holm's correction holds the probability of any such one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8  # of `Difference.detectable`
_ROUNDING = 1e-12  # relative: what rounding adds to a sum is no difference
_MAX_DRAWN = 1 << 22  # numbers held at once


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over examples and its percentile bootstrap interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """The mean of paired differences over events, its interval, and how sure and how large it is.

    Attributes:
      p_value: of the two-sided randomisation test, before any correction.
      effect_size: the mean divided by the standard deviation over events (Cohen's d_z); 0 where
        all differences are 0, infinite where all are equal otherwise.
      detectable: the smallest true difference that as many such events show with probability
        `POWER` in a two-sided test at 1 - `CONFIDENCE`.
    """

    p_value: float
    effect_size: float
    detectable: float


def bootstrap_intervals(
    rank: ArrayLike,
    *,
    seed: int,
    num_tied: ArrayLike | None = None,
    event: ArrayLike | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Interval]:
    """Returns every metric of the paper with its percentile bootstrap interval over examples.

    Args:
      rank: [n] int, 1 = best.
      num_tied: [n] int, candidates that are equal to the positive: the metrics are then in
        expectation over their order, see `ranking.expected_per_example`; None counts ties against
        the positive.
      event: [n] int, which event an example belongs to; None: each is an event of its own.
      seed: seed of the resamples.
      num_resamples: number of bootstrap resamples.
      confidence: coverage asked for, such as 0.95.

    Raises:
      UserError: if there is no example.
    """
    found = np.asarray(rank, dtype=np.int64)
    if num_tied is None:
        distinct, row_of = np.unique(found, return_inverse=True)
        table = _metric_table(distinct)
    else:
        places = np.stack([found, np.asarray(num_tied, dtype=np.int64)], axis=1)
        distinct, row_of = np.unique(places, axis=0, return_inverse=True)
        expected = ranking.expected_per_example(distinct[:, 0], distinct[:, 1])
        table = np.stack(list(expected.values()), axis=1)
    return _intervals(*_by_event(table, row_of, event), seed, num_resamples, confidence)


def paired_differences(
    rank: ArrayLike,
    other_rank: ArrayLike,
    *,
    seed: int,
    event: ArrayLike | None = None,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Difference]:
    """Returns the difference of every metric between two systems on the same examples.

    Examples are resampled in pairs, so what makes an example hard for both cancels out.

    Args:
      rank: [n] int, ranks of the system.
      other_rank: [n] int, ranks of the other system on the same examples in the same order.
      event: [n] int, which event an example belongs to; None: each is an event of its own.
      seed: seed of the resamples.
      num_resamples: number of bootstrap resamples.
      confidence: coverage asked for, such as 0.95.

    Returns:
      By metric: mean of (system - other) with its interval and test; above 0 where the system is
      better.

    Raises:
      UserError: if there is no example.
      ValueError: if the two systems were not ranked on the same number of examples.
    """
    ours, theirs = np.asarray(rank, dtype=np.int64), np.asarray(other_rank, dtype=np.int64)
    if ours.shape != theirs.shape:
        raise ValueError(f"paired systems need equal shapes, got {ours.shape} and {theirs.shape}")
    pairs, row_of = np.unique(np.stack([ours, theirs], axis=1), axis=0, return_inverse=True)
    table = _metric_table(pairs[:, 0]) - _metric_table(pairs[:, 1])
    kinds, counts = _by_event(table, row_of, event)
    intervals = _intervals(kinds, counts, seed, num_resamples, confidence)
    return {
        name: Difference(
            **dataclasses.asdict(intervals[name]),
            p_value=_randomisation_p_value(column, counts, seed=seed, num_draws=num_resamples),
            **_size(column, counts),
        )
        for name, column in zip(ranking.METRIC_NAMES, kinds.T, strict=True)
    }


def mean_difference(
    values: ArrayLike,
    other_values: ArrayLike,
    *,
    is_paired: bool,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Returns the difference of two means of any measure, with its percentile bootstrap interval.

    Args:
      values: [n] a value of each event.
      other_values: [m] likewise.
      is_paired: whether both are of the same events in the same order, which are then resampled
        together; otherwise each is resampled alone.
      seed: seed of the resamples.
      num_resamples: number of bootstrap resamples.
      confidence: coverage asked for, such as 0.95.

    Raises:
      UserError: if there is no event.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(other_values, np.float64)
    samples = [ours - theirs] if is_paired else [ours, theirs]
    means, estimates = [], []
    for number, sample in enumerate(samples):
        kinds, counts = np.unique(sample, return_counts=True)
        resampled, estimate = _resampled_means(kinds[:, None], counts, seed + number, num_resamples)
        means.append(resampled[:, 0])
        estimates.append(float(estimate[0]))
    if not is_paired:
        means, estimates = [means[0] - means[1]], [estimates[0] - estimates[1]]
    (found,) = intervals(estimates[:1], means[0][:, None], confidence)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values of one table, corrected for their number, in the same order.

    Where no two systems differ, the lowest is below a level with at most that probability.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure" (1979).

    Example:
      `holm([0.01, 0.04, 0.03])` is `[0.03, 0.06, 0.06]`.
    """
    found, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        highest = max(highest, min((len(p_values) - place) * p_values[index], 1.0))
        found[index] = highest
    return found


def detectable_difference(
    deviation: float, num_events: int, *, power: float = POWER, confidence: float = CONFIDENCE
) -> float:
    """Returns the smallest true difference that a number of events shows, by the normal law.

    Args:
      deviation: standard deviation of the differences over events. For HR@K of two systems that
        hit or miss apart in a share s of the events it is at most sqrt(s).
      num_events: how many, such as the users of the test split.
      power: probability with which it is to be shown.
      confidence: 1 less the level of the two-sided test.

    Raises:
      UserError: if there is no event.
    """
    if num_events < 1:
        raise UserError(f"num_events is {num_events}; expected at least 1")
    quantiles = stats.norm.ppf([1.0 - (1.0 - confidence) / 2.0, power])
    return float(quantiles.sum() * deviation / np.sqrt(num_events))


def _size(values: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, float]:
    """Returns effect size and detectable difference of differences that come so many times."""
    number = int(counts.sum())
    mean = float(counts @ values / number)
    squares = float(counts @ (values - mean) ** 2)
    deviation = np.sqrt(squares / max(number - 1, 1))
    if deviation <= _ROUNDING * abs(mean) or not deviation:
        effect = 0.0 if abs(mean) < _ROUNDING else float(np.copysign(np.inf, mean))
    else:
        effect = float(mean / deviation)
    return {
        "effect_size": effect,
        "detectable": detectable_difference(float(deviation), number),
    }


def _randomisation_p_value(
    values: NDArray[np.float64], counts: NDArray[np.int64], *, seed: int, num_draws: int
) -> float:
    """Returns how often a sum of differences is as far from 0 where each sign is drawn.

    Args:
      values: [kinds] differences.
      counts: [kinds] events that have each of them. Of n events with one size, how many keep their
        sign is one binomial draw.
      seed: of the draws.
      num_draws: how many.

    Returns:
      The p-value, at least 1 / (num_draws + 1).
    """
    sizes, size_of = np.unique(np.abs(values), return_inverse=True)
    numbers = np.bincount(size_of, weights=counts, minlength=len(sizes)).astype(np.int64)
    own, generator = abs(float(counts @ values)), np.random.default_rng(seed)
    block = max(_MAX_DRAWN // len(sizes), 1)
    at_least = sum(
        int((np.abs(drawn @ sizes) >= own * (1.0 - _ROUNDING)).sum())
        for begin in range(0, num_draws, block)
        for drawn in [
            2 * generator.binomial(numbers, 0.5, size=(min(block, num_draws - begin), len(sizes)))
            - numbers
        ]
    )
    return (1 + at_least) / (1 + num_draws)


def homogeneity_p_value(
    num_hits: ArrayLike, num_examples: ArrayLike, *, seed: int, num_draws: int = NUM_RESAMPLES
) -> float:
    """Returns how likely hit rates of groups differ as much where the group does not matter.

    Pearson's chi-square statistic, against its distribution over all ways to deal out the hits
    with the margins as they are, by drawing: right for groups of any size, unlike the asymptotic
    one, which needs five expected hits in each.

    Args:
      num_hits: [g] int, hits of each group.
      num_examples: [g] int, examples of each group, no fewer than its hits.
      seed: of the draws.
      num_draws: how many.

    Returns:
      The p-value, at least 1 / (num_draws + 1); 1.0 where all examples are hits, or none.
    """
    hits, sizes = np.asarray(num_hits, dtype=np.int64), np.asarray(num_examples, dtype=np.int64)
    total, number = int(sizes.sum()), int(hits.sum())
    if number in (0, total):
        return 1.0
    expected = sizes * (number / total)

    def chi_square(table: NDArray[np.int64]) -> NDArray[np.float64]:
        # Hits and misses of a group are off by as much; the common factor does not matter.
        return ((table - expected) ** 2 / np.maximum(expected, np.finfo(float).tiny)).sum(axis=-1)

    generator = np.random.default_rng(seed)
    drawn = generator.multivariate_hypergeometric(sizes, number, size=num_draws, method="marginals")
    at_least = chi_square(drawn) >= chi_square(hits) * (1 - _ROUNDING)
    return float((1 + at_least.sum()) / (1 + num_draws))


def _metric_table(rank: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns [distinct ranks, metrics] the value of every metric at every rank."""
    return np.stack(list(ranking.per_example(rank).values()), axis=1)


def _by_event(
    table: NDArray[np.float64], row_of: NDArray[np.int64], event: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the metrics of every kind of event, [kinds, metrics], and how many there are of it.

    Args:
      table: [rows, metrics] the metrics of every kind of example.
      row_of: [n] the row of each example.
      event: [n] the event of each example; None where each is an event of its own.
    """
    if event is None:
        return table, np.bincount(row_of, minlength=len(table))
    _, event_of, sizes = np.unique(event, return_inverse=True, return_counts=True)
    totals = [np.bincount(event_of, weights=column[row_of]) for column in table.T]
    means = np.stack(totals, axis=1) / sizes[:, None]
    return np.unique(means, axis=0, return_counts=True)


def _intervals(
    table: NDArray[np.float64],
    counts: NDArray[np.int64],
    seed: int,
    num_resamples: int,
    confidence: float,
) -> dict[str, Interval]:
    """Resamples how often each row of the table comes, and returns an interval per column."""
    means, estimate = _resampled_means(table, counts, seed, num_resamples)
    return dict(zip(ranking.METRIC_NAMES, intervals(estimate, means, confidence), strict=True))


def _resampled_means(
    table: NDArray[np.float64], counts: NDArray[np.int64], seed: int, num_resamples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the means of each column in every resample, [resamples, columns], and of all."""
    num_examples = int(counts.sum())
    if num_examples == 0:
        raise UserError("there are no examples to evaluate; check the split and the input folder")
    generator = np.random.default_rng(seed)
    shares, block = counts / num_examples, max(_MAX_DRAWN // len(counts), 1)
    means = np.concatenate(
        [
            generator.multinomial(num_examples, shares, size=min(block, num_resamples - begin))
            @ table
            / num_examples
            for begin in range(0, num_resamples, block)
        ]
    )
    return means, counts @ table / num_examples


def intervals(
    estimates: Sequence[float] | NDArray[np.float64],
    resampled: NDArray[np.float64],
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """Returns estimates with percentiles of their resamples.

    Args:
      estimates: [k].
      resampled: [resamples, k].
      confidence: coverage asked for, such as 0.95.
    """
    tail = 100.0 * (1.0 - confidence) / 2.0
    ends = np.percentile(resampled, [tail, 100.0 - tail], axis=0)
    return [
        Interval(float(estimate), float(low), float(high))
        for estimate, low, high in zip(estimates, *ends, strict=True)
    ]
