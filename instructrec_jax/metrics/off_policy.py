"""What another way of ordering would have earned, from what was shown at random now and then.

A row is a candidate that was shown at a position: with which probability it stood there, with
which another policy would have put it there, and what it earned. Weighting each reward by the ratio
of the two gives what that policy earns, without bias where a reward depends on the candidate and
its position alone and the policy puts nothing where it could not have been (the item-position model
of Li et al., "Offline Evaluation of Ranking Policies with Click Models", KDD 2018). Self-normalised
weights (SNIPS) vary less, and are biased by as much as few events allow.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructrec_jax.errors import UserError
from instructrec_jax.metrics.statistics import Interval, intervals

NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """Candidates that were shown.

    Attributes:
      reward: float [n].
      propensity: float [n], the probability with which each stood where it did; above 0.
      impression: int [n], the index of its ranking.
      group: int [n], of whom the ranking is: rankings of one user are resampled together.
    """

    reward: NDArray[np.float64]
    propensity: NDArray[np.float64]
    impression: NDArray[np.int64]
    group: NDArray[np.int64]


def policy_values(shown: Shown, probability: ArrayLike, *, seed: int = 0) -> dict[str, Interval]:
    """Returns the reward of a ranking under a policy, with 95% bootstrap intervals over groups.

    Args:
      shown: what was shown.
      probability: [n], with which the policy puts each candidate at its position.
      seed: of the resamples.

    Returns:
      "ips" and "snips".

    Raises:
      UserError: if nothing was shown, or something with a propensity of 0.

    Example:
      Two rankings of two candidates, each order shown once, by chance; only candidate A is ever
      taken, and only at the first position. Where A is always first, a ranking earns 1:
      propensities are 1/2, so the one reward of two rankings counts twice.
    """
    if not len(shown.reward):
        raise UserError("nothing was shown, so no policy has a value")
    if (shown.propensity <= 0).any():
        raise UserError("a candidate was shown with a propensity of 0; such a log is damaged")
    weight = np.asarray(probability, np.float64) / shown.propensity
    groups, group_of = np.unique(shown.group, return_inverse=True)
    _, first = np.unique(shown.impression, return_index=True)
    columns = [weight * shown.reward, weight, np.ones(len(weight))]
    sums = np.stack(
        [
            *(np.bincount(group_of, column, len(groups)) for column in columns),
            np.bincount(group_of[first], minlength=len(groups)),
        ],
        axis=1,
    )
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(
        len(groups), np.full(len(groups), 1 / len(groups)), size=NUM_RESAMPLES
    )
    estimates, resampled = _ratios(sums.sum(axis=0)[None]), _ratios(drawn.astype(float) @ sums)
    return dict(zip(("ips", "snips"), intervals(estimates[0], resampled), strict=True))


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns [k, 2] both estimates of [k, 4] sums: rewards, weights, candidates, rankings."""
    rewards, weights, candidates, rankings = sums.T
    snips = np.divide(rewards, weights, out=np.zeros_like(rewards), where=weights > 0)
    return np.stack([rewards / rankings, snips * candidates / rankings], axis=1)
