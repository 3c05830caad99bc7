"""Low-rank adapters and frozen parameters: what they compute, what learns, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import (
    packed,
    packed_arrays,
    ranking_batch,
    tiny_config,
    tiny_model,
    training_batch,
)

from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import (
    EVERYTHING,
    FineTuning,
    Lora,
    join,
    parameters_by_name,
    split,
    with_adapters,
)
from instructrec_jax.models.objectives import (
    NegativeLogLikelihood,
    candidate_log_likelihood,
    training_logits,
)
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.parallel.placement import place_batch
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import TrainState, abstract_state, state_shardings
from instructrec_jax.training.step import make_train_step

RATE = optimizers.constant(learning_rate=1e-2)
ADAMW, ADAFACTOR = optimizers.adamw(learning_rate=RATE), optimizers.adafactor(learning_rate=RATE)
# Kernels of every shape: into heads, out of heads, matrices, and the one over the vocabulary.
EVERY_KERNEL = FineTuning(lora=Lora(rank=3, alpha=6.0, targets=["kernel"]))
LORA = FineTuning(lora=Lora(rank=3))
FROZEN = FineTuning(frozen=["token_embedder", "^encoder.*mlp[.]", "relpos"])
TUNINGS = {"everything": EVERYTHING, "lora": LORA, "every kernel": EVERY_KERNEL, "frozen": FROZEN}
TEXT = packed(training_batch(0, rows=16), inputs=24, targets=12)
MESHES = {
    "fsdp": MeshSettings(data=1, fsdp=8),
    "2x2x2": MeshSettings(data=2, fsdp=2, tensor=2),
}


def arrays_of(model) -> dict[str, np.ndarray]:
    return {name: np.array(param[...]) for name, param in parameters_by_name(model).items()}


@functools.cache
def calm_model():
    """The tiny model in the scales that T5 starts with: rounding is not blown up by attention."""
    model = jax.tree.map(lambda leaf: leaf, tiny_model())
    for name, param in parameters_by_name(model).items():
        factor = 8**-0.5 if "query" in name else 3.0 if "token_embedder" in name else 1.0
        param[...] = param[...] * factor
    return model


def adapted(tuning=EVERY_KERNEL, *, spread=0.0):
    """A model with adapters whose B is random, not zeros, where `spread` is above 0."""
    rng = np.random.default_rng(1)
    model = with_adapters(calm_model(), tuning, seed=0)
    for name, param in parameters_by_name(model).items():
        if name.endswith("lora_b"):
            param[...] = jnp.asarray(rng.normal(0, spread, param.shape), jnp.float32)
    return model


def merged(model, scale):
    """The model with every kernel W + scale A B, put together by hand."""
    arrays = arrays_of(model)
    result = jax.tree.map(lambda leaf: leaf, calm_model())
    for name, param in parameters_by_name(result).items():
        module = name.removesuffix("kernel") + "adapter"
        if f"{module}.lora_a" not in arrays:
            continue
        a, b = arrays[f"{module}.lora_a"], arrays[f"{module}.lora_b"]
        layers = a.shape[:1] if "layers" in name else ()
        a, b = a.reshape(*layers, -1, a.shape[-1]), b.reshape(*layers, a.shape[-1], -1)
        param[...] = arrays[name] + scale * (a @ b).reshape(param.shape)
    return result


def outputs(model) -> list[np.ndarray]:
    logits, target_logits = jax.jit(training_logits)(model, TEXT)
    scores = jax.jit(candidate_log_likelihood)(model, packed_arrays(ranking_batch(0)))
    return [np.asarray(array) for array in (logits, target_logits, scores)]


def steps(tuning, optimizer, settings=None, *, objective=None, number=2, start=None):
    """Takes steps; returns (arrays before, arrays after, state, metrics of the last step)."""
    mesh = make_mesh(settings or MeshSettings(), None if settings else jax.devices()[:1])
    model = with_adapters(calm_model(), tuning, seed=0)
    state = TrainState(np.int32(0), model, optimizer.init(split(model, tuning)[0]))
    shardings = state_shardings(state, mesh)
    step = make_train_step(
        objective or NegativeLogLikelihood(label_smoothing=0.1),
        optimizer,
        mesh=mesh,
        shardings=shardings,
        seed=0,
        fine_tuning=tuning,
    )
    before, batch = arrays_of(model), place_batch(TEXT, mesh)
    start = jax.tree.map(np.array, state if start is None else start)
    state = jax.device_put(start, shardings)
    for _ in range(number):
        state, metrics = step(state, batch)
    return before, arrays_of(state.model), state, jax.tree.map(float, metrics)


def test_an_adapted_model_begins_as_its_base_bit_for_bit():
    for one, other in zip(outputs(calm_model()), outputs(adapted()), strict=True):
        np.testing.assert_array_equal(one, other)


def test_adapters_applied_equal_adapters_merged():
    model = adapted(spread=0.02)
    base, applied, together = (outputs(m) for m in (calm_model(), model, merged(model, 6.0 / 3)))
    for one, other, without in zip(applied, together, base, strict=True):
        finite = np.isfinite(without)
        assert np.abs(one - without)[finite].max() > 0.1, "the adapters do something"
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_adapters_go_where_the_pattern_says_and_their_start_depends_on_the_name_alone():
    names = {n for n in arrays_of(adapted(LORA)) if "adapter" in n}
    attentions = (
        "encoder.layers.attention",
        "decoder.layers.self_attention",
        "decoder.layers.encoder_decoder_attention",
    )
    assert names == {
        f"{attention}.{part}.adapter.lora_{letter}"
        for attention in attentions
        for part in ("query", "value")
        for letter in "ab"
    }
    few, many = arrays_of(adapted(LORA)), arrays_of(adapted())
    for name in names:
        np.testing.assert_array_equal(few[name], many[name])
    assert calm_model().logits_dense.adapter is None, "the model that was given stays as it was"


def test_what_was_split_is_joined_again():
    model = adapted()
    trained, rest = split(model, EVERY_KERNEL)
    assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(rest)) == len(jax.tree.leaves(model))
    again = join(trained, rest)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert all(
        one is other for one, other in zip(*map(jax.tree.leaves, (again, model)), strict=True)
    )


@pytest.mark.parametrize("optimizer", [ADAMW, ADAFACTOR], ids=["adamw", "adafactor"])
@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_only_what_learns_changes_and_only_it_has_optimizer_state(tuning, optimizer):
    fine_tuning = TUNINGS[tuning]
    before, after, state, _ = steps(fine_tuning, optimizer)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    if tuning == "lora":
        assert changed == {name for name in before if "adapter" in name}
    else:
        still = ("token_embedder", "encoder.layers.mlp", "relpos_bias")
        assert set(before) - changed == {name for name in before if any(s in name for s in still)}
        assert "encoder.layers.attention.query.kernel" in changed
    learnt = sum(before[name].size for name in changed)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer_state))
    copies = 2 if optimizer is ADAMW else 1  # nothing is large enough to be factored
    assert copies * learnt <= held <= copies * learnt + 4, "moments of what learns, and counts"


def test_the_gradients_of_what_stays_are_not_computed():
    def work(tuning):
        model = with_adapters(tiny_model(), tuning, seed=0)
        trained, rest = split(model, tuning)
        loss = lambda part: NegativeLogLikelihood()(join(part, rest), TEXT)[0]  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(trained).cost_analysis()["flops"]

    full, lora = work(EVERYTHING), work(LORA)
    last = work(FineTuning(frozen=["^(?!logits_dense)"]))
    assert lora < 0.85 * full
    assert last < 0.5 * full, "no backward pass at all below the last matrix"


@pytest.mark.slow
@pytest.mark.parametrize(("tuning", "mesh"), [("every kernel", "2x2x2"), ("frozen", "fsdp")])
def test_steps_on_many_devices_equal_those_on_one(tuning, mesh):
    """Each step from the same state: rounding of a first step would grow in a second."""
    plain = optimizers.Optimizer(optax.sgd(1e-2, momentum=0.9), {"name": "sgd"})
    start = None
    for _ in range(2):
        begin = {"number": 1, "start": start}
        _, one, start, single = steps(TUNINGS[tuning], plain, **begin)
        _, many, state, shared = steps(TUNINGS[tuning], plain, MESHES[mesh], **begin)
        assert single == pytest.approx(shared, rel=1e-5)
        for name in one:
            np.testing.assert_allclose(one[name], many[name], rtol=1e-5, atol=1e-5, err_msg=name)
    if tuning == "every kernel":
        adapter = state.model.encoder.layers.mlp.wi_0.adapter
        assert adapter.lora_a[...].sharding.spec[1] == "fsdp"
        momentum = state.optimizer_state[0].trace.encoder.layers.mlp.wi_0.adapter
        assert momentum.lora_a[...].sharding == adapter.lora_a[...].sharding


def test_norms_and_clipping_know_only_what_learns():
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    before, after, _, metrics = steps(LORA, clipped, number=1)
    change = [after[name] - before[name] for name in before]
    assert np.sqrt(sum(np.sum(np.square(part)) for part in change)) == pytest.approx(1e-3, rel=1e-3)
    assert metrics["gradient_norm"] > 1e-3


def test_bfloat16_computes_on_float32_adapters():
    config = tiny_config(dtype="bfloat16")
    state = abstract_state(config.init, ADAMW, make_mesh(MeshSettings()), fine_tuning=LORA)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.model)} == {"float32"}
    logits, _ = jax.eval_shape(training_logits, state.model, TEXT)
    assert logits.dtype == jnp.float32


MISTAKES = {
    "a target without kernel": (
        lambda: adapted(FineTuning(lora=Lora(targets=["atention.*quer"]))),
        r"LORA_TARGETS.* 'atention\.\*quer' is found in no name; the nearest: "
        r"encoder\.layers\.attention\.query\.kernel, ",
    ),
    "a target that is no kernel": (
        lambda: adapted(FineTuning(lora=Lora(targets=["attention", "layer_norm"]))),
        "'layer_norm' is found in no name",
    ),
    "an unknown frozen part": (
        lambda: split(tiny_model(), FineTuning(frozen=["encoder", "embeder"])),
        r"FROZEN.* 'embeder' .*nearest: token_embedder\.embedding, ",
    ),
    "everything frozen": (
        lambda: split(tiny_model(), FineTuning(frozen=["."])),
        "matches every parameter",
    ),
    "frozen beside LoRA": (lambda: FineTuning(lora=Lora(), frozen=["mlp"]), "FROZEN is .*LoRA"),
    "no expression": (lambda: Lora(targets="("), r"LORA_TARGETS: '\(' is no regular expression"),
    "not a text": (lambda: FineTuning(frozen=[3]), r"frozen is \(3,\); expected a list"),
    "no target": (lambda: Lora(targets=[]), r"targets is \[\]|targets is \(\)"),
    "rank": (lambda: Lora(rank=0), "rank is 0"),
    "half a rank": (lambda: Lora(rank=2.5), "rank is 2.5"),
    "alpha": (lambda: Lora(alpha=float("nan")), "alpha is nan"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_one_message_that_names_it(name):
    make, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        make()
