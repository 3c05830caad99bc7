"""T5: its sizes, its masks and biases, and what must not change its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import (
    packed,
    packed_arrays,
    ranking_batch,
    tiny_config,
    tiny_model,
    training_batch,
)

from instructrec_jax.errors import UserError
from instructrec_jax.models import attention, t5
from instructrec_jax.models.objectives import (
    NegativeLogLikelihood,
    candidate_log_likelihood,
    training_logits,
)
from instructrec_jax.parallel.mesh import DEFAULT_RULES

score_packed = jax.jit(candidate_log_likelihood)
objective_logits, training_logits = training_logits, jax.jit(training_logits)


def score(model, batch, row_lengths=(32,)):
    return np.asarray(score_packed(model, packed_arrays(batch, row_lengths=row_lengths)))


def logits_of(model, batch, key=None):
    return np.asarray(training_logits(model, batch, key)[0])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def bucket_by_the_formula(distance, num_buckets, max_distance, bidirectional):
    """The bucket in whole numbers: no logarithm that could be rounded to the other side."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return offset + distance
    far = num_buckets - exact
    # The bucket exact + k begins where distance >= exact * (max_distance / exact) ** (k / far).
    k = max(k for k in range(far) if distance**far >= exact ** (far - k) * max_distance**k)
    return offset + exact + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (16, 64)])
def test_distances_fall_into_the_buckets_of_the_formula(num_buckets, max_distance, bidirectional):
    settings = {
        "num_buckets": num_buckets,
        "max_distance": max_distance,
        "bidirectional": bidirectional,
    }
    distances = np.arange(-700, 701)
    expected = [bucket_by_the_formula(int(d), **settings) for d in distances]
    for function in (t5.relative_buckets, jax.jit(t5.relative_buckets, static_argnames=settings)):
        np.testing.assert_array_equal(function(distances, **settings), expected)


def test_a_later_target_token_never_changes_an_earlier_logit():
    batch = training_batch(0, targets=6)
    batch["decoder_target_tokens"][:] = 5
    base = np.asarray(logits_of(tiny_model(), batch))
    for place in range(6):
        changed = batch["decoder_input_tokens"].copy()
        changed[:, place] = 9
        logits = np.asarray(logits_of(tiny_model(), batch | {"decoder_input_tokens": changed}))
        np.testing.assert_array_equal(logits[:, :place], base[:, :place])
        assert np.abs(logits[:, place] - base[:, place]).max() > 1e-3


def test_padding_and_the_size_of_the_batch_change_no_log_likelihood():
    batch = ranking_batch(1)
    base = score(tiny_model(), batch)
    assert np.isfinite(base).all()
    inputs, targets = batch["encoder_input_tokens"], batch["candidate_tokens"]

    def scored(inputs, targets, **kwargs):
        batch = {"encoder_input_tokens": inputs, "candidate_tokens": targets}
        return score(tiny_model(), batch, **kwargs)

    close(scored(np.pad(inputs, ((0, 0), (0, 9))), targets), base)
    close(scored(inputs, np.pad(targets, ((0, 0), (0, 0), (0, 5)))), base)
    close(scored(inputs, targets, row_lengths=(40,)), base)
    more = scored(np.pad(inputs, ((0, 3), (0, 0))), np.pad(targets, ((0, 3), (0, 2), (0, 0))))
    close(more[:4, :3], base)
    assert np.isneginf(more[4:]).all() and np.isneginf(more[:, 3:]).all()


def test_candidates_do_not_see_each_other():
    batch = ranking_batch(2)
    base = score(tiny_model(), batch)
    order = [2, 0, 1]
    moved = batch["candidate_tokens"][:, order]
    close(score(tiny_model(), batch | {"candidate_tokens": moved}), base[:, order])
    other = batch["candidate_tokens"].copy()
    other[:, 0] = np.where(other[:, 0] > 1, 7, other[:, 0])
    changed = score(tiny_model(), batch | {"candidate_tokens": other})
    close(changed[:, 1:], base[:, 1:])
    assert np.abs(changed[:, 0] - base[:, 0]).max() > 1e-3


