"""A model without pretraining starts from what goes together."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import tiny_config, tiny_model
from train_toy import train_toy

from instructrec_jax.parallel.mesh import MeshSettings, make_mesh, shardings
from instructrec_jax.stages.train import warm_start
from instructrec_jax.tokenizer import EOS_ID
from instructrec_jax.training.metrics_log import FILE_NAME, read_metrics

# Wider than the rank of what goes together: the toy's titles are of few words.
MODEL = tiny_config(vocab_size=600, emb_dim=256, num_encoder_layers=1, num_decoder_layers=1)
WORD, TITLES = 3, range(10, 20)  # of the tokens below; others are wording


@pytest.mark.slow
def test_two_equal_runs_start_near_a_uniform_guess_and_have_equal_losses(toy_records, tmp_path):
    found = []
    for name in ("one", "two"):
        train_toy(toy_records, tmp_path / name, 2, model=MODEL, warm_start=True)
        rows = read_metrics(tmp_path / name / FILE_NAME)
        found.append(
            [
                {k: v for k, v in row.items() if k.split("/")[0] not in ("time", "timing")}
                for row in rows
            ]
        )
    assert found[0] == found[1]
    assert found[0][0]["nll_per_token"] == pytest.approx(math.log(600), abs=4)
    assert found[0][0]["gradient_norm"] < 100


def placed(mesh, **changes):
    model = jax.tree.map(np.array, tiny_model(**changes))
    chosen = shardings(model, mesh)
    return jax.device_put(model, chosen), chosen


def test_known_tokens_begin_with_their_vectors_and_others_as_they_were():
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    model, chosen = placed(mesh)
    vectors = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    vectors[7] = 0
    warm = warm_start.with_token_embeddings(model, vectors)
    old = tiny_model()
    embedding, kernel = warm.token_embedder.embedding[...], warm.logits_dense.kernel[...]
    known = np.arange(64) != 7
    np.testing.assert_allclose(embedding[known], 4 * vectors[known], rtol=1e-6)
    np.testing.assert_allclose(kernel[:, known], vectors[known].T, rtol=1e-6)
    np.testing.assert_array_equal(embedding[7], old.token_embedder.embedding[7])
    np.testing.assert_array_equal(kernel[:, 7], old.logits_dense.kernel[:, 7])
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, warm, chosen)
    assert all(jax.tree.leaves(same))


def test_attention_that_begins_as_averaging_gives_back_what_it_attends_to():
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    model, chosen = placed(mesh)
    warm = warm_start.with_averaging_attention(model, seed=0)
    width = tiny_config().emb_dim
    attention = warm.decoder.layers.encoder_decoder_attention
    value = np.asarray(attention.value.kernel[...]).reshape(2, width, -1)
    out = np.asarray(attention.out.kernel[...]).reshape(2, -1, width)
    np.testing.assert_allclose(value @ out, [np.eye(width)] * 2, atol=1e-5)
    assert np.abs(value[0] - value[1]).max() > 0.1, "layers differ"
    same = jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, warm, chosen)
    assert all(jax.tree.leaves(same))


@pytest.fixture(scope="module")
def whole_titles():
    """A model whose titles are tokens in two groups of five, the last of each the rarest."""
    config = tiny_config(num_encoder_layers=1, num_decoder_layers=1)
    vectors = np.zeros((config.vocab_size, 4), np.float32)
    vectors[10:15, 0] = vectors[15:20, 1] = vectors[WORD, 0] = 1.0
    counts = np.zeros(config.vocab_size, np.int64)
    counts[list(TITLES)] = 2 * [50, 40, 30, 20, 1]
    model = warm_start.with_averaging_attention(config.init(jax.random.key(0)), seed=0)
    return warm_start.with_whole_titles(model, vectors, counts)


def log_probabilities(model, prompt, answer=()):
    """Returns those of every token after each token of an answer, [1 + n, vocab]."""
    tokens = jnp.array([prompt])
    shifted = jnp.array([[[0, *answer]]])
    mask = jnp.ones((1, 1, shifted.shape[-1], len(prompt)), bool)
    ones = jnp.ones_like(shifted)
    encoded = model.encode(tokens)
    hidden = model.decode(shifted, ones, encoded=encoded, cross_mask=mask)
    return np.asarray(jax.nn.log_softmax(model.logits(hidden)))[0, 0]


def test_titles_like_the_history_come_first_and_the_popular_ones_of_them(whole_titles):
    # Four words of wording for each title.
    (found,) = log_probabilities(whole_titles, [40, 41, 42, 43, 12, 44, 45, 46, 47, 13])
    order = np.argsort(-found)
    assert order[:5].tolist() == [10, 11, 12, 13, 14]
    assert set(order[:10].tolist()) == set(TITLES)


def test_a_word_of_the_query_counts_as_a_title_does(whole_titles):
    (found,) = log_probabilities(whole_titles, [40, 41, 42, 43, WORD])
    assert np.argsort(-found)[:5].tolist() == [10, 11, 12, 13, 14]


def test_an_answer_is_one_title_and_its_end(whole_titles):
    found = log_probabilities(whole_titles, [40, 41, 42, 43, 12, 44, 45, 46, 47, 13], [10])
    assert found[0, list(TITLES)].max() > found[0, EOS_ID] + 5
    assert found[1, EOS_ID] == pytest.approx(0, abs=1e-2)
