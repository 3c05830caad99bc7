"""What other orders would have earned: exact on average, and within its intervals."""

import itertools

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.metrics.off_policy import Shown, policy_values

LIKED, LOOKED = np.array([0.9, 0.5, 0.1]), np.array([1.0, 0.6, 0.3])  # items, positions
MODEL = np.array([2, 0, 1])  # its order: the worst item first
EXPLORED = 0.3


def rows(order, reward):
    """A ranking of three items: rewards, propensities, and what two policies would do."""
    positions = np.arange(3)
    by_model = (order == MODEL).astype(float)
    propensity = (1 - EXPLORED) * by_model + EXPLORED / 3
    best = (np.argsort(-LIKED) == order).astype(float)
    return reward[positions], propensity, by_model, best


def test_weighted_rewards_are_exact_over_all_orders():
    """The mean over what may be logged is what the policy earns."""
    orders = [np.array(order) for order in itertools.permutations(range(3))]
    found = np.zeros(2)
    for order in orders:
        chance = EXPLORED / 6 + (1 - EXPLORED) * (order == MODEL).all()
        reward, propensity, by_model, best = rows(order, LIKED[order] * LOOKED)
        found += chance * np.array(
            [(target / propensity * reward).sum() for target in (by_model, best)]
        )
    expected = [(LIKED[order] * LOOKED).sum() for order in (MODEL, np.argsort(-LIKED))]
    np.testing.assert_allclose(found, expected)


def test_intervals_hold_what_policies_earn():
    rng, number = np.random.default_rng(0), 4000
    logged = [rng.permutation(3) if rng.random() < EXPLORED else MODEL for _ in range(number)]
    drawn = [rows(o, (rng.random(3) < LIKED[o] * LOOKED).astype(float)) for o in logged]
    reward, propensity, by_model, best = map(np.concatenate, zip(*drawn, strict=True))
    impression = np.repeat(np.arange(number), 3)
    shown = Shown(
        reward=reward, propensity=propensity, impression=impression, group=impression // 4
    )
    for order, target in ((MODEL, by_model), (np.argsort(-LIKED), best)):
        true = (LIKED[order] * LOOKED).sum()
        for value in policy_values(shown, target).values():
            assert value.low < true < value.high
            assert value.high - value.low < 0.4
    as_logged = policy_values(shown, propensity)
    assert as_logged["ips"].estimate == pytest.approx(reward.sum() / number)
    assert as_logged["snips"].estimate == pytest.approx(reward.sum() / number)


def test_impossible_logs_are_refused():
    nothing = np.zeros(0)
    with pytest.raises(UserError, match="nothing was shown"):
        policy_values(
            Shown(reward=nothing, propensity=nothing, impression=nothing, group=nothing), []
        )
    one = np.ones(1, np.int64)
    with pytest.raises(UserError, match="propensity of 0"):
        policy_values(Shown(reward=one, propensity=one * 0.0, impression=one, group=one), [1.0])
