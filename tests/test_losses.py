"""Losses and objectives against slow oracles in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import EOS, packed, packed_arrays, ranking_batch, tiny_model, training_batch

from instructrec_jax.errors import UserError
from instructrec_jax.models import objectives
from instructrec_jax.models.objectives import (
    Listwise,
    NegativeLogLikelihood,
    candidate_log_likelihood,
    cross_entropy,
    listwise_cross_entropy,
    training_logits,
)

score = jax.jit(candidate_log_likelihood)
forward = jax.jit(NegativeLogLikelihood.__call__, static_argnums=0)


def log_softmax(values):
    values = np.asarray(values, np.float64)
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def slow_cross_entropy(logits, targets, weights, z_loss, label_smoothing):
    """The cross-entropy of smoothed one-hot targets less their entropy, token by token."""
    vocab, total, total_z = logits.shape[-1], 0.0, 0.0
    for place in np.ndindex(targets.shape):
        wanted = np.full(vocab, label_smoothing / (vocab - 1))
        wanted[targets[place]] = 1 - label_smoothing
        entropy = -sum(p * np.log(p) for p in wanted if p > 0)
        own = logits[place].astype(np.float64)
        z = z_loss * np.log(np.exp(own).sum()) ** 2
        total += weights[place] * (-(wanted * log_softmax(own)).sum() - entropy + z)
        total_z += weights[place] * z
    return total, total_z


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_the_slow_sum(z_loss, label_smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 11)).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 5)), rng.integers(0, 2, (2, 5)).astype(np.float32)
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    found = cross_entropy(logits, picked, weights, z_loss=z_loss, label_smoothing=label_smoothing)
    expected = slow_cross_entropy(logits, targets, weights, z_loss, label_smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_perfect_prediction_of_smoothed_targets_costs_nothing():
    wanted = np.full(7, 0.1 / 6)
    wanted[2] = 0.9
    logits = jnp.log(jnp.asarray(wanted, jnp.float32))[None]
    loss, _ = cross_entropy(logits, logits[:, 2], jnp.ones(1), z_loss=0.0, label_smoothing=0.1)
    assert abs(float(loss)) < 1e-6


def test_the_probabilities_of_all_strings_of_a_tiny_vocabulary_sum_to_one():
    """Strings that end in EOS within 3 tokens, and the beginnings of all longer ones."""
    model, vocab = tiny_model(vocab_size=5), range(1, 5)
    others = [token for token in vocab if token != EOS]
    ended = [(*rest, EOS) for n in range(3) for rest in itertools.product(others, repeat=n)]
    open_ended = list(itertools.product(others, repeat=3))
    # Token 0 fills rows and never stands in a string: what a string cannot say is a 0 at a place
    # that the tokens before it lead to.
    strings = ended + open_ended
    tokens = np.zeros((1, len(strings), 3), np.int32)
    for index, string in enumerate(strings):
        tokens[0, index, : len(string)] = string
    inputs = np.array([[2, 3, 4, 1]], np.int32)
    batch = packed_arrays({"encoder_input_tokens": inputs, "candidate_tokens": tokens})
    said = np.exp(np.asarray(score(model, batch), np.float64)).sum()
    assert said + probability_of_token_0(model, inputs, others) == pytest.approx(1.0, abs=1e-5)
    assert said > 0.3


def probability_of_token_0(model, inputs, others) -> float:
    """The probability that 0 comes first among 0, EOS and the end of three tokens."""
    begins = [b for length in range(3) for b in itertools.product(others, repeat=length)]
    shifted = np.zeros((len(begins), 3), np.int32)
    for row, begin in enumerate(begins):
        shifted[row, 1 : 1 + len(begin)] = begin
    batch = {
        "encoder_input_tokens": np.repeat(inputs, len(begins), axis=0),
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": np.full_like(shifted, 2),
    }
    found = log_softmax(jax.jit(training_logits)(model, batch)[0])
    said = [
        sum(found[row, place, token] for place, token in enumerate([*begin, 0]))
        for row, begin in enumerate(begins)
    ]
    return float(np.exp(said).sum())


def test_a_title_that_begins_another_pays_for_its_end():
    """ "Halo" against "Halo 2": without EOS the shorter one would always win."""
    inputs = np.array([[9, 8, 7, 1]], np.int32)
    halo, two = [20, 21], [22]
    tokens = np.array([[[*halo, EOS, 0], [*halo, *two, EOS], [*halo, 0, 0]]], np.int32)
    batch = packed_arrays({"encoder_input_tokens": inputs, "candidate_tokens": tokens})
    short, long, without_end = np.asarray(score(tiny_model(), batch))[0]
    assert batch["num_tokens"].tolist() == [[3, 4, 2]]
    assert short < without_end and long < without_end
    kernel = tiny_model().logits_dense.kernel
    unlikely = jax.tree.map(lambda x: x, tiny_model())
    unlikely.logits_dense.kernel[...] = kernel[...].at[:, EOS].set(0).at[:, two[0]].set(0)
    # EOS and "2" have equal logits now at every place: the longer one pays one EOS more.
    short, long, _ = np.asarray(score(unlikely, batch))[0]
    assert long < short


def hand_made_listwise(values, target_index, counted):
    losses = [
        -log_softmax(v[np.isfinite(v)])[t]
        for v, t, c in zip(values, target_index, counted, strict=True)
        if c
    ]
    return sum(losses)


def test_listwise_cross_entropy_is_a_softmax_over_the_candidates_that_are_there():
    values = np.array([[0.5, -1, 2], [1, 0, -np.inf], [-np.inf] * 3, [9, 9, 9]], np.float32)
    target, counted = np.array([2, 1, 0, -1]), np.array([True, True, False, False])
    loss, hits = listwise_cross_entropy(values, target, counted)
    assert float(loss) == pytest.approx(hand_made_listwise(values, target, counted), rel=1e-6)
    assert float(hits) == 1.0


@pytest.mark.parametrize("normaliser", ["sum", "mean"])
def test_the_listwise_objective_is_what_its_formula_says(normaliser, monkeypatch):
    rng = np.random.default_rng(0)
    values = -rng.exponential(5, (4, 3)).astype(np.float32)
    monkeypatch.setattr(objectives, "candidate_log_likelihood", lambda *_: values)
    num_tokens, target = rng.integers(1, 9, (4, 3)), np.array([2, 0, 1, 1])
    batch = {"num_tokens": num_tokens, "target_index": target}
    means = values / num_tokens
    chosen = means if normaliser == "mean" else values
    listwise = hand_made_listwise(3.0 * chosen, target, [True] * 4) / 4
    nll = -means[np.arange(4), target].mean()
    loss, metrics = Listwise(scale=3.0, nll_weight=0.2, normaliser=normaliser)(None, batch)
    assert float(loss) == pytest.approx(listwise + 0.2 * nll, rel=1e-5)
    assert float(metrics["listwise"]) == pytest.approx(listwise, rel=1e-5)
    assert float(metrics["nll_per_token"]) == pytest.approx(nll, rel=1e-5)
    assert float(metrics["hr@1"]) == (chosen.argmax(1) == target).mean()


def loss_and_gradient(objective, batch):
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, metrics), gradient = step(tiny_model(), batch)
    return [loss, *metrics.values(), *jax.tree.leaves(gradient)]


def test_padding_rows_and_candidates_change_neither_listwise_loss_nor_gradient():
    batch = ranking_batch(1)
    padded = dict(batch)
    for name, width in {
        "encoder_input_tokens": ((0, 2), (0, 3)),
        "target_index": ((0, 2),),
    }.items():
        padded[name] = np.pad(batch[name], width, constant_values=-(name == "target_index"))
    padded["candidate_tokens"] = np.pad(batch["candidate_tokens"], ((0, 2), (0, 2), (0, 2)))
    # A row whose target is unknown is real and does not count either.
    padded["encoder_input_tokens"][5] = 7
    padded["candidate_tokens"][5, 0, :2] = [7, EOS]
    names = ("encoder_input_tokens", "candidate_tokens", "target_index")
    results = [
        loss_and_gradient(Listwise(), packed_arrays({n: b[n] for n in names}, row_lengths=(32,)))
        for b in (batch, padded)
    ]
    for own, other in zip(*results, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other, own, rtol=1e-4, atol=1e-4)


def test_padding_changes_neither_negative_log_likelihood_nor_gradient():
    batch = training_batch(2)
    padded = {name: np.pad(value, ((0, 2), (0, 3))) for name, value in batch.items()}
    objective = NegativeLogLikelihood(z_loss=1e-2, label_smoothing=0.1)
    for own, other in zip(*(loss_and_gradient(objective, b) for b in (batch, padded)), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(other, own, rtol=1e-4, atol=1e-5)


def test_the_loss_is_divided_by_what_loss_normalizing_factor_says(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    monkeypatch.setattr(objectives, "training_logits", lambda *_: (logits, logits[..., 0]))
    batch = {
        "decoder_loss_weights": np.array([[1, 1, 1], [1, 1, 0]]),
        "decoder_target_tokens": np.array([[4, 5, 1], [6, 1, 0]]),
    }

    def loss(factor):
        return float(NegativeLogLikelihood(loss_normalizing_factor=factor)(None, batch)[0])

    assert loss("NUM_REAL_TARGET_TOKENS") == pytest.approx(loss(None) / 5, rel=1e-6)
    assert loss("NUM_TOTAL_TARGET_TOKENS") == pytest.approx(loss(None) / 6, rel=1e-6)
    assert loss("num_real_target_tokens") == loss("NUM_REAL_TARGET_TOKENS"), "as T5X takes it"
    assert loss(8) == pytest.approx(loss(None) / 8, rel=1e-6)


def test_the_nll_that_is_reported_is_the_plain_one_whatever_is_smoothed(monkeypatch):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    monkeypatch.setattr(objectives, "training_logits", lambda *_: (logits, logits[..., 0]))
    weights = np.array([[1, 1, 1], [1, 1, 0]])
    batch = {"decoder_loss_weights": weights, "decoder_target_tokens": weights}
    plain, smoothed = (
        NegativeLogLikelihood(z_loss=0.0, label_smoothing=mass)(None, batch) for mass in (0.0, 0.1)
    )
    assert float(plain[0]) == pytest.approx(float(plain[1]["nll_per_token"]), rel=1e-6)
    assert smoothed[1]["nll_per_token"] == plain[1]["nll_per_token"]
    assert float(smoothed[0]) != pytest.approx(float(plain[0]), rel=1e-3)


def test_the_average_per_sequence_weighs_examples_alike_packed_or_not():
    batch = training_batch(5, rows=6)
    batch["decoder_loss_weights"][1, 0] = 0  # a token that does not count
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(6)]
    per_row = NegativeLogLikelihood(z_loss=1e-2)
    own = [float(forward(per_row, tiny_model(), row)[0]) for row in rows]
    objective = NegativeLogLikelihood(z_loss=1e-2, loss_normalizing_factor="AVERAGE_PER_SEQUENCE")
    together = packed(batch, inputs=24, targets=13)
    (loss, metrics), (packed_loss, packed_metrics) = (
        forward(objective, tiny_model(), b) for b in (batch, together)
    )
    assert float(loss) == pytest.approx(np.mean(own), rel=1e-5)
    assert float(packed_loss) == pytest.approx(np.mean(own), rel=1e-5)
    per_token = forward(per_row, tiny_model(), batch)[1]["nll_per_token"]
    assert float(metrics["nll_per_token"]) == pytest.approx(float(per_token), rel=1e-6)
    assert float(packed_metrics["nll_per_token"]) == pytest.approx(float(per_token), rel=1e-5)


def test_a_sequence_without_a_counted_token_has_no_say():
    batch = training_batch(5, rows=4)
    objective = NegativeLogLikelihood(loss_normalizing_factor="AVERAGE_PER_SEQUENCE")
    three, _ = forward(objective, tiny_model(), {n: value[:3] for n, value in batch.items()})
    batch["decoder_loss_weights"][3] = 0
    four, _ = forward(objective, tiny_model(), batch)
    assert float(four) == pytest.approx(float(three), rel=1e-5)


@pytest.mark.parametrize("factor", ["AVERAGE", 0.0, -1])
def test_an_impossible_loss_normalizing_factor_is_refused_before_anything_runs(factor):
    with pytest.raises(UserError, match="loss_normalizing_factor is"):
        NegativeLogLikelihood(loss_normalizing_factor=factor)


@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_an_impossible_label_smoothing_is_refused(value):
    with pytest.raises(UserError, match="label_smoothing is"):
        NegativeLogLikelihood(label_smoothing=value)


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(UserError, match="normaliser is 'chars'; expected one of 'sum', 'mean'"):
        Listwise(normaliser="chars")


def assert_parts_add_up(objective, batch, take):
    """Loss and metrics of the parts, with the totals of the whole, add up to those of the whole."""
    whole = [*jax.tree.leaves(objective(None, take(batch, slice(None))))]
    parts = [
        jax.tree.leaves(objective(None, take(batch, part), None, objective.totals(batch)))
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    for own, *others in zip(whole, *parts, strict=True):
        assert float(own) == pytest.approx(sum(map(float, others)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("factor", [None, 8.0, *objectives.NORMALIZING_FACTORS])
def test_losses_of_microbatches_add_up_whatever_they_are_divided_by(factor, monkeypatch):
    rng = np.random.default_rng(0)
    batch = {
        **packed(training_batch(0, rows=8), inputs=24, targets=12),
        "logits": rng.normal(size=(4, 12, 5)).astype(np.float32),
    }
    logits = lambda _, batch, *__: (batch["logits"], batch["logits"][..., 0])  # noqa: E731
    monkeypatch.setattr(objectives, "training_logits", logits)
    objective = NegativeLogLikelihood(
        z_loss=1e-2, label_smoothing=0.1, loss_normalizing_factor=factor
    )
    assert_parts_add_up(objective, batch, lambda b, part: {k: v[part] for k, v in b.items()})


def test_listwise_losses_of_microbatches_add_up(monkeypatch):
    rng = np.random.default_rng(0)
    batch = {
        "num_tokens": rng.integers(1, 9, (5, 3)),
        "target_index": np.array([2, -1, 1, 1, 0]),
        "values": -rng.exponential(5, (5, 3)).astype(np.float32),
    }
    monkeypatch.setattr(
        objectives, "candidate_log_likelihood", lambda _, batch, *__: batch["values"]
    )
    assert_parts_add_up(Listwise(), batch, lambda b, part: {k: v[part] for k, v in b.items()})
