"""Rank of the positive candidate, and the metrics that depend on that rank alone.

Source: InstructRec section 4.1: one relevant item among the candidates, HR@K and NDCG@K.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.errors import UserError

METRIC_NAMES = ("hr@1", "hr@3", "hr@5", "ndcg@3", "ndcg@5")


def ranks(
    log_likelihood: ArrayLike, positive_index: ArrayLike, tier: ArrayLike = 0
) -> NDArray[np.int64]:
    """Returns the rank of the positive candidate of every example, best = 1.

    Ties count against the positive, so a constant scorer never looks good.

    Args:
      log_likelihood: [n, c] float, higher is better; -inf marks a masked candidate.
      positive_index: [n] int, column of the positive candidate.
      tier: [n, c] int; a higher one is better whatever the log-likelihoods are.

    Returns:
      [n] int64: 1 + number of better candidates + number of equal other candidates.

    Raises:
      UserError: where a value is NaN, or the positive candidate is masked.
      ValueError: if the shapes do not fit, or an index is outside 0 .. c - 1.

    Example:
      `ranks([[-1.0, -2.0, -1.0]], [0])` is `[2]`: one other candidate is as good.
    """
    values = np.asarray(log_likelihood, dtype=np.float64)
    index = np.asarray(positive_index, dtype=np.int64)
    _check_shapes(values, index)
    positive = values[np.arange(len(index)), index]
    _check_values(values, positive)
    tiers = np.broadcast_to(np.asarray(tier, dtype=np.int64), values.shape)
    own = tiers[np.arange(len(index)), index][:, None]
    at_least_as_good = (tiers > own) | ((tiers == own) & (values >= positive[:, None]))
    # The positive itself supplies the leading 1.
    return at_least_as_good.sum(axis=1).astype(np.int64)


def ranks_of_all(log_likelihood: ArrayLike, tier: ArrayLike = 0) -> NDArray[np.int64]:
    """Returns the rank that each candidate of one example would have as the positive one.

    Args:
      log_likelihood: [c] float, higher is better; no NaN.
      tier: [c] int; a higher one is better whatever the log-likelihoods are.

    Returns:
      [c] int64: 1 + number of better candidates + number of equal other candidates.

    Example:
      `ranks_of_all([-1.0, -2.0, -1.0])` is `[2, 3, 2]`.
    """
    _, places = np.unique(np.asarray(log_likelihood, dtype=np.float64), return_inverse=True)
    values = places + len(places) * np.asarray(tier, dtype=np.int64)
    num_worse = np.searchsorted(np.sort(values), values, side="left")
    return len(values) - num_worse


def hits(rank: ArrayLike, k: int) -> NDArray[np.float64]:
    """Returns [n] 1.0 where the positive is among the first k, else 0.0.

    Args:
      rank: [n] int, 1 = best.
      k: cut-off, at least 1.
    """
    return (_checked_ranks(rank) <= _checked_cutoff(k)).astype(np.float64)


def gains(rank: ArrayLike, k: int) -> NDArray[np.float64]:
    """Returns [n] the NDCG@k of every example: 1 / log2(1 + rank) where rank <= k, else 0.

    With one relevant item the ideal DCG is 1, so DCG and NDCG are the same number.

    Args:
      rank: [n] int, 1 = best.
      k: cut-off, at least 1.
    """
    found = _checked_ranks(rank)
    return np.where(found <= _checked_cutoff(k), 1.0 / np.log2(1.0 + found), 0.0)


def hit_rate(rank: ArrayLike, k: int) -> float:
    """Returns HR@k, the share of examples whose positive is among the first k."""
    return float(_mean(hits(rank, k)))


def ndcg(rank: ArrayLike, k: int) -> float:
    """Returns NDCG@k averaged over examples, with one relevant item each."""
    return float(_mean(gains(rank, k)))


def per_example(rank: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Returns every metric of the paper, [n] values each, by name.

    Args:
      rank: [n] int, 1 = best.
    """
    values = {}
    for name in METRIC_NAMES:
        kind, cutoff = name.split("@")
        values[name] = (hits if kind == "hr" else gains)(rank, int(cutoff))
    return values


def evaluate(rank: ArrayLike) -> dict[str, float]:
    """Returns the mean of every metric of the paper over the examples.

    Args:
      rank: [n] int, 1 = best.

    Returns:
      hr@1, hr@3, hr@5, ndcg@3, ndcg@5, each in 0 .. 1.

    Raises:
      UserError: if there is no example.

    Example:
      `evaluate([1, 4])["hr@3"]` is 0.5.
    """
    return {name: float(_mean(values)) for name, values in per_example(rank).items()}


def _mean(values: NDArray[np.float64]) -> np.floating:
    """Returns the mean, or says that there is nothing to average."""
    if values.size == 0:
        raise UserError("there are no examples to evaluate; check the split and the input folder")
    return values.mean()


def _checked_ranks(rank: ArrayLike) -> NDArray[np.int64]:
    """Returns the ranks as int64 after checking that they are one row of positive integers."""
    found = np.asarray(rank, dtype=np.int64)
    if found.ndim != 1 or (found.size and found.min() < 1):
        raise ValueError(f"ranks must be one row of integers >= 1, got shape {found.shape}")
    return found


def _checked_cutoff(k: int) -> int:
    """Returns the cut-off if it is at least 1."""
    if k < 1:
        raise ValueError(f"the cut-off k must be at least 1, got {k}")
    return k


def _check_shapes(values: NDArray, index: NDArray) -> None:
    """Raises where log-likelihoods and positive indices cannot belong together."""
    if values.ndim != 2 or index.shape != (len(values),):
        raise ValueError(
            f"expected log_likelihood [n, c] and positive_index [n], got {values.shape} and "
            f"{index.shape}"
        )
    outside = (index < 0) | (index >= values.shape[1])
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"positive_index[{row}] is {index[row]}; expected 0 .. {values.shape[1] - 1}"
        )


def _check_values(values: NDArray, positive: NDArray) -> None:
    """Raises where a value cannot be ranked."""
    not_a_number = np.isnan(values).any(axis=1)
    if not_a_number.any():
        raise UserError(
            f"row {int(np.flatnonzero(not_a_number)[0])} of {len(values)} has a log-likelihood "
            "that is not a number (NaN); the model has diverged or its weights are damaged: "
            "score again from an earlier checkpoint"
        )
    masked = np.isneginf(positive)
    if masked.any():
        raise UserError(
            f"the positive candidate of row {int(np.flatnonzero(masked)[0])} of {len(values)} is "
            "masked (-inf), so it has no rank; a target must stand among its candidates"
        )
