"""A training step gives the same numbers however its arrays are sharded."""

import collections
import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_model import (
    packed,
    packed_arrays,
    ranking_batch,
    requests_of,
    tiny_config,
    tiny_model,
    training_batch,
)

from instructrec_jax.checkpoints import store
from instructrec_jax.models.objectives import Listwise, NegativeLogLikelihood
from instructrec_jax.parallel.compiled import collectives
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.parallel.placement import place_batch
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import (
    TrainState,
    initial_state,
    state_shardings,
)
from instructrec_jax.training.step import lower_train_step, make_train_step

RATE = optimizers.constant(learning_rate=1e-3)
MESHES = {
    "8x1x1": MeshSettings(data=8),
    "1x8x1": MeshSettings(data=1, fsdp=8),
    "1x1x8": MeshSettings(data=1, tensor=8),
    "2x2x2": MeshSettings(data=2, fsdp=2, tensor=2),
}
# No two sizes are equal, so that a shape in a compiled program says what it is of.
SIZES = {"vocab_size": 80, "emb_dim": 16, "num_heads": 8, "head_dim": 3, "mlp_dim": 40}
TEXT = packed(training_batch(0, rows=32), inputs=24, targets=12)
ACCUMULATED = {  # with another remat policy on each mesh
    "8x1x1": "dots",
    "1x8x1": "minimal",
    "1x1x8": "full",
    "2x2x2": "full",
}


@dataclasses.dataclass(frozen=True)
class Steps:
    """Five steps: their losses, the last parameters, and the text of the compiled program."""

    losses: list[float]
    model: dict[str, np.ndarray]
    text: str


@functools.cache
def five_steps(mesh: str = "", remat_policy: str = "none", num_microbatches: int = 1, rules=()):
    """Returns five steps of plain gradient descent on a mesh, or on one device."""
    settings = dataclasses.replace(MESHES.get(mesh, MeshSettings()), logical_axis_rules=dict(rules))
    devices = make_mesh(settings, None if mesh else jax.devices()[:1])
    model, optimizer = tiny_model(**SIZES, remat_policy=remat_policy), optax.sgd(0.02)
    state = TrainState(np.int32(0), model, optimizer.init(model))
    shardings = state_shardings(state, devices)
    step = make_train_step(
        NegativeLogLikelihood(label_smoothing=0.1),
        optimizer,
        mesh=devices,
        shardings=shardings,
        seed=3,
        num_microbatches=num_microbatches,
    )
    # Copies: a step gives the buffers of its state away.
    state, batch = (
        jax.device_put(jax.tree.map(np.array, state), shardings),
        place_batch(TEXT, devices),
    )
    compiled, losses = step.lower(state, batch).compile(), []
    for _ in range(5):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    names = store.named_arrays(state.model)
    return Steps(losses, {k: np.asarray(v) for k, v in names.items()}, compiled.as_text())


def is_param(leaf) -> bool:
    return isinstance(leaf, nnx.Param)


def stepped(mesh: str, is_accumulated: bool) -> Steps:
    return five_steps(mesh, ACCUMULATED[mesh], 2) if is_accumulated else five_steps(mesh)


