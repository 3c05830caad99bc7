"""From log-likelihoods of candidates to the rank of the positive one, and to HR@K and NDCG@K.

Source: InstructRec section 4.1: one relevant item among the candidates, HR@K and NDCG@K.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.errors import UserError, unknown_name

NORMALISERS = ("sum", "mean", "char", "pmi")
PMI = "pmi"
METRIC_NAMES = ("hr@1", "hr@3", "hr@5", "ndcg@3", "ndcg@5")


def normalise(
    log_likelihood: NDArray[np.float32],
    num_tokens: NDArray[np.int32] | None,
    name: str,
    *,
    num_chars: NDArray[np.int32] | None = None,
    prior_log_likelihood: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Returns the candidates' log-likelihoods under the named normaliser.

    Args:
      log_likelihood: [..., c] float32, natural log, summed over the target's tokens incl. EOS.
      num_tokens: [..., c] int32, number of those tokens, 0 at padding, which "mean" needs.
      name: "sum" (the paper's reading), "mean" (per token) or "char" (per character), which do
        not punish long titles, or "pmi" (pointwise mutual information: less what a prompt without
        preference and intention gives, which does not favour titles that are likely anyway).
      num_chars: [..., c] int32, characters of the title, which "char" needs.
      prior_log_likelihood: [..., c] float32, under that prompt, which "pmi" needs; finite.

    Returns:
      [..., c] float32; -inf stays -inf.

    Raises:
      UserError: if no normaliser has that name, or what it needs is not there.
    """
    checked_normalisers([name])
    if name == "sum":
        return log_likelihood
    other = {"mean": num_tokens, "char": num_chars, PMI: prior_log_likelihood}[name]
    if other is None:
        raise UserError(
            f"normaliser {name!r} cannot be had here; only `report` has it, {PMI!r} from scores "
            "that were made WITH_PRIOR = True"
        )
    if name == PMI:
        return log_likelihood - other
    return (log_likelihood / np.maximum(other, 1)).astype(np.float32)


def checked_normalisers(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names if there is at least one and all are known.

    Raises:
      UserError: otherwise.
    """
    if not names:
        raise UserError(f"no normaliser was given; choose among {', '.join(NORMALISERS)}")
    for name in names:
        if name not in NORMALISERS:
            raise unknown_name("normaliser", name, NORMALISERS)
    return tuple(names)


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
    return ranks_and_ties(log_likelihood, positive_index, tier)[0]


def ranks_and_ties(
    log_likelihood: ArrayLike, positive_index: ArrayLike, tier: ArrayLike = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns what `ranks` does, and [n] int64 how many other candidates equal the positive."""
    values = np.asarray(log_likelihood, dtype=np.float64)
    index = np.asarray(positive_index, dtype=np.int64)
    _check_shapes(values, index)
    positive = values[np.arange(len(index)), index]
    _check_values(values, positive)
    tiers = np.broadcast_to(np.asarray(tier, dtype=np.int64), values.shape)
    own = tiers[np.arange(len(index)), index][:, None]
    at_least_as_good = (tiers > own) | ((tiers == own) & (values >= positive[:, None]))
    equal = (tiers == own) & (values == positive[:, None])
    # The positive itself supplies the leading 1, and is equal to itself.
    return at_least_as_good.sum(axis=1, dtype=np.int64), equal.sum(axis=1, dtype=np.int64) - 1


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
    _, order = np.unique(np.asarray(log_likelihood, dtype=np.float64), return_inverse=True)
    values = order + len(order) * np.asarray(tier, dtype=np.int64)
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


def expected_per_example(rank: ArrayLike, num_tied: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Returns every metric, [n] values each, in expectation over the order of equal candidates.

    The positive takes each of the places rank - num_tied .. rank with the same probability, so a
    metric is the mean of its values at these places.

    Args:
      rank: [n] int, ties counted against the positive, 1 = best.
      num_tied: [n] int, other candidates that are equal to the positive, see `ranks_and_ties`.

    Example:
      `expected_per_example([3], [2])["hr@1"]` is `[1 / 3]`.
    """
    last, tied = _checked_ranks(rank), np.asarray(num_tied, dtype=np.int64)
    found = {}
    for name, values in per_example(np.arange(1, last.max(initial=1) + 1)).items():
        totals = np.concatenate([[0.0], np.cumsum(values)])
        found[name] = (totals[last] - totals[last - tied - 1]) / (tied + 1)
    return found


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


def candidate_label(value: Any, example: Mapping[str, Any], is_target: bool = False) -> Any:
    """Returns what the metric must know of a row: its example, its candidate, whether it is right.

    A SeqIO postprocessor: for targets it returns `(example, candidate, is_correct)`; model output
    passes unchanged.
    """
    if not is_target:
        return value
    example_index, candidate = (int(index) for index in np.asarray(example["idx"]))
    return example_index, candidate, bool(example["is_correct"])


def hit_rate_and_ndcg(
    targets: Sequence[tuple[int, int, bool]], scores: Sequence[float]
) -> dict[str, float]:
    """Returns HR@1,3,5 and NDCG@3,5 from one log-likelihood per row.

    Args:
      targets: `(example, candidate, is_correct)` of every row, in any order.
      scores: log-likelihood of every row.

    Raises:
      UserError: if a row occurs twice, or an example has no correct candidate or several.

    Example:
      targets `[(0, 0, False), (0, 1, True)]` with scores `[-2.0, -1.0]` give HR@1 = 1.
    """
    rows = np.asarray([target[:2] for target in targets], dtype=np.int64).reshape(-1, 2)
    is_correct = np.asarray([target[2] for target in targets], dtype=bool)
    if len(np.unique(rows, axis=0)) != len(rows):
        raise UserError("a candidate was scored twice; score every row of the task once")
    _, example = np.unique(rows[:, 0], return_inverse=True)
    num_examples = int(example.max()) + 1 if len(rows) else 0
    num_correct = np.bincount(example[is_correct], minlength=num_examples)
    if not (num_correct == 1).all():
        raise UserError("every example needs exactly one correct candidate; the task's rows differ")
    log_likelihood = np.full((num_examples, int(rows[:, 1].max(initial=-1)) + 1), -np.inf)
    log_likelihood[example, rows[:, 1]] = np.asarray(scores, dtype=np.float64)
    positive = np.zeros(num_examples, dtype=np.int64)
    positive[example[is_correct]] = rows[is_correct, 1]
    return evaluate(ranks(log_likelihood, positive))


def stack_rows(rows: Sequence[NDArray], fill: float) -> NDArray:
    """Returns ragged rows as one matrix [n, longest], `fill` after the shorter ones.

    Example:
      `stack_rows([np.array([1, 2]), np.array([3])], -1)` is `[[1, 2], [3, -1]]`.
    """
    width = max((len(row) for row in rows), default=0)
    dtype = rows[0].dtype if rows else np.float32
    matrix = np.full((len(rows), width), fill, dtype=dtype)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if rows:
        matrix[np.arange(width) < lengths[:, None]] = np.concatenate(rows)
    return matrix


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
