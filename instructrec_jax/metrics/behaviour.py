"""What a ranker does beside finding the target: whom it exposes, what it follows, what it claims.

Arrays are of n examples with up to c candidates; -1 among the ids marks padding.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

HEAD_SHARE, TAIL_SHARE = 0.2, 0.5  # of the catalogue: its most and its least popular items
HEAD, MIDDLE, TAIL = range(3)
NUM_BINS = 10


class Exposure(NamedTuple):
    """Which items stand at rank 1.

    Attributes:
      gini: of the number of first ranks over all items that are candidates: 0 where each has as
        many, near 1 where few items have nearly all.
      coverage: share of these items that are ranked first at least once.
      head_share: share of first ranks that go to the most popular fifth of the catalogue.
      tail_share: share that go to its less popular half.
    """

    gini: float
    coverage: float
    head_share: float
    tail_share: float


class Bin(NamedTuple):
    """Examples whose likeliest candidate has a probability between two bounds.

    Attributes:
      low: lower bound, not included but for 0.
      high: upper bound, included.
      num_examples: how many there are.
      confidence: mean probability of the likeliest candidate; None where there is no example.
      accuracy: how often it is the target.
    """

    low: float
    high: float
    num_examples: int
    confidence: float | None
    accuracy: float | None


def first_shares(
    values: NDArray[np.floating], is_there: NDArray[np.bool_], tier: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns [n, c] each candidate's share of rank 1: equal best ones have equal parts of it.

    Args:
      values: [n, c], higher is better.
      is_there: [n, c] False at padding.
      tier: [n, c] a higher one is better whatever the values are.

    Example:
      values `[[2, 2, 1]]` give `[[0.5, 0.5, 0]]`.
    """
    tiers = np.where(is_there, tier, np.iinfo(np.int32).min)
    is_last = tiers == tiers.max(axis=1, keepdims=True)
    masked = np.where(is_last, values, -np.inf)
    is_best = is_last & (masked == masked.max(axis=1, keepdims=True))
    return is_best / is_best.sum(axis=1, keepdims=True)


def exposure(
    candidate_ids: NDArray[np.integer], shares: NDArray[np.float64], counts: NDArray[np.integer]
) -> Exposure:
    """Returns which items are ranked first.

    Args:
      candidate_ids: [n, c].
      shares: [n, c], see `first_shares`.
      counts: [items] training events; ties of popularity go by item id.
    """
    is_there = candidate_ids >= 0
    ids, weights = candidate_ids[is_there], shares[is_there]
    firsts = np.bincount(ids, weights=weights, minlength=len(counts))
    is_candidate = np.bincount(ids, minlength=len(counts)) > 0
    popularity, total = popularity_classes(counts), firsts.sum()
    return Exposure(
        gini=gini(firsts[is_candidate]),
        coverage=float((firsts[is_candidate] > 0).mean()),
        head_share=float(firsts[popularity == HEAD].sum() / total),
        tail_share=float(firsts[popularity == TAIL].sum() / total),
    )


def popularity_classes(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Returns int64 [items] `HEAD`, `MIDDLE` or `TAIL`, by rank of popularity in the catalogue.

    Args:
      counts: [items] training events; ties go by item id.
    """
    found = np.full(len(counts), MIDDLE)
    by_popularity = np.argsort(-counts, kind="stable")
    found[by_popularity[len(counts) - round(TAIL_SHARE * len(counts)) :]] = TAIL
    found[by_popularity[: max(round(HEAD_SHARE * len(counts)), 1)]] = HEAD
    return found


def group_shares(
    candidate_ids: NDArray[np.integer], shares: NDArray[np.float64], group: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Returns which part of all rank 1 goes to each group of items, [groups].

    Args:
      candidate_ids: [n, c].
      shares: [n, c], see `first_shares`.
      group: [items] number of each item's group.
    """
    is_there = candidate_ids >= 0
    own = group[candidate_ids[is_there]]
    found = np.bincount(own, weights=shares[is_there], minlength=int(group.max()) + 1)
    return found / found.sum()


def gini(amounts: ArrayLike) -> float:
    """Returns the Gini coefficient of amounts that are not negative, 0 where all are equal.

    Example:
      of n amounts of which one is not 0 it is `1 - 1 / n`.
    """
    ordered = np.sort(np.asarray(amounts, np.float64))
    number = len(ordered)
    if not ordered.sum():
        return 0.0
    order = np.arange(1, number + 1)
    return float((2 * order - number - 1) @ ordered / (number * ordered.sum()))


def popularity_correlation(
    candidate_ids: NDArray[np.integer], values: NDArray[np.floating], counts: NDArray[np.integer]
) -> float | None:
    """Returns Spearman's correlation of what candidates are ranked by with their training counts.

    It is computed in each list and averaged; lists in which either is the same for all candidates
    are left out. None where no list is left.

    Args:
      candidate_ids: [n, c].
      values: [n, c], higher is better.
      counts: [items] training events.
    """
    sizes, total, number = (candidate_ids >= 0).sum(axis=1), 0.0, 0
    for size in np.unique(sizes).tolist():
        rows = sizes == size
        ours = stats.rankdata(values[rows, :size], axis=1)
        theirs = stats.rankdata(counts[candidate_ids[rows, :size]], axis=1)
        ours -= ours.mean(axis=1, keepdims=True)
        theirs -= theirs.mean(axis=1, keepdims=True)
        scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum(axis=1))
        found = (ours * theirs).sum(axis=1)[scale > 0] / scale[scale > 0]
        total, number = total + float(found.sum()), number + len(found)
    return total / number if number else None


def reliability(
    log_likelihood: NDArray[np.floating], target_index: NDArray[np.integer]
) -> list[Bin]:
    """Returns how often the likeliest candidate is the target, by the probability it is given.

    The probabilities are the softmax of the log-likelihoods over the candidates.

    Args:
      log_likelihood: [n, c] natural log, -inf at padding.
      target_index: [n].
    """
    probability = special.softmax(log_likelihood.astype(np.float64), axis=1)
    confidence = probability.max(axis=1)
    is_right = probability.argmax(axis=1) == target_index
    bin_of = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bin_of, minlength=NUM_BINS)
    sums = np.bincount(bin_of, weights=confidence, minlength=NUM_BINS)
    hits = np.bincount(bin_of, weights=is_right, minlength=NUM_BINS)
    return [
        Bin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            num_examples=int(count),
            confidence=float(sums[number] / count) if count else None,
            accuracy=float(hits[number] / count) if count else None,
        )
        for number, count in enumerate(counts)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Returns the expected calibration error: by how much accuracy and confidence differ.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), equation 3.
    """
    total = sum(own.num_examples for own in bins)
    return sum(
        own.num_examples / total * abs(own.accuracy - own.confidence)
        for own in bins
        if own.accuracy is not None and own.confidence is not None
    )


def index_p_value(shares: NDArray[np.float64]) -> float | None:
    """Returns how likely first ranks differ as much by index where it does not matter.

    Pearson's chi-square test against even shares; None below five first ranks per index.

    Args:
      shares: [n, c] see `first_shares`, of independent examples with c candidates each.
    """
    if len(shares) < 5 * shares.shape[1]:
        return None
    return float(stats.chisquare(shares.sum(axis=0)).pvalue)
