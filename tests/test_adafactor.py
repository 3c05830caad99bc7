"""Adafactor against parameters and second moments that T5X computed, and by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_toys import disassemble
from jax.sharding import PartitionSpec
from t5x_golden import FOLDER, golden_model, named, packed_batch, read_legacy
from tiny_model import tiny_config, tiny_model

from instructrec_jax.checkpoints import parameters
from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import NegativeLogLikelihood
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.training import adafactor, optimizers
from instructrec_jax.training.state import abstract_state

RATE = optimizers.constant(learning_rate=1e-3)
SUM_OF_LOSSES = NegativeLogLikelihood(loss_normalizing_factor=None)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def start():
    return golden_model()


@functools.cache
def gradient_of():
    return jax.jit(jax.grad(lambda m, batch: SUM_OF_LOSSES(m, batch)[0]))


def three_steps(optimizer, model, state):
    update, batch = jax.jit(optimizer.update), packed_batch()
    for _ in range(3):
        changes, state = update(gradient_of()(model, batch), state, model)
        model = optax.apply_updates(model, changes)
    return model, state


def assert_equals_golden(start, model, golden):
    """Parameters to 1e-5, and what the steps changed, which is far smaller, to 1e-4 of its norm."""
    before, after = (dict(disassemble(m)) for m in (start, model))
    assert golden
    for key, expected in golden.items():
        name, part = named(key)
        np.testing.assert_allclose(after[name][part], expected, **TOLERANCE, err_msg=name)
        moved = np.linalg.norm(expected - before[name][part])
        assert moved > 1e-4, name
        assert np.linalg.norm(after[name][part] - expected) <= 1e-4 * moved, name


def test_a_fresh_state_gives_the_parameters_of_t5x(start):
    optimizer = optimizers.adafactor(learning_rate=RATE)
    model, _ = three_steps(optimizer, start, optimizer.init(start))
    assert_equals_golden(start, model, dict(np.load(FOLDER / "adafactor.npz")))
    sums = json.loads((FOLDER / "adafactor_sums.json").read_text())
    after = {name.replace(".", "/"): array for name, array in disassemble(model)}
    assert after.keys() == sums.keys()
    for name, whole in sums.items():
        assert list(after[name].shape) == whole["shape"]
        wide = after[name].astype(np.float64)
        assert np.sum(wide) == pytest.approx(whole["sum"], rel=1e-5, abs=1e-5), name
        assert np.linalg.norm(wide) == pytest.approx(whole["l2"], rel=1e-5), name


def test_a_resumed_state_gives_the_parameters_of_t5x(start):
    optimizer = optimizers.adafactor(learning_rate=RATE)
    fresh, v = optimizer.init(start), {}
    for parameter in parameters.parameters(start):
        stored = [read_legacy(f"state.param_states.{name}.v") for name in parameter.neutral]
        zeros = fresh.v[parameter.native]
        v[parameter.native] = zeros.replace(jnp.asarray(np.stack(stored).reshape(zeros.shape)))
    resumed = fresh._replace(step=jnp.int32(20), v=v)
    model, state = three_steps(optimizer, start, resumed)
    golden = dict(np.load(FOLDER / "adafactor_resumed_subset.npz"))
    assert int(state.step) == golden.pop("step")
    assert_equals_golden(start, model, golden)


def test_factored_moments_are_those_of_t5x(start):
    optimizer = optimizers.adafactor(learning_rate=RATE, min_dim_size_to_factor=16)
    model, state = three_steps(optimizer, start, optimizer.init(start))
    golden = dict(np.load(FOLDER / "adafactor_min16_subset.npz"))
    moments = {key: golden.pop(key) for key in list(golden) if key.startswith("state/")}
    assert_equals_golden(start, model, golden)
    by_neutral_name = {
        name: (parameter, layer)
        for parameter in parameters.parameters(start)
        for layer, name in enumerate(parameter.neutral)
    }
    for key, expected in moments.items():
        neutral, _, kind = key.removeprefix("state/").rpartition("/")
        parameter, layer = by_neutral_name[neutral.replace("/", ".")]
        found = getattr(state, kind).get(parameter.native)
        if expected.shape == (1,):  # T5X's sign of "not factored"
            assert found is None and parameter.native in state.v
            continue
        found = found[layer] if parameter.is_stacked else found[...]
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=key)


def test_the_first_step_is_the_rate_times_the_scale_of_each_layer():
    optimizer = optimizers.adafactor(learning_rate=optimizers.constant(learning_rate=0.1))
    model = tiny_model()
    scales = jnp.arange(1.0, 3.0)
    norm = model.encoder.layers.pre_mlp_layer_norm.scale
    model = jax.tree.map(lambda leaf: leaf, model)
    model.encoder.layers.pre_mlp_layer_norm.scale[...] = scales[:, None] * jnp.ones(norm.shape)
    gradient = jax.tree.map(lambda leaf: -0.3 * jnp.ones_like(leaf), model)
    changes, _ = jax.jit(optimizer.update)(gradient, optimizer.init(model), model)
    found = changes.encoder.layers.pre_mlp_layer_norm.scale[...]
    np.testing.assert_allclose(found, 0.1 * scales[:, None] * np.ones(norm.shape), rtol=1e-6)


def one_update(parameter, gradient, step=0, **settings):
    rate = optimizers.constant(learning_rate=0.5)
    optimizer = optimizers.adafactor(learning_rate=rate, **settings)
    state = optimizer.init(parameter)._replace(step=jnp.int32(step))
    return np.asarray(optimizer.update(gradient, state, parameter)[0])


def test_an_update_by_hand():
    parameter, gradient = jnp.array([3.0, -4.0, 0.0, 0.0]), jnp.array([2.0, -8.0, 0.0, 0.0])
    signs, scale = np.array([1.0, -1.0, 0.0, 0.0]), 2.5
    # Step 20 of a state of zeros: moments are a share 21^-0.8 of the squares.
    large = 21**0.4 * signs
    clipped = large / np.sqrt(np.mean(large**2))
    cases = [
        ({}, 0, -0.5 * scale * signs),
        ({"multiply_by_parameter_scale": False}, 0, -0.5 * signs),
        ({"weight_decay_rate": 0.1}, 0, -0.5 * scale * signs - 0.1 * np.asarray(parameter)),
        ({"clipping_threshold": None}, 20, -0.5 * scale * large),
        ({}, 20, -0.5 * scale * clipped),
        ({"clipping_threshold": 0.5}, 20, -0.25 * scale * clipped),
        ({"clipping_threshold": None, "step_offset": 20}, 20, -0.5 * scale * signs),
        ({"clipping_threshold": None, "step_offset": 25}, 20, -0.5 * scale * signs),
        ({"clipping_threshold": None, "decay_rate": 0.5}, 20, -0.5 * scale * 21**0.25 * signs),
    ]
    for settings, step, expected in cases:
        found = one_update(parameter, gradient, step=step, **settings)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{settings} {step}")


def test_a_parameter_of_nothing_still_moves():
    found = one_update(jnp.zeros(3), jnp.array([1.0, 2.0, -3.0]))
    np.testing.assert_allclose(found, [-5e-4, -5e-4, 5e-4], rtol=1e-5)


def test_the_gradient_is_clipped_by_its_norm_before_it_is_squared():
    rate = optimizers.constant(learning_rate=0.1)
    gradient = jnp.array([3.0, 4.0])
    optimizer = optimizers.adafactor(learning_rate=rate, clip_norm=1.0)
    _, state = optimizer.update(gradient, optimizer.init(gradient), gradient)
    (v,) = adafactor.find_state(state).v.values()
    np.testing.assert_allclose(v[...], [0.36, 0.64], rtol=1e-5)


def test_its_state_is_found_and_replaced_inside_another():
    rate = optimizers.constant(learning_rate=0.1)
    inside = optimizers.adafactor(learning_rate=rate, clip_norm=1.0).init(jnp.ones(2))
    found = adafactor.find_state(inside)
    replaced = adafactor.replace_state(inside, found._replace(step=jnp.int32(7)))
    assert int(adafactor.find_state(replaced).step) == 7
    assert jax.tree.structure(replaced) == jax.tree.structure(inside)
    assert adafactor.find_state(optax.adam(0.1).init(jnp.ones(2))) is None


def test_parameters_that_are_masked_out_have_no_moments():
    model, rate = tiny_model(), optimizers.constant(learning_rate=0.1)
    chosen = jax.tree_util.tree_map_with_path(lambda path, _: "'mlp'" in str(path), model)
    optimizer = optax.masked(optimizers.adafactor(learning_rate=rate), chosen)
    state = optimizer.init(model)
    names = set(adafactor.find_state(state).v)
    assert names and all(".mlp." in name for name in names)
    changes, _ = optimizer.update(model, state, model)
    assert jax.tree.structure(changes) == jax.tree.structure(model)


def test_moments_are_sharded_as_their_parameters_without_an_axis():
    config = tiny_config(emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, vocab_size=256)
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    optimizer = optimizers.adafactor(learning_rate=RATE)
    state = abstract_state(config.init, optimizer, mesh).optimizer_state
    attention, mlp = "encoder.layers.attention", "decoder.layers.mlp"
    expected = {
        ("v_row", f"{mlp}.wi_0.kernel"): ((2, 128), (None, "fsdp")),
        ("v_col", f"{mlp}.wi_0.kernel"): ((2, 256), (None, "tensor")),
        ("v_row", f"{attention}.query.kernel"): ((2, 128), (None, "fsdp")),
        ("v_col", f"{attention}.query.kernel"): ((2, 128), (None, "tensor")),
        ("v_row", f"{attention}.out.kernel"): ((2, 128), (None, "tensor")),
        ("v_col", f"{attention}.out.kernel"): ((2, 128), (None, "fsdp")),
        ("v_row", "token_embedder.embedding"): ((128,), ("fsdp",)),
        ("v_col", "token_embedder.embedding"): ((256,), ("tensor",)),
        ("v", "encoder.relpos_bias.rel_embedding"): ((4, 32), ("tensor", None)),
        ("v", "decoder.layers.pre_mlp_layer_norm.scale"): ((2, 128), (None, "fsdp")),
    }
    for (kind, name), (shape, spec) in expected.items():
        (leaf,) = jax.tree.leaves(getattr(state, kind)[name])
        assert (leaf.shape, leaf.sharding.spec) == (shape, PartitionSpec(*spec)), (kind, name)
    assert state.v.keys().isdisjoint(state.v_row) and state.v_row.keys() == state.v_col.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [("decay_rate", 0.0), ("clipping_threshold", -1.0), ("min_dim_size_to_factor", 0)],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        optimizers.adafactor(learning_rate=RATE, **{name: value})