def assert_same_steps(found: Steps, expected: Steps):
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5, atol=1e-5)
    assert expected.losses[-1] < expected.losses[0] - 0.05
    for name, array in expected.model.items():
        np.testing.assert_allclose(found.model[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("is_accumulated", [False, True], ids=["whole", "accumulated"])
@pytest.mark.parametrize("mesh", MESHES)
def test_five_steps_on_a_mesh_equal_those_on_one_device(mesh, is_accumulated):
    assert_same_steps(stepped(mesh, is_accumulated), five_steps())


def weights_in_use(mesh: str) -> set[tuple[int, ...]]:
    """Shapes that each weight, and the kernels of a layer together, have for a product."""
    devices = make_mesh(MESHES[mesh])
    shapes = jax.eval_shape(lambda: tiny_config(**SIZES).init(jax.random.key(0)))
    found, of_layers = set(), collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes, is_leaf=is_param):
        spec = devices.sharding(*leaf.get_metadata()["logical_axes"]).spec
        sizes = tuple(
            size // devices.shape["tensor"] if axis == "tensor" else size
            for size, axis in zip(leaf.shape[-len(spec) :], spec, strict=True)
        )
        stack, _, name = jax.tree_util.keystr(path, simple=True, separator=".").partition(".")
        if name.startswith("layers") and len(sizes) > 1:
            of_layers[stack] += math.prod(sizes)
        found.add(sizes)
    width = SIZES["emb_dim"]
    return found | {(width, size // width) for size in of_layers.values()}


def assert_gathers_weights_alone(text: str, mesh: str, *others: tuple[int, ...]):
    """Logits and parameters of several layers are never gathered; no all-to-all."""
    found = collectives(text)
    assert {one.kind for one in found} <= {"all-reduce", "all-gather"}
    gathered = {shape for one in found if one.kind == "all-gather" for shape in one.shapes}
    assert gathered <= weights_in_use(mesh) | set(others)


@pytest.mark.slow
@pytest.mark.parametrize("is_accumulated", [False, True], ids=["whole", "accumulated"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_gathers_the_weights_of_one_layer_at_a_time_and_nothing_else(mesh, is_accumulated):
    assert_gathers_weights_alone(stepped(mesh, is_accumulated).text, mesh)


@pytest.mark.slow
def test_long_inputs_may_be_split_along_their_length():
    """Inside a layer heads are split instead: what goes into its products is gathered."""
    found = five_steps("2x2x2", rules=(("length", "tensor"),))
    assert_same_steps(found, five_steps())
    streams = [(4, length, SIZES["emb_dim"]) for length in (24, 12)]
    assert_gathers_weights_alone(found.text, "2x2x2", *streams)


@pytest.mark.slow
def test_under_fsdp_the_kernels_of_a_layer_are_gathered_at_once_forward_and_backward():
    found = [one for one in collectives(five_steps("1x8x1").text) if one.kind == "all-gather"]
    kernels = [one for one in found if one.times == 2 and one.shapes[0][1:]]
    assert len(kernels) == len({one.computation for one in kernels}) == 4, "two stacks, both ways"
    outside = [one for one in found if one.times == 1]
    assert len(outside) <= 3 + 2 * 2, "embeddings of two stacks, logits, and last norms both ways"


def test_a_step_can_be_lowered_of_shapes_alone():
    mesh, shapes = make_mesh(MESHES["2x2x2"]), {k: v.shape for k, v in TEXT.items()}
    lowered = lower_train_step(
        tiny_config(**SIZES).init,
        NegativeLogLikelihood(),
        optax.sgd(0.02),
        mesh=mesh,
        batch=shapes,
        num_microbatches=2,
    )
    state, metrics = lowered.out_info
    assert state.model.logits_dense.kernel.shape == (16, 80)
    assert metrics["loss"].shape == () and "gradient_norm" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x1x8", "2x2x2"])
def test_a_scoring_step_gathers_the_weights_of_one_layer_at_a_time_and_nothing_else(mesh):
    devices = make_mesh(MESHES[mesh])
    model = abstract_model(tiny_config(**SIZES).init, devices)
    requests = requests_of(ranking_batch(0, rows=16, candidates=5))
    programs = Scorer(devices).lower(model, requests)
    assert programs.keys() == {"encode", "decode"}
    for program in programs.values():
        shapes = {leaf.shape for leaf in jax.tree.leaves(program.out_info)}  # the results
        assert_gathers_weights_alone(program.compile().as_text(), mesh, *shapes)


# Wide enough for Adafactor to factor its second moments, from 128 on.
WIDE = {"vocab_size": 128, "emb_dim": 128, "mlp_dim": 256, "num_encoder_layers": 1}
RUNS = {
    "adamw, listwise": (
        Listwise(),
        optimizers.adamw(learning_rate=RATE, weight_decay=0.01),
        packed_arrays(ranking_batch(0, rows=8), row_lengths=(32,)),
        {"dropout_rate": 0.1},
    ),
    "adafactor, packed text": (
        NegativeLogLikelihood(label_smoothing=0.1),
        optimizers.adafactor(learning_rate=RATE),
        TEXT,
        {},
    ),
}


def two_steps(run: str, mesh, starts=None) -> tuple[dict[str, np.ndarray], list]:
    """Returns losses and whole states of two steps, by name, and the state each began with.

    Args:
      run: one of RUNS.
      mesh: the devices.
      starts: states that the steps begin with; None: the second goes on from the first.
    """
    objective, optimizer, batch, changes = RUNS[run]
    model = tiny_model(**WIDE, **changes)
    state = TrainState(np.int32(0), model, jax.jit(optimizer.init)(model))
    shardings = state_shardings(state, mesh)
    step = make_train_step(objective, optimizer, mesh=mesh, shardings=shardings, seed=3)
    found, begun = {}, []
    for number in (0, 1):
        # Copies: a step gives the buffers of its state away.
        begun.append(jax.tree.map(np.array, state if starts is None else starts[number]))
        state, metrics = step(jax.device_put(begun[-1], shardings), place_batch(batch, mesh))
        values = [*metrics.items(), *store.named_arrays(state).items()]
        found |= {f"step {number} {name}": np.asarray(value) for name, value in values}
    return found, begun


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_steps_of_each_optimizer_on_many_devices_equal_those_on_one(run):
    """Each from the same state: what rounding does to signs, see below, would grow otherwise."""
    expected, starts = two_steps(run, make_mesh(MeshSettings(), jax.devices()[:1]))
    found, _ = two_steps(run, make_mesh(MESHES["2x2x2"]), starts)
    assert found.keys() == expected.keys()
    assert found["step 0 loss"] != found["step 1 loss"]
    for name in expected:
        difference = np.abs(found[name] - expected[name])
        is_close = difference <= 1e-5 + 1e-5 * np.abs(expected[name])
        # Where a gradient is nearly nothing its sign is rounding, and both optimizers look at
        # little more than the sign: there a step may go the other way.
        assert np.count_nonzero(~is_close) <= 1e-3 * is_close.size, name
        assert difference.max() <= 4e-3 or is_close.all(), name


@pytest.mark.slow
def test_a_random_start_does_not_depend_on_the_mesh():
    config, optimizer = tiny_config(num_encoder_layers=1), optimizers.adamw(learning_rate=RATE)
    states = [
        initial_state(config.init, optimizer, make_mesh(settings, devices), seed=5)
        for settings, devices in (
            (MeshSettings(), jax.devices()[:1]),
            (MESHES["2x2x2"], None),
        )
    ]
    for one, many in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-6, atol=1e-6)
