"""The order of training examples as a function of integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.data.data_order import draws, hashed, permuted

RATES = [3.0, 1.0, 7.5, 0.01, 100.0]


@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_a_permutation_takes_each_position_to_another_one(size, key):
    assert sorted(permuted(range(size), size, key)) == list(range(size))


def test_permutations_of_different_keys_share_no_more_than_chance():
    one, other = (permuted(range(5000), 5000, key) for key in (1, 2))
    assert np.count_nonzero(one == other) < 10
    assert abs(np.corrcoef(one, np.arange(5000))[0, 1]) < 0.1
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.1


def test_many_permutations_are_taken_at_once():
    sizes, keys = np.array([5, 40, 1000]), np.array([7, 8, 9])
    together = permuted([3, 3, 3], sizes, keys)
    alone = [permuted([3], size, key)[0] for size, key in zip(sizes, keys, strict=True)]
    assert together.tolist() == alone


def test_a_hash_is_the_same_on_every_machine():
    assert hashed(1, 2).tolist() == [13608149317741381227]
    assert hashed(3, [1, 2]).shape == (2,)


@pytest.mark.parametrize("begin", [0, 1, 4, 17, 999, 15_000])
def test_draws_from_anywhere_are_those_from_the_beginning(begin):
    whole = draws(RATES, 5, begin=0, number=begin + 300)
    part = draws(RATES, 5, begin=begin, number=300)
    assert part.tasks.tolist() == whole.tasks[begin:].tolist()
    assert part.counts.tolist() == whole.counts[begin:].tolist()


def test_draws_count_the_examples_of_a_task_and_keep_to_the_rates():
    found = draws(RATES, 5, begin=0, number=20_000)
    for task, share in enumerate(np.array(RATES) / sum(RATES)):
        counts = found.counts[found.tasks == task]
        assert counts.tolist() == list(range(len(counts)))
        assert abs(len(counts) - 20_000 * share) < 3


def test_draws_have_no_pattern():
    tasks = draws([1, 1], 3, begin=0, number=2000).tasks
    repeated = np.mean(tasks[1:] == tasks[:-1])
    assert 0.2 < repeated < 0.5  # 0 where tasks took turns
    assert draws([1, 1], 4, begin=0, number=2000).tasks.tolist() != tasks.tolist()


def test_a_single_task_is_drawn_in_order():
    found = draws([0.3], 9, begin=10**12, number=3)
    assert found.tasks.tolist() == [0, 0, 0]
    assert found.counts.tolist() == [10**12, 10**12 + 1, 10**12 + 2]