def test_examples_packed_into_one_row_get_the_logits_they_have_alone():
    batch = training_batch(3, rows=4)
    together = packed(batch, inputs=24, targets=12)
    alone = np.asarray(logits_of(tiny_model(), batch))
    logits = np.asarray(logits_of(tiny_model(), together))
    for index in range(4):
        row, segment = divmod(index, 2)
        place = together["decoder_segment_ids"][row] == segment + 1
        close(logits[row, place], alone[index, : place.sum()])


def test_a_packed_row_without_segments_would_be_seen():
    batch = training_batch(3, rows=2)
    together = packed(batch, inputs=24, targets=12)
    one = dict(together, encoder_segment_ids=(together["encoder_input_tokens"] > 0).astype(int))
    one["decoder_segment_ids"] = (together["decoder_target_tokens"] > 0).astype(int)
    difference = logits_of(tiny_model(), one) - logits_of(tiny_model(), together)
    assert np.abs(difference).max() > 1e-2


def test_bfloat16_keeps_float32_logits_and_stays_close():
    batch = training_batch(4)
    narrow = tiny_model(dtype="bfloat16")
    exact, rounded = logits_of(tiny_model(), batch), logits_of(narrow, batch)
    assert rounded.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(narrow))
    assert not np.array_equal(rounded, exact), "nothing ran in bfloat16"
    assert np.abs(rounded - rounded.astype(jnp.bfloat16).astype(np.float32)).max() > 1e-3
    assert np.abs(rounded - exact).mean() < 0.05 < np.abs(exact).mean()
    rows = ranking_batch(4, rows=32, candidates=8)
    scores = [score(model, rows, row_lengths=(64,)) for model in (tiny_model(), narrow)]
    ranks = [np.argsort(np.argsort(values)) for values in scores]
    assert np.abs(ranks[0] - ranks[1]).mean() < 0.2


@pytest.mark.parametrize("policy", [True, "half"])
def test_an_unknown_remat_policy_is_refused_with_those_there_are(policy):
    message = f"remat_policy is {policy!r}; expected .*'none', 'dots', 'minimal', 'full'"
    with pytest.raises(UserError, match=message):
        tiny_config(remat_policy=policy)


@pytest.mark.parametrize("dtype", ["float16", "int8", "float64"])
def test_types_that_t5_overflows_in_are_refused(dtype):
    with pytest.raises(UserError, match=f"got '{dtype}'"):
        tiny_config(dtype=dtype)


def loss_and_gradient(**changes):
    step = jax.jit(jax.value_and_grad(NegativeLogLikelihood(), has_aux=True))
    model = tiny_model(dropout_rate=0.3, **changes)
    (loss, _), gradient = step(model, training_batch(5), jax.random.key(1))
    return loss, gradient


@pytest.fixture(scope="module")
def stored():
    return loss_and_gradient()


@pytest.mark.parametrize("policy", ["dots", "minimal", "full"])
def test_recomputing_activations_changes_neither_loss_nor_gradient(stored, policy):
    recomputed = loss_and_gradient(remat_policy=policy)
    for own, other in zip(jax.tree.leaves(recomputed), jax.tree.leaves(stored), strict=True):
        close(own, other)


def test_attention_in_blocks_of_keys_changes_neither_loss_nor_gradient(stored):
    """With dropout: the same weights are dropped."""
    for own, other in zip(
        jax.tree.leaves(loss_and_gradient(key_block=5)), jax.tree.leaves(stored), strict=True
    ):
        close(own, other)


