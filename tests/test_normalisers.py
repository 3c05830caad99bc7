"""Normalisers of log-likelihoods by hand."""

import numpy as np
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.report import normalisers


def test_normalisers_turn_sums_into_means_and_leave_masks_alone():
    values = np.array([[-6.0, -4.0, -np.inf]], dtype=np.float32)
    tokens = np.array([[3, 1, 0]], dtype=np.int32)
    beside = {
        "num_chars": np.array([[12, 4, 0]], dtype=np.int32),
        "prior_log_likelihood": np.array([[-7.0, -2.0, 0]], dtype=np.float32),
    }
    expected = {"sum": [-6, -4], "mean": [-2, -4], "char": [-0.5, -1], "pmi": [1, -2]}
    assert expected.keys() == set(normalisers.NAMES)
    for name, wanted in expected.items():
        found = normalisers.normalise(values, tokens, name, **beside)
        assert found.tolist() == [[*wanted, -np.inf]] and found.dtype == np.float32
    with pytest.raises(UserError, match="'pmi' cannot be had here"):
        normalisers.normalise(values, tokens, "pmi")
