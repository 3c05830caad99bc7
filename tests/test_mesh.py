"""Where the mesh and the rules put arrays, and what they refuse."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_model import (
    ranking_batch,
    tiny_config,
)

from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import DEFAULT_RULES, MeshSettings, make_mesh, partition_spec
from instructrec_jax.parallel.placement import check_rows, num_batch_shares, place_batch
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import (
    abstract_state,
)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """A device of a machine that is not there."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


RATE = optimizers.constant(learning_rate=1e-3)
FSDP = MeshSettings(data=1, fsdp=8)
ALL_AXES = MeshSettings(data=2, fsdp=2, tensor=2)


def test_no_device_holds_a_whole_parameter_under_fsdp():
    mesh = make_mesh(FSDP)
    state = abstract_state(tiny_config().init, optimizers.adamw(learning_rate=RATE), mesh)
    per_device = lambda leaf: leaf.sharding.shard_shape(leaf.shape)  # noqa: E731
    for part in (state.model, state.optimizer_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            name = jax.tree_util.keystr(path)
            if leaf.ndim and "rel_embedding" not in name:  # the tables have no axis "embed"
                assert np.prod(per_device(leaf)) * 8 == leaf.size, name


def test_optimizer_moments_are_sharded_as_their_parameters():
    mesh = make_mesh(ALL_AXES)
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


@pytest.mark.parametrize("num_slices", [1, 2], ids=["of processes", "of slices"])
def test_an_axis_crosses_slices_as_seldom_as_it_can(num_slices):
    devices = [
        FakeDevice(i, i // 4 if num_slices == 1 else i // 2, i * num_slices // 8) for i in range(8)
    ]
    settings = MeshSettings(data=1, fsdp=4, tensor=2, fsdp_slices=2)
    placed = make_mesh(settings, devices).devices.devices
    assert [device.id // 4 for device in placed[0, :, 0]] == [0, 0, 1, 1]
    assert all(a.id // 4 == b.id // 4 for a, b in placed[0])
    with pytest.raises(UserError, match=r"data_slices=4 and fsdp_slices=1 do not fit.* 2 slices"):
        make_mesh(MeshSettings(data=4, tensor=2, data_slices=4), devices)
    with pytest.raises(UserError, match="each must divide its axis"):
        make_mesh(MeshSettings(data=1, fsdp=8, data_slices=2), devices)


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshSettings(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    mesh = make_mesh(MeshSettings(data=2, fsdp=-1))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"head": "tensor"}, r"unknown logical axis of logical_axis_rules 'head'.*heads"),
        ({"heads": "model"}, "unknown mesh axis of heads in logical_axis_rules 'model'"),
        ({"layers": "data"}, "expected no rule for layers"),
        ({"embed": ["fsdp", "fsdp"]}, "expected no mesh axis twice for embed"),
        ({"embed": 3}, "expected 'embed' to be a text or a list"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(rules, message):
    with pytest.raises(UserError, match=message):
        MeshSettings(logical_axis_rules=rules)


def test_rules_change_where_parameters_and_batches_are_stored():
    rules = {"embed": None, "mlp": ["fsdp", "tensor"], "batch": "data"}
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2, logical_axis_rules=rules))
    assert mesh.sharding("embed", "mlp").spec == PartitionSpec(None, ("fsdp", "tensor"))
    assert mesh.sharding("embed", "heads", "kv").spec == PartitionSpec(None, "tensor", None)
    assert num_batch_shares(mesh) == 2
    with pytest.raises(UserError, match="is 3; expected a multiple of data = 2"):
        check_rows(3, mesh, name="BATCH_SIZE")


def spec_of(mesh, array, *axes):
    """How a compiled program splits an activation."""
    return jax.jit(lambda: mesh.constrain(array, axes))().sharding.spec


def test_in_an_activation_an_axis_leaves_a_mesh_axis_to_those_before_it_in_the_table():
    mesh = make_mesh(
        MeshSettings(data=2, fsdp=2, tensor=2, logical_axis_rules={"length": "tensor"})
    )
    stream, heads = np.zeros((8, 4, 16)), np.zeros((8, 4, 2, 3))
    batch = ("data", "fsdp")
    assert spec_of(mesh, stream, "batch", "length", "embed") == PartitionSpec(batch, "tensor")
    within = spec_of(mesh, heads, "batch", "length", "heads", "kv")
    assert within == PartitionSpec(batch, None, "tensor")
    # What the devices do not divide stays whole.
    assert spec_of(mesh, np.zeros((8, 3, 16)), "batch", "length", "embed") == PartitionSpec(batch)


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
        place_batch(batch, make_mesh(ALL_AXES))


def test_a_parameter_that_does_not_divide_is_named():
    config = dataclasses.replace(tiny_config(), num_heads=3)
    with pytest.raises(UserError, match=r"heads|attention.*3 is not divisible by the 2 devices"):
        abstract_state(
            config.init, optimizers.adamw(learning_rate=RATE), make_mesh(MeshSettings(tensor=2))
        )


def test_rows_of_a_batch_are_sharded_over_data_and_fsdp_and_text_is_left_out():
    batch = place_batch(ranking_batch(0, rows=8), make_mesh(ALL_AXES))
    assert "example_id" not in batch
    tokens = batch["encoder_input_tokens"]
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(2, 12)}
