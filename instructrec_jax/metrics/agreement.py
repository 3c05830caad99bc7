"""Answers of people to yes/no questions: shares with intervals, and how far two people agree."""

import math
from collections.abc import Sequence

from instructrec_jax.metrics.statistics import Interval

_Z_95 = 1.959963984540054  # 97.5 % point of the normal distribution


def wilson_interval(num_yes: int, number: int) -> Interval:
    """Returns the share of a yes with Wilson's 95 % interval, right for few answers too.

    Args:
      num_yes: answers that are yes.
      number: all answers, at least one.

    Example:
      (9, 10) -> .90, .596 to .982.
    """
    share, spread = num_yes / number, _Z_95**2 / number
    middle = (share + spread / 2) / (1 + spread)
    half = _Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / number + spread / (4 * number))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Returns how far two annotators agree beyond chance: 1 fully, 0 as by chance.

    Args:
      first: answers of one, at least one answer.
      second: of the other, to the same questions in the same order.

    Returns:
      Kappa; None where both gave one and the same answer throughout, which says nothing.

    Example:
      ([yes, yes, no, no], [yes, no, no, no]) -> 0.5.
    """
    number = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / number
    p, q = sum(first) / number, sum(second) / number
    by_chance = p * q + (1 - p) * (1 - q)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)
