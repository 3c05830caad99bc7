"""Intervals that may be looked at as often as one likes."""

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.metrics.always_valid import (
    LEAST_USERS,
    always_valid_difference,
    always_valid_mean,
    users_needed,
)
from instructrec_jax.metrics.statistics import detectable_difference

LOOKS = range(LEAST_USERS, 1200, 60)


def is_ever_outside(values, other, true):
    found = (always_valid_difference(values[:n], other[:n]) for n in LOOKS)
    return any(not each.low <= true <= each.high for each in found)


def test_equal_ways_are_told_apart_seldom_though_one_looks_often():
    rng = np.random.default_rng(0)
    wrong = [is_ever_outside(*rng.binomial(1, 0.3, (2, 1200)), 0.0) for _ in range(60)]
    assert np.mean(wrong) <= 0.05


def test_a_difference_is_found():
    rng = np.random.default_rng(1)
    found = always_valid_difference(rng.binomial(1, 0.45, 2000), rng.binomial(1, 0.3, 2000))
    assert 0 < found.low < 0.15 < found.high
    few = always_valid_mean(rng.normal(2.0, 1.0, 50))
    many = always_valid_mean(rng.normal(2.0, 1.0, 5000))
    assert few.low < 2.0 < few.high and many.high - many.low < (few.high - few.low) / 5


def test_few_users_and_impossible_rates_are_refused():
    with pytest.raises(UserError, match="29 users"):
        always_valid_mean(np.zeros(29))
    for rate, difference in ((0.0, 0.1), (0.95, 0.1), (0.3, 0.0)):
        with pytest.raises(UserError, match="between 0 and 1"):
            users_needed(rate, difference)


def test_the_number_of_users_shows_the_difference():
    number = users_needed(0.3, 0.03)
    assert number == 3760
    deviation = np.sqrt(0.3 * 0.7 + 0.33 * 0.67)
    assert detectable_difference(deviation, number) == pytest.approx(0.03, rel=1e-3)
