"""A training step gives the same numbers however its arrays are sharded."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_model import (
    packed,
    packed_arrays,
    ranking_batch,
    tiny_config,
    tiny_model,
    training_batch,
)

from instructrec_jax.checkpoints import store
from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import Listwise, NegativeLogLikelihood
from instructrec_jax.parallel.mesh import (
    DEFAULT_RULES,
    MeshSettings,
    make_mesh,
    partition_spec,
    place_batch,
)
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import (
    TrainState,
    abstract_state,
    initial_state,
    state_shardings,
)
from instructrec_jax.training.step import make_train_step

# Wide enough for Adafactor to factor its second moments, from 128 on.
SIZES = {"vocab_size": 128, "emb_dim": 128, "mlp_dim": 256, "num_encoder_layers": 1}
RATE = optimizers.constant(learning_rate=1e-3)
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
        packed(training_batch(0, rows=16), inputs=24, targets=12),
        {},
    ),
}
MESHES = {
    "data": MeshSettings(data=8),
    "fsdp": MeshSettings(data=1, fsdp=8),
    "tensor": MeshSettings(data=4, tensor=2),
    "2x2x2": MeshSettings(data=2, fsdp=2, tensor=2),
}


def two_steps(run: str, mesh, starts=None) -> tuple[dict[str, np.ndarray], list]:
    """Returns losses and whole states of two steps, by name, and the state each began with.

    Args:
      run: one of RUNS.
      mesh: the devices.
      starts: states that the steps begin with; None: the second goes on from the first.
    """
    objective, optimizer, batch, changes = RUNS[run]
    model = tiny_model(**SIZES, **changes)
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


@pytest.fixture(scope="module")
def on_one_device():
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    return {run: two_steps(run, mesh) for run in RUNS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "mesh"),
    [("adamw, listwise", mesh) for mesh in MESHES]
    + [("adafactor, packed text", mesh) for mesh in ("fsdp", "2x2x2")],
)
def test_steps_on_many_devices_equal_those_on_one(run, mesh, on_one_device):
    """Each from the same state: what rounding does to signs, see below, would grow otherwise."""
    expected, starts = on_one_device[run]
    found, _ = two_steps(run, make_mesh(MESHES[mesh]), starts)
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


def test_no_device_holds_a_whole_parameter_under_fsdp():
    mesh = make_mesh(MESHES["fsdp"])
    state = abstract_state(tiny_config().init, optimizers.adamw(learning_rate=RATE), mesh)
    per_device = lambda leaf: leaf.sharding.shard_shape(leaf.shape)  # noqa: E731
    for part in (state.model, state.optimizer_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            name = jax.tree_util.keystr(path)
            if leaf.ndim and "rel_embedding" not in name:  # the tables have no axis "embed"
                assert np.prod(per_device(leaf)) * 8 == leaf.size, name


def test_optimizer_moments_are_sharded_as_their_parameters():
    mesh = make_mesh(MESHES["2x2x2"])
    state = abstract_state(tiny_config().init, optimizers.adamw(learning_rate=RATE), mesh)
    places = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    (kernel, first, second) = (
        spec for name, spec in places.items() if "encoder.layers.mlp.wi_0" in name
    )
    assert kernel == first == second == PartitionSpec(None, "fsdp", "tensor")
    assert {spec for name, spec in places.items() if "count" in name} == {PartitionSpec()}


def test_every_kind_of_parameter_has_its_place():
    places = {
        ("vocab", "embed"): ("tensor", "fsdp"),
        ("layers", "embed", "heads", "kv"): (None, "fsdp", "tensor", None),
        ("layers", "mlp", "embed"): (None, "tensor", "fsdp"),
        ("heads", "relpos_buckets"): ("tensor", None),
        ("batch", "length"): (("data", "fsdp"), None),
    }
    for axes, expected in places.items():
        assert partition_spec(axes) == PartitionSpec(*expected)


@pytest.mark.parametrize(
    "settings",
    [
        MeshSettings(data=3),
        MeshSettings(data=8, fsdp=2),
        MeshSettings(data=-1, fsdp=-1),
        MeshSettings(data=-1, fsdp=3),
        MeshSettings(data=-1, tensor=16),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(settings):
    with pytest.raises(UserError, match="does not fit 8 devices"):
        make_mesh(settings)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshSettings(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    mesh = make_mesh(MeshSettings(data=2, fsdp=-1))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}


def test_an_unknown_logical_axis_is_named_with_the_nearest_known():
    with pytest.raises(UserError, match=r"unknown logical axis 'head'.*heads"):
        partition_spec(("embed", "head"))


def test_two_axes_of_one_array_on_one_mesh_axis_are_refused():
    with pytest.raises(UserError, match="mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"))
    with pytest.raises(UserError, match="mesh axis 'fsdp'"):
        partition_spec(("batch", "embed"), DEFAULT_RULES)


def test_a_batch_that_does_not_divide_is_refused():
    batch = {"encoder_input_tokens": np.zeros((6, 4), np.int32)}
    with pytest.raises(
        UserError, match=r"BATCH_SIZE .*is 6; expected a multiple of data x fsdp = 4"
    ):
        place_batch(batch, make_mesh(MESHES["2x2x2"]))


def test_a_parameter_that_does_not_divide_is_named():
    config = dataclasses.replace(tiny_config(), num_heads=3)
    with pytest.raises(UserError, match=r"heads|attention.*3 is not divisible by the 2 devices"):
        abstract_state(
            config.init, optimizers.adamw(learning_rate=RATE), make_mesh(MESHES["tensor"])
        )


def test_rows_of_a_batch_are_sharded_over_data_and_fsdp_and_text_is_left_out():
    batch = place_batch(ranking_batch(0, rows=8), make_mesh(MESHES["2x2x2"]))
    assert "example_id" not in batch
    tokens = batch["encoder_input_tokens"]
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(2, 12)}
