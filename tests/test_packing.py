"""Candidates packed into rows, as training on whole rankings takes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import random_tokens

from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import (
    pack_candidates,
    ranking_sizes,
    trim_instructions,
)


def test_candidates_are_packed_as_the_docstring_says():
    tokens = np.array([[[5, 1, 0], [6, 7, 1]]], np.int32)
    found = pack_candidates({"candidate_tokens": tokens, "target_index": 1}, row_lengths=(6,))
    assert found["packed_tokens"].tolist() == [[[5, 1, 6, 7, 1, 0]]]
    assert found["packed_candidates"].tolist() == [[[1, 1, 2, 2, 2, 0]]]
    assert found["num_tokens"].tolist() == [[2, 3]]
    assert found["target_index"] == 1 and "candidate_tokens" not in found


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([(7,), (8, 12), (30,)]),
)
def test_every_candidate_lies_whole_in_one_row(lengths, row_lengths):
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, np.array(lengths), 7)
    found = pack_candidates({"candidate_tokens": tokens}, row_lengths)
    assert found["packed_tokens"].shape[-1] in row_lengths
    for example, candidates in enumerate(tokens):
        rows = found["packed_tokens"][example], found["packed_candidates"][example]
        for index, candidate in enumerate(candidates):
            own = [row[owner == index + 1] for row, owner in zip(*rows, strict=True)]
            own = [row.tolist() for row in own if len(row)]
            assert own == ([candidate[candidate > 0].tolist()] if candidate.any() else [])
        assert (rows[0] > 0).sum() == (candidates > 0).sum()
        for owner in rows[1]:  # side by side: padding comes last only
            assert (np.diff((owner > 0).astype(int)) <= 0).all()


def test_a_candidate_longer_than_any_row_is_refused():
    tokens = np.full((1, 1, 9), 5, np.int32)
    with pytest.raises(UserError, match="a candidate has 9 tokens and a packed row holds 8"):
        pack_candidates({"candidate_tokens": tokens}, row_lengths=(4, 8))


@pytest.mark.parametrize("row_lengths", [(7,), (8, 12), (30,)])
def test_the_rows_of_a_process_are_packed_into_the_shapes_of_the_whole_batch(row_lengths):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, (8, 3))
    lengths[:4] = np.minimum(lengths[:4], 2)
    batch = {
        "candidate_tokens": random_tokens(rng, lengths, 7),
        "encoder_input_tokens": random_tokens(rng, rng.integers(1, 9, 8), 12),
    }
    parts = [
        {name: value[rows] for name, value in batch.items()} for rows in (np.s_[:4], np.s_[4:])
    ]
    of_parts = [ranking_sizes(part, row_lengths) for part in parts]
    sizes = tuple(map(max, *of_parts))
    assert sizes == ranking_sizes(batch, row_lengths) and of_parts[0] != of_parts[1]
    whole = pack_candidates(batch, row_lengths)
    packed = [pack_candidates(part, row_lengths, sizes=sizes) for part in parts]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([p[name] for p in packed]), whole[name])


@pytest.mark.parametrize(("longest", "width"), [(3, 4), (4, 4), (5, 8), (9, 12)])
def test_instructions_are_cut_to_the_smallest_bucket_that_holds_them(longest, width):
    batch = {"encoder_input_tokens": np.ones((2, 12), np.int32), "target_index": np.zeros(2)}
    found = trim_instructions(batch, (4, 8, 20), longest)
    assert found["encoder_input_tokens"].shape == (2, width) and found.keys() == batch.keys()
