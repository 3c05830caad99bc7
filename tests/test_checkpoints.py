"""Checkpoints: what comes back, what is refused, and which one a path means."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import tiny_config

from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.arrays import StoredArray
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import TrainState, abstract_state, state_shardings

ADAMW = optimizers.adamw(learning_rate=optimizers.constant(learning_rate=1e-3))


def mesh_of(**axes):
    return make_mesh(MeshSettings(**axes))


def abstract(mesh, **changes):
    return abstract_state(tiny_config(**changes).init, ADAMW, mesh)


@pytest.fixture(scope="module")
def state() -> TrainState:
    """A state in which no two arrays are alike, placed on all devices."""
    rng = np.random.default_rng(0)
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    whole = abstract(mesh)
    filled = jax.tree.map(lambda leaf: np.asarray(rng.normal(0, 9, leaf.shape), leaf.dtype), whole)
    return jax.device_put(filled, state_shardings(whole, mesh))


@pytest.fixture(scope="module")
def run(tmp_path_factory, state):
    """A MODEL_DIR with steps 10 and 20, the best of them 10."""
    folder = tmp_path_factory.mktemp("run")
    latest = store.CheckpointStore(folder / store.LATEST, keep=2)
    best = store.CheckpointStore(folder / store.BEST, keep=1, best_metric="ndcg@5")
    for step, value in ((10, 0.5), (20, 0.4)):
        latest.save(step, state)
        best.save(step, state._replace(optimizer_state=None), {"ndcg@5": value})
    latest.close()
    best.close()
    return folder


def tiny_store(folder, **kwargs):
    return store.CheckpointStore(folder, **({"keep": 2} | kwargs))


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


SMALL = {"model": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}


def small_abstract(shape=(2, 3)):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"model": {"kernel": jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)}}


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 4, "tensor": 2}])
def test_a_state_comes_back_bit_for_bit_under_another_mesh(run, state, axes):
    wanted = abstract(mesh_of(**axes))
    found = store.restore(run / store.LATEST / "20", wanted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        np.testing.assert_array_equal(
            leaf, dict(jax.tree_util.tree_leaves_with_path(state))[path], err_msg=str(path)
        )
    same = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, found, wanted)
    assert all(jax.tree.leaves(same))


def test_the_model_alone_comes_back_from_both_kinds_of_checkpoint(run, state):
    wanted = {"model": abstract_model(tiny_config().init, mesh_of())}
    for folder in (run / store.LATEST / "10", run / store.BEST / "10"):
        found = store.restore(folder, wanted)["model"]
        for own, other in zip(*map(jax.tree.leaves, (found, state.model)), strict=True):
            np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 8}])
def test_every_value_is_read_once_and_no_more_than_an_array_at_a_time(
    run, state, axes, monkeypatch
):
    """What is read is held twice until it is in place."""
    events, read = [], StoredArray.read
    wait = jax.block_until_ready
    monkeypatch.setattr(
        StoredArray, "read", lambda *args: events.append(found := read(*args)) or found
    )
    monkeypatch.setattr(jax, "block_until_ready", lambda x: events.append(None) or wait(x))
    store.restore(run / store.LATEST / "20", abstract(mesh_of(**axes)))
    sizes = [[]]
    for event in events:
        sizes.append([]) if event is None else sizes[-1].append(event.nbytes)
    arrays = jax.tree.leaves(state)
    assert [sum(size) for size in sizes[:-1]] == [leaf.nbytes for leaf in arrays]
    assert max(map(len, sizes)) == 1


def test_arrays_are_stored_under_readable_names(state):
    names = set(store.named_arrays(state))
    assert {"step", "model.encoder.layers.attention.query.kernel"} <= names
    assert len(names) == len(jax.tree.leaves(state))


def test_a_checkpoint_of_other_sizes_is_refused_with_names_and_shapes(run):
    wanted = {"model": abstract_model(tiny_config(mlp_dim=48).init, mesh_of())}
    with pytest.raises(UserError) as caught:
        store.restore(run / store.BEST / "10", wanted)
    assert "model.encoder.layers.mlp.wi_0.kernel is (2, 16, 32) there, expected (2, 16, 48)" in str(
        caught.value
    )


def test_missing_and_left_over_arrays_are_named(tmp_path):
    folder = tiny_store(tmp_path)
    folder.save(1, SMALL)
    wanted = small_abstract()
    wanted["model"]["bias"] = wanted["model"].pop("kernel")
    with pytest.raises(UserError, match=r"missing: model\.bias .* left over: model\.kernel"):
        folder.restore(1, wanted)


@pytest.mark.parametrize("damage", ["nothing left", "no data", "no metadata", "data cut short"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    folder = tiny_store(tmp_path)
    folder.save(1, SMALL)
    folder.close()
    for path in [path for path in (tmp_path / "1" / "default").rglob("*") if path.is_file()]:
        is_data = path.parent.name == "d"
        if damage == "data cut short" and is_data:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif (
            damage == "nothing left"
            or (damage == "no data" and is_data)
            or (damage == "no metadata" and path.name == "_METADATA")
        ):
            path.unlink()
    with pytest.raises(UserError, match=r"checkpoint .*/1 cannot be read"):
        store.restore(tmp_path / "1", small_abstract())


def test_a_path_means_a_step_or_the_best_or_the_latest(run, tmp_path):
    assert store.resolve_checkpoint(run).parts[-2:] == ("best", "10")
    assert store.resolve_checkpoint(run / "checkpoints").name == "20"
    assert store.resolve_checkpoint(run / "checkpoints" / "10").name == "10"
    assert store.resolve_checkpoint(str(run / "best" / "10")).parts[-2:] == ("best", "10")
    assert store.checkpoint_step(store.resolve_checkpoint(run / "checkpoints")) == 20
    folder = tiny_store(tmp_path / "checkpoints")
    folder.save(9, SMALL)
    folder.save(100, SMALL)
    assert store.resolve_checkpoint(tmp_path).name == "100", "by number, not by name"


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_a_path_without_checkpoint_is_refused(tmp_path, name):
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no finished checkpoint in"):
        store.resolve_checkpoint(tmp_path / name)


def test_an_unfinished_checkpoint_is_never_seen(tmp_path):
    folder = tiny_store(tmp_path)
    folder.save(1, SMALL)
    folder.close()
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "default").mkdir()
    assert store.resolve_checkpoint(tmp_path).name == "1"
    again = tiny_store(tmp_path)
    assert again.latest_step() == 1
    again.save(2, SMALL)
    assert steps_in(tmp_path) == [1, 2]


def test_only_the_latest_are_kept(tmp_path):
    folder = tiny_store(tmp_path)
    for step in range(1, 5):
        folder.save(step, SMALL)
    assert steps_in(tmp_path) == [3, 4]
    assert folder.latest_step() == 4


def test_saving_a_step_twice_changes_nothing(tmp_path):
    folder = tiny_store(tmp_path)
    folder.save(1, SMALL)
    folder.save(1, {"model": {"kernel": SMALL["model"]["kernel"] + 1}})
    found = folder.restore(1, small_abstract())
    np.testing.assert_array_equal(found["model"]["kernel"], SMALL["model"]["kernel"])


def test_the_best_stays_until_a_better_one_is_complete(tmp_path):
    values = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.6}
    expected = {1: 1, 2: 2, 3: 2, 4: 2, 5: 5}  # of equals the earlier one
    for step, value in values.items():  # each time opened anew, as by a resumed run
        folder = tiny_store(tmp_path, keep=1, best_metric="ndcg@5")
        folder.save(step, SMALL, {"ndcg@5": value})
        folder.close()
        assert store.resolve_checkpoint(tmp_path).name == str(expected[step])
        assert steps_in(tmp_path) == [expected[step]]


def test_a_worse_checkpoint_is_not_even_written(tmp_path, monkeypatch):
    """Else a run killed before the worse one is deleted would leave it as the newest."""
    folder = tiny_store(tmp_path, keep=1, best_metric="ndcg@5")
    folder.save(1, SMALL, {"ndcg@5": 0.5})
    monkeypatch.setattr(folder._manager, "save", lambda *_, **__: pytest.fail("was written"))
    folder.save(2, SMALL, {"ndcg@5": 0.5})


def test_a_checkpoint_that_cannot_be_written_is_one_message(tmp_path, monkeypatch):
    checkpoints = store.CheckpointStore(tmp_path / "run", keep=1)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file [source locations='x']")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match=r"cannot write checkpoint 3 into .*RESOURCE_EXHAUSTED"):
        checkpoints.save(3, {"a": np.zeros(2)})
    checkpoints.close()


def test_what_is_written_in_the_background_is_the_state_of_its_moment(tmp_path, monkeypatch):
    checkpoints = tiny_store(tmp_path, in_background=True)
    may_write, write = threading.Event(), checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda *a: may_write.wait() and write(*a))
    state = jax.tree.map(jnp.asarray, SMALL)
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    checkpoints.save(1, state, data_position=[[2, 3]])
    for _ in range(3):
        state = step(state)
    assert steps_in(tmp_path) == []
    may_write.set()
    checkpoints.wait()
    found = store.stored_arrays(tmp_path / "1")["model.kernel"].read()
    np.testing.assert_array_equal(found, SMALL["model"]["kernel"])
    assert checkpoints.data_position(1) == [[2, 3]]
    checkpoints.close()


def test_a_failure_in_the_background_is_raised_at_the_next_save(tmp_path, monkeypatch):
    checkpoints = tiny_store(tmp_path, in_background=True)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: no space")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    checkpoints.save(1, SMALL)
    with pytest.raises(UserError, match="cannot write checkpoint 1 into"):
        checkpoints.save(2, SMALL)
    checkpoints.close()
