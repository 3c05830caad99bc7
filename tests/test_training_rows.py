"""Examples in rows: the best fit over a window."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec_jax.pipeline.training_rows import best_fit, packed_rows

LENGTHS = {"inputs": 512, "targets": 64}


def examples_of(sizes) -> dict:
    """Examples of so many input and target tokens, each token the number of its example."""
    count = len(sizes)
    found = {
        "example_id": np.array([f"u{i}".encode() for i in range(count)], object),
        "example_number": np.arange(100, 100 + count),
    }
    for side, name in enumerate(LENGTHS):
        tokens = np.zeros((count, LENGTHS[name]), np.int32)
        for number, size in enumerate(sizes):
            tokens[number, : size[side]] = number + 1
        found[name] = tokens
    return found


def test_an_example_goes_into_the_fullest_row_it_fits_into_the_largest_first():
    assert best_fit(np.array([[6], [7], [4], [2]]), [10]).tolist() == [0, 1, 0, 1]


def test_either_side_may_be_the_one_that_is_full():
    assert best_fit(np.array([[1, 9], [1, 2], [1, 9], [9, 1]]), [10, 10]).tolist() == [0, 1, 2, 0]


@given(st.lists(st.tuples(st.integers(1, 512), st.integers(1, 64)), min_size=1, max_size=40))
def test_every_example_lies_whole_in_one_row(sizes):
    batch = packed_rows(examples_of(sizes), LENGTHS)
    found = {}
    numbers = [f"u{n - 100}" if n >= 0 else "" for n in batch["example_number"].ravel().tolist()]
    assert numbers == batch["example_id"].ravel().tolist()
    for row, ids in enumerate(batch["example_id"]):
        for segment, example in enumerate(filter(None, ids.tolist()), start=1):
            own = []
            for side, kind in (("encoder", "input"), ("decoder", "target")):
                is_own = batch[f"{side}_segment_ids"][row] == segment
                assert set(batch[f"{side}_{kind}_tokens"][row][is_own]) == {int(example[1:]) + 1}
                positions = batch[f"{side}_positions"][row][is_own]
                assert positions.tolist() == list(range(is_own.sum()))
                own.append(int(is_own.sum()))
            found[example] = tuple(own)
    assert found == {f"u{number}": size for number, size in enumerate(sizes)}
    firsts = [int(ids[0][1:]) for ids in batch["example_id"]]
    assert firsts == sorted(firsts)
    for side in ("encoder", "decoder"):  # side by side: padding comes last only
        assert (np.diff((batch[f"{side}_segment_ids"] > 0).astype(int)) <= 0).all()


@pytest.mark.parametrize("mean", [100, 150, 200])
def test_rows_are_at_least_93_percent_full(mean):
    draw = np.random.default_rng(0)
    shares = []
    for _ in range(10):
        inputs = np.clip(draw.normal(mean, mean / 3, 128), 20, 512).astype(int)
        row = best_fit(np.stack([inputs, np.full(128, 8)], axis=1), [512, 64])
        shares.append(inputs.sum() / 512 / (row.max() + 1))
    assert np.mean(shares) >= 0.93