def arrays_of(jaxpr):
    """Yields every array of a jaxpr and of those inside it."""
    is_jaxpr = lambda value: hasattr(value, "jaxpr") or hasattr(value, "eqns")  # noqa: E731
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from arrays_of(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(("key_block", "is_held"), [(None, True), (5, False)])
def test_attention_in_blocks_never_holds_the_weights_of_all_keys(key_block, is_held):
    batch, model = training_batch(6, inputs=14), tiny_model(key_block=key_block)
    loss = lambda model: NegativeLogLikelihood()(model, batch)[0]  # noqa: E731
    shapes = {
        array.shape
        for array in arrays_of(jax.make_jaxpr(jax.grad(loss))(model).jaxpr)
        if array.dtype == jnp.float32
    }
    rows, heads = 4, 2
    assert ((rows, heads, 14, 14) in shapes) == is_held
    assert ((rows, heads, 6, 14) in shapes) == is_held


def test_every_parameter_gets_a_gradient(stored):
    for path, leaf in jax.tree_util.tree_leaves_with_path(stored[1]):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_dropout_is_a_function_of_its_key_and_absent_without_one():
    batch, model = training_batch(6), tiny_model(dropout_rate=0.3)
    keys = [jax.random.key(1), jax.random.key(1), jax.random.key(2)]
    first, again, other = (logits_of(model, batch, key) for key in keys)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(logits_of(model, batch), logits_of(tiny_model(), batch))
    assert np.abs(first - logits_of(model, batch)).max() > 1e-3


def test_the_last_dropout_of_the_decoder_is_one_mask_for_all_tokens_of_a_row_as_in_t5x(
    monkeypatch,
):
    """T5X broadcasts it over the length, unlike the encoder's last."""
    masked = []
    call = t5.Dropout.__call__

    def noting(self, x, *, broadcast_axis=None):
        masked.append((x.ndim, broadcast_axis))
        return call(self, x, broadcast_axis=broadcast_axis)

    monkeypatch.setattr(t5.Dropout, "__call__", noting)
    batch, model = training_batch(6), tiny_model(dropout_rate=0.3)
    jax.eval_shape(lambda: objective_logits(model, batch, jax.random.key(0)))
    assert masked[-1] == (3, -2)
    assert masked.count((3, None)) == 1, "the encoder's last"


def products_of(jaxpr):
    """Yields type and precision of every product in a jaxpr and in those inside it."""
    is_jaxpr = lambda value: hasattr(value, "jaxpr") or hasattr(value, "eqns")  # noqa: E731
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.invars[0].aval.dtype.name, equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from products_of(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_device_rounds_the_factors_of_a_float32_product(dtype):
    batch, model = training_batch(6), tiny_model(dtype=dtype)
    objective = NegativeLogLikelihood(loss_normalizing_factor="AVERAGE_PER_SEQUENCE")
    jaxpr = jax.make_jaxpr(jax.grad(lambda model: objective(model, batch)[0]))(model).jaxpr
    products = list(products_of(jaxpr))
    assert len(products) > 30
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {precision for kind, precision in products if kind == "float32"} == {highest}
    assert ("bfloat16" in {kind for kind, _ in products}) == (dtype == "bfloat16")


def test_dropout_keeps_the_mean():
    x = jnp.ones((50, 400))
    dropped = t5.Dropout(0.25, jax.random.key(0))(x)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(dropped.mean()) - 1) < 0.02
    shared = t5.Dropout(0.25, jax.random.key(0))(x, broadcast_axis=0)
    assert (shared == shared[0]).all()


def test_the_gradient_of_the_position_bias_is_that_of_plain_addition():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=(2, 3, 2, 4, 5)).astype(np.float32)
    bias = rng.normal(size=(2, 4, 5)).astype(np.float32)
    mask = rng.random((3, 1, 4, 5)) < 0.5
    mask[1, 0, 2] = False
    weights[1, :, 2] = 0  # nothing depends on a query that sees nothing

    def gradient(add):
        attend = lambda bias: jax.nn.softmax(logits + add(mask, bias), axis=-1)  # noqa: E731
        return jax.grad(lambda bias: jnp.sum(attend(bias) * weights))(bias)

    expected = gradient(lambda mask, bias: jnp.where(mask, bias, attention.MASKED))
    close(gradient(attention.add_position_bias), expected)
    assert np.abs(expected).max() > 0.01


def test_every_parameter_names_axes_that_the_mesh_knows():
    shapes = jax.eval_shape(lambda: t5.T5(tiny_config(), jax.random.key(0)))
    params = jax.tree.leaves(shapes, is_leaf=lambda leaf: isinstance(leaf, nnx.Param))
    assert len(params) > 20
    for param in params:
        axes = param.get_metadata()["logical_axes"]
        assert set(axes) <= DEFAULT_RULES.keys()
        assert len(param.shape) - len(axes) in (0, 1), "one more where layers are stacked"
