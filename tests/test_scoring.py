"""Scoring: the same numbers however candidates are laid out."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import random_tokens, ranking_batch, tiny_model

from instructrec_jax.errors import UserError
from instructrec_jax.models.encoder_decoder import training_logits
from instructrec_jax.models.losses import cross_entropy
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.scoring.packing import pack_candidates
from instructrec_jax.scoring.scorer import make_scorer

# The log-likelihoods themselves.


def one_row_per_candidate(batch):
    """The slow way: every candidate is a training example of its own."""
    targets = batch["candidate_tokens"]
    rows, candidates, length = targets.shape
    flat = targets.reshape(-1, length)
    examples = {
        "encoder_input_tokens": np.repeat(batch["encoder_input_tokens"], candidates, axis=0),
        "decoder_input_tokens": np.pad(flat, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": flat,
    }

    def log_likelihood(model, examples):
        logits, target_logits = training_logits(model, examples)
        weights = (examples["decoder_target_tokens"] > 0).astype(np.float32)
        total = lambda *row: -cross_entropy(*row, z_loss=0.0, label_smoothing=0.0)[0]  # noqa: E731
        return jax.vmap(total)(logits, target_logits, weights)

    found = jax.jit(log_likelihood)(tiny_model(), examples).reshape(rows, candidates)
    return np.where(targets.any(-1), found, -np.inf)


@pytest.fixture(scope="module")
def batch():
    made = ranking_batch(0, rows=8, candidates=5, inputs=20, targets=10)
    made["candidate_tokens"][2, 4] = 0
    made["candidate_tokens"][7] = 0
    return made


@pytest.fixture(scope="module")
def expected(batch):
    return one_row_per_candidate(batch)


@pytest.fixture(scope="module")
def score_on_8():
    return make_scorer(make_mesh(MeshSettings()))


def tokens_of(batch, inputs, candidates):
    return batch | {"encoder_input_tokens": inputs, "candidate_tokens": candidates}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [MeshSettings(), MeshSettings(data=2, fsdp=2, tensor=2), None])
def test_log_likelihoods_are_those_of_one_row_per_candidate(batch, expected, settings):
    mesh = make_mesh(settings) if settings else make_mesh(MeshSettings(), jax.devices()[:1])
    found, num_tokens = make_scorer(mesh)(tiny_model(), batch)
    assert found.dtype == np.float32
    close(found, expected)
    np.testing.assert_array_equal(num_tokens, (batch["candidate_tokens"] > 0).sum(-1))


def test_batch_size_padding_bucket_and_order_change_nothing(batch, expected, score_on_8):
    inputs, candidates = batch["encoder_input_tokens"], batch["candidate_tokens"]
    longer = tokens_of(
        batch,
        np.pad(inputs, ((0, 8), (0, 4))),
        np.pad(candidates, ((0, 8), (0, 3), (0, 6))),
    )
    found, _ = score_on_8(tiny_model(), longer)
    close(found[:8, :5], expected)
    assert np.isneginf(found[8:]).all() and np.isneginf(found[:, 5:]).all()
    order = np.random.default_rng(0).permutation(5)
    found, _ = score_on_8(tiny_model(), tokens_of(batch, inputs, candidates[:, order]))
    close(found, expected[:, order])


def test_candidates_that_need_several_rows_get_the_same_numbers(score_on_8):
    rng = np.random.default_rng(1)
    batch = {
        "encoder_input_tokens": random_tokens(rng, rng.integers(2, 20, 8), 20),
        "candidate_tokens": random_tokens(rng, rng.integers(60, 100, (8, 4)), 100),
    }
    assert pack_candidates(batch)["packed_tokens"].shape[1:] == (2, 256)
    close(score_on_8(tiny_model(), batch)[0], one_row_per_candidate(batch))


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


def test_a_batch_is_refused_that_the_devices_cannot_share(score_on_8):
    with pytest.raises(UserError, match="multiple of data x fsdp = 8"):
        score_on_8(tiny_model(), ranking_batch(0, rows=6))
