"""Comparing two ways of ranking while their users come in, and looking as often as one likes.

An interval of fixed size is right for one look; who stops at the first look that shows a difference
finds one too often. These intervals hold at all numbers of users at once, so looking costs nothing
but their greater width (asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", 2024).
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from instructrec_jax.errors import UserError
from instructrec_jax.metrics.statistics import CONFIDENCE, POWER, Interval

LEAST_USERS = 30  # below, a mean is not near enough to normal
_TIGHT_AT = 500  # users at which the intervals are narrowest for their number


def always_valid_mean(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Returns a mean with an interval that holds however often one has looked before.

    Args:
      values: [n] one of each user, in any order.
      confidence: that the interval holds at every n from `LEAST_USERS` on.

    Raises:
      UserError: if there are fewer than `LEAST_USERS`.
    """
    found = np.asarray(values, np.float64)
    number = len(found)
    if number < LEAST_USERS:
        raise UserError(f"{number} users tell nothing yet; expected at least {LEAST_USERS}")
    spread = _variance_weight(1 - confidence)
    scaled = number * spread + 1
    width = found.std(ddof=1) * math.sqrt(
        2 * scaled / (number**2 * spread) * math.log(math.sqrt(scaled) / (1 - confidence))
    )
    mean = float(found.mean())
    return Interval(mean, mean - width, mean + width)


def always_valid_difference(
    values: ArrayLike, other_values: ArrayLike, *, confidence: float = CONFIDENCE
) -> Interval:
    """Returns the difference of the means of two groups of users, likewise.

    Each group has an interval of half the error, so both hold together with the confidence.

    Args:
      values: [n] one of each user.
      other_values: [m] one of each user of the other group, which is subtracted.
      confidence: as in `always_valid_mean`.

    Raises:
      UserError: as `always_valid_mean`.
    """
    half = 1 - (1 - confidence) / 2
    one, other = (always_valid_mean(own, confidence=half) for own in (values, other_values))
    return Interval(one.estimate - other.estimate, one.low - other.high, one.high - other.low)


def users_needed(
    rate: float, difference: float, *, power: float = POWER, confidence: float = CONFIDENCE
) -> int:
    """Returns how many users each of two groups needs, for one look at the end.

    Args:
      rate: share of the users of one group with a reward.
      difference: of the other group's, that is to be found.
      power: probability with which it is found.
      confidence: 1 less the level of the two-sided test.

    Raises:
      UserError: if a rate is not between 0 and 1, or the difference is 0.

    Example:
      `users_needed(0.3, 0.03)` is 3760.
    """
    other = rate + difference
    if not (0 < rate < 1 and 0 < other < 1) or not difference:
        raise UserError(
            f"rates are {rate:g} and {other:g}; expected two different ones between 0 and 1"
        )
    sure = stats.norm.ppf(1 - (1 - confidence) / 2) + stats.norm.ppf(power)
    spread = rate * (1 - rate) + other * (1 - other)
    return math.ceil(sure**2 * spread / difference**2)


def _variance_weight(error: float) -> float:
    """Returns the square of the parameter that makes intervals narrowest at `_TIGHT_AT` users."""
    return (-2 * math.log(error) + math.log(-2 * math.log(error) + 1)) / _TIGHT_AT
