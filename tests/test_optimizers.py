"""Schedules, optimizers, and the start of models without pretraining."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.training import optimizers


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (optimizers.constant(learning_rate=0.5), {0: 0.5, 999: 0.5}),
        (
            optimizers.constant(learning_rate=0.5, warmup_steps=10),
            {0: 0, 5: 0.25, 10: 0.5, 99: 0.5},
        ),
        (optimizers.linear_decay(learning_rate=1.0, total_steps=100), {0: 1, 50: 0.5, 100: 0}),
        (
            optimizers.linear_decay(learning_rate=1.0, total_steps=100, warmup_steps=20),
            {0: 0, 10: 0.5, 20: 1, 60: 0.5, 100: 0, 200: 0},
        ),
        (optimizers.rsqrt_decay(), {0: 0.01, 10_000: 0.01, 40_000: 0.005}),
        (
            optimizers.rsqrt_decay(learning_rate=2.0, warmup_steps=100, is_ramped=True),
            {0: 0, 50: 0.1, 100: 0.2, 400: 0.1},
        ),
    ],
)
def test_the_rate_follows_its_schedule(schedule, values):
    for step, value in values.items():
        assert float(schedule(jnp.int32(step))) == pytest.approx(value, abs=1e-6)


T5X_SCHEDULES = {
    "constant": (optimizers.constant(learning_rate=0.01), lambda step: 0.01),
    "constant * linear_warmup": (
        optimizers.constant(learning_rate=0.01, warmup_steps=300),
        lambda step: 0.01 * min(1.0, step / 300),
    ),
    "constant * rsqrt_decay": (
        optimizers.rsqrt_decay(learning_rate=0.3, warmup_steps=300),
        lambda step: 0.3 / max(step, 300) ** 0.5,
    ),
    "constant * linear_warmup * rsqrt_decay": (
        optimizers.rsqrt_decay(learning_rate=0.3, warmup_steps=300, is_ramped=True),
        lambda step: 0.3 * min(1.0, step / 300) / max(step, 300) ** 0.5,
    ),
    "linear_decay, decay_factor 1 / 700": (
        optimizers.linear_decay(learning_rate=0.01, warmup_steps=300, total_steps=1000),
        lambda step: max(0.01 * min(step / 300, 1.0 + (300 - step) / 700), 1e-8),
    ),
}


@pytest.mark.parametrize("factors", T5X_SCHEDULES)
def test_schedules_are_those_of_t5x(factors):
    """T5X's formulas, written out (create_learning_rate_scheduler)."""
    schedule, formula = T5X_SCHEDULES[factors]
    for step in (0, 1, 150, 299, 300, 301, 650, 999, 1000, 5000):
        found = float(schedule(jnp.int32(step)))
        assert found == pytest.approx(formula(step), rel=1e-5, abs=1.1e-8), step


def test_an_optimizer_knows_its_settings_as_json():
    rate = optimizers.linear_decay(learning_rate=0.1, total_steps=10)
    settings = optimizers.adamw(learning_rate=rate, weight_decay=0.5).settings
    assert settings["name"] == "adamw" and settings["weight_decay"] == 0.5
    assert settings["learning_rate"] == {
        "name": "linear_decay",
        "learning_rate": 0.1,
        "total_steps": 10,
        "warmup_steps": 0,
    }
    assert json.loads(json.dumps(settings)) == settings
    adafactor = optimizers.adafactor(learning_rate=rate, step_offset=5)
    assert adafactor.settings["step_offset"] == 5 and adafactor.settings["decay_rate"] == 0.8
    # One from elsewhere, which gin may name too, has none; the kind says nothing wrong of it.
    assert optimizers.describe(optax.sgd(0.1)) == "GradientTransformationExtraArgs"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.constant(learning_rate=-1.0), "learning_rate is -1.0"),
        (lambda: optimizers.rsqrt_decay(warmup_steps=0), "warmup_steps is 0"),
        (
            lambda: optimizers.adamw(
                learning_rate=optimizers.constant(learning_rate=0.1), clip_norm=0.0
            ),
            "clip_norm is 0.0",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def first_update(optimizer, parameter, gradient):
    state = optimizer.init(parameter)
    return np.asarray(optimizer.update(gradient, state, parameter)[0])


def test_the_first_step_of_adamw_has_the_size_of_the_rate_and_decays_weights():
    rate = optimizers.constant(learning_rate=0.1)
    parameter, gradient = jnp.array([1.0, -2.0]), jnp.array([0.3, -0.001])
    plain = first_update(optimizers.adamw(learning_rate=rate), parameter, gradient)
    np.testing.assert_allclose(plain, [-0.1, 0.1], rtol=1e-4)
    decayed = optimizers.adamw(learning_rate=rate, weight_decay=0.5)
    np.testing.assert_allclose(
        first_update(decayed, parameter, gradient) - plain, [-0.05, 0.1], rtol=1e-4
    )


def test_adamw_clips_the_gradient_unless_told_not_to():
    rate = optimizers.constant(learning_rate=0.1)
    gradient = jnp.array([3.0, 4.0])
    moments = {}
    for clip in (1.0, None):
        optimizer = optimizers.adamw(learning_rate=rate, clip_norm=clip)
        _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
        moments[clip] = np.asarray(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(moments[None], [0.3, 0.4], rtol=1e-5)
    np.testing.assert_allclose(moments[1.0], [0.06, 0.08], rtol=1e-5)


def test_adafactor_keeps_rows_and_columns_of_large_matrices_only():
    optimizer = optimizers.adafactor(learning_rate=optimizers.constant(learning_rate=0.1))
    large, small = jnp.ones((128, 256)), jnp.ones((4, 4))
    kept = [sum(a.size for a in jax.tree.leaves(optimizer.init(p))) for p in (large, small)]
    assert kept[0] < 128 + 256 + 10 and kept[1] >= 16
