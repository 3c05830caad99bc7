"""Candidates packed into rows, as training on whole rankings takes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import random_tokens

from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import pack_candidates


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
