"""Strategies of views as pure functions: who meets whom, and what comes out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.scoring.candidate_views import (
    AllAtOnce,
    Groups,
    Outcome,
    Rotations,
    cost_of,
    described,
)

strategies = st.one_of(
    st.just(AllAtOnce()),
    st.builds(Rotations, number=st.integers(1, 12)),
    st.integers(2, 12).flatmap(
        lambda size: st.builds(
            Groups, size=st.just(size), kept=st.integers(1, size // 2), seed=st.integers(0, 3)
        )
    ),
)


def rank_of(outcome):
    """Ranks as artefact E has them: by the last round, then by log-likelihood."""
    return ranking.ranks_of_all(outcome.log_likelihood[:, 0], outcome.last_round)


def play(strategy, num_candidates, score, name="r") -> tuple[Outcome, list[list[np.ndarray]]]:
    """Plays a request; `score` gives the values of a view, float [n]."""
    rounds = strategy.rounds(num_candidates, name)
    views, shown = next(rounds), []
    while True:
        shown.append(views)
        try:
            views = rounds.send([np.float32(score(view))[:, None] for view in views])
        except StopIteration as end:
            return end.value, shown


def quality(num_candidates, seed=0):
    return np.random.default_rng(seed).permutation(num_candidates).astype(np.float32)


@given(strategies, st.integers(1, 150), st.integers(0, 9))
def test_every_candidate_gets_a_rank_of_its_own(strategy, num_candidates, seed):
    found, shown = play(strategy, num_candidates, lambda b: quality(num_candidates, seed)[b])
    assert sorted(rank_of(found)) == list(range(1, num_candidates + 1))
    assert found.log_likelihood.shape == (num_candidates, 1)
    assert found.log_likelihood.dtype == np.float32
    assert found.num_views == sum(map(len, shown))
    for number, views in enumerate(shown, start=1):
        present = set(np.concatenate(views).tolist())
        assert present == set(np.flatnonzero(found.last_round >= number).tolist())
    assert found.last_round.min() >= 1


@given(strategies, st.integers(1, 150), st.integers(0, 9))
def test_the_first_ranks_are_right_as_far_as_they_are_sure(strategy, num_candidates, seed):
    values = quality(num_candidates, seed)
    found, _ = play(strategy, num_candidates, lambda b: values[b])
    right = np.argsort(-values)[: strategy.sure_ranks]
    assert rank_of(found)[right].tolist() == list(range(1, len(right) + 1))


@given(strategies, st.integers(2, 150))
def test_a_scorer_that_cannot_tell_puts_nobody_first(strategy, num_candidates):
    found, _ = play(strategy, num_candidates, lambda b: np.zeros(len(b)))
    assert rank_of(found).min() > 1


@given(strategies, st.integers(1, 150))
def test_views_depend_on_seed_and_request_alone(strategy, num_candidates):
    values = quality(num_candidates)
    one, other = (play(strategy, num_candidates, lambda b: values[b])[1] for _ in range(2))
    for first, second in zip(one, other, strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


@given(st.integers(2, 12), st.integers(1, 150))
def test_no_view_is_larger_than_a_group_and_groups_differ_by_one(size, num_candidates):
    for strategy in (Groups(size=size), Groups(size=size, kept=size // 2)):
        _, shown = play(strategy, num_candidates, lambda b: -b)
        for views in shown:
            sizes = [len(view) for view in views]
            assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        assert all((np.diff(view) > 0).all() for views in shown for view in views)


def test_requests_and_seeds_are_drawn_apart():
    def first(strategy, name):
        return np.concatenate(next(strategy.rounds(100, name))).tolist()

    assert first(Groups(), "a") == first(Groups(), "a")
    assert first(Groups(), "a") != first(Groups(), "b")
    assert first(Groups(), "a") != first(Groups(seed=1), "a")


def test_a_hundred_candidates_go_the_way_of_the_paper():
    """Ten groups of ten; those kept by the last round, then the others by their first."""
    values = quality(100)
    rounds = Groups().rounds(100, "r")
    groups = next(rounds)
    assert [len(group) for group in groups] == [10] * 10
    (final,) = rounds.send([values[group][:, None] for group in groups])
    assert sorted(final) == sorted(int(group[values[group].argmax()]) for group in groups)
    again = np.arange(10, dtype=np.float32)  # the second round orders them anew
    with pytest.raises(StopIteration) as end:
        rounds.send([again[:, None]])
    rank = rank_of(end.value.value)
    assert rank[final].tolist() == list(range(10, 0, -1))
    others = np.setdiff1d(np.arange(100), final)
    np.testing.assert_array_equal(rank[others], 11 + np.argsort(np.argsort(-values[others])))


@given(st.integers(1, 12), st.integers(0, 9))
def test_all_rotations_take_away_what_a_place_adds(num_candidates, seed):
    draw = np.random.default_rng(seed)
    values = quality(num_candidates, seed)
    bias = draw.integers(-50, 50, num_candidates)
    found, (views,) = play(
        Rotations(number=num_candidates), num_candidates, lambda b: values[b] + bias
    )
    assert len(views) == num_candidates
    np.testing.assert_allclose(found.log_likelihood[:, 0], values + bias.mean(), rtol=1e-6)
    np.testing.assert_array_equal(np.argsort(-found.log_likelihood[:, 0]), np.argsort(-values))


def test_few_rotations_are_spread_evenly():
    (views,) = play(Rotations(number=4), 10, lambda b: -b)[1]
    assert [int(view[0]) for view in views] == [0, 2, 5, 7]
    assert [sorted(view) for view in views] == [list(range(10))] * 4


def test_what_goes_beside_the_log_likelihood_decides_nothing():
    values, prior = quality(30), quality(30, 1)
    rounds = Groups(size=6).rounds(30, "r")
    views = next(rounds)
    with pytest.raises(StopIteration) as end:
        while True:
            views = rounds.send([np.stack([values[b], prior[b]], axis=1) for b in views])
    found = end.value.value
    alone, _ = play(Groups(size=6), 30, lambda b: values[b])
    np.testing.assert_array_equal(found.last_round, alone.last_round)
    np.testing.assert_array_equal(found.log_likelihood, np.stack([values, prior], axis=1))


@pytest.mark.parametrize(
    ("strategy", "cost"),
    [
        (AllAtOnce(), (1, 1, 100)),
        (Rotations(number=5), (1, 5, 500)),
        (Groups(), (2, 11, 110)),
        (Groups(kept=5), (5, 21, 200)),
    ],
)
def test_costs_are_known_beforehand(strategy, cost):
    assert cost_of(strategy, 100) == cost


def test_a_strategy_tells_its_settings_and_what_is_sure():
    assert described(Groups(kept=2)) == {
        "strategy": "Groups", "size": 10, "kept": 2, "seed": 0, "sure_ranks": 2
    }  # fmt: skip
    assert described(Rotations(number=3)) == {
        "strategy": "Rotations", "number": 3, "sure_ranks": None
    }  # fmt: skip
    assert described(Groups(size=9, kept=4))["sure_ranks"] == 4


@pytest.mark.parametrize(
    ("strategy", "change", "message"),
    [
        (Rotations(), {"number": 0}, "number is 0"),
        (Groups(), {"kept": 6}, "size 10 and kept 6; expected"),
        (Groups(), {"kept": 0}, "kept is 0"),
        (Groups(), {"size": 1}, "size 1"),
        (Groups(kept=5), {"size": 1}, "size 1 and kept 5"),
    ],
)
def test_sizes_that_would_never_end_are_refused(strategy, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(strategy, **change)
