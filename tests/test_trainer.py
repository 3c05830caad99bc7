"""The trainer takes any module with any objective: state, step, loop and checkpoints."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.parallel.placement import place_batch
from instructrec_jax.training import optimizers
from instructrec_jax.training.guards import Guards
from instructrec_jax.training.loop import Actions, Periods, run_loop
from instructrec_jax.training.metrics_log import MetricsLog, read_metrics
from instructrec_jax.training.state import abstract_state, initial_state, shardings_of
from instructrec_jax.training.step import SOFTWARE_RNG as RNG
from instructrec_jax.training.step import make_train_step

RATE = optimizers.constant(learning_rate=0.05)
OPTIMIZERS = {
    "adamw": optimizers.adamw(learning_rate=RATE),
    "adafactor": optimizers.adafactor(learning_rate=RATE, min_dim_size_to_factor=4),
    "optax's own": optax.adafactor(0.05, min_dim_size_to_factor=4),
}


class Towers(nnx.Module):
    """An invented two-tower model: the likeness of a user's vector and an item's."""

    def __init__(self, key):
        users, items = jax.random.split(key)
        axes = ("vocab", "embed")
        self.users = nnx.Param(jax.random.normal(users, (16, 8)), logical_axes=axes)
        self.items = nnx.Param(jax.random.normal(items, (24, 8)), logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(3))  # an array without logical axes

    def __call__(self, users, items):
        return jnp.sum(self.users[...][users] * self.items[...][items], axis=-1) + self.bias.sum()


def squared_error(model, batch, key):
    """An objective of its own, which draws from the step's key."""
    noise = 0.1 * jax.random.normal(key, batch["rating"].shape)
    loss = jnp.mean((model(batch["user"], batch["item"]) - batch["rating"] + noise) ** 2)
    return loss, {"mean_noise": jnp.mean(noise)}


def batches(first):
    for number in itertools.count(first):
        rng = np.random.default_rng(number)
        yield {
            "user": rng.integers(0, 16, 8).astype(np.int32),
            "item": rng.integers(0, 24, 8).astype(np.int32),
            "rating": rng.normal(size=8).astype(np.float32),
        }


def run(folder, last_step, optimizer, settings):
    """Trains up to a step, from the latest checkpoint if there is one; returns the last state."""
    mesh = make_mesh(settings)
    abstract = abstract_state(Towers, optimizer, mesh)
    checkpoints = CheckpointStore(folder / "checkpoints", keep=1)
    step = checkpoints.latest_step()
    if step is None:
        state = initial_state(Towers, optimizer, mesh, seed=3)
    else:
        state = checkpoints.restore(step, abstract)
    first = int(state.step)
    log = MetricsLog(folder, first_step=first)
    state = run_loop(
        state,
        batches(first),
        train_step=make_train_step(
            squared_error, optimizer, mesh=mesh, shardings=shardings_of(abstract), seed=5
        ),
        periods=Periods(train_steps=last_step, log=1, evaluate=3, checkpoint=2),
        actions=Actions(
            place=lambda batch: place_batch(batch, mesh),
            save=checkpoints.save,
            evaluate=lambda model: {"validation/mean": float(jnp.mean(model.items[...]))},
            keep_best=lambda step, state, measured: None,
        ),
        log=log,
        guards=Guards(log, max_skipped=0),
    )
    log.close()
    checkpoints.close()
    return jax.tree.map(np.asarray, state)


def one_step(objective, settings=MeshSettings(), **others):  # noqa: B008
    """The metrics of the first step."""
    optimizer, mesh = OPTIMIZERS["adamw"], make_mesh(settings)
    state = initial_state(Towers, optimizer, mesh, seed=3)
    step = make_train_step(
        objective, optimizer, mesh=mesh, shardings=shardings_of(state), seed=5, **others
    )
    return step(state, place_batch(next(batches(0)), mesh))[1]


def test_the_hardware_generator_draws_other_numbers_the_same_at_every_start():
    drawn = []

    def objective(model, batch, key):
        drawn.append(str(jax.random.key_impl(key)))
        return squared_error(model, batch, key)

    noise = [float(one_step(objective, rng=rng)["mean_noise"]) for rng in ("rbg", "rbg", RNG)]
    assert drawn == ["rbg", "rbg", RNG]
    assert noise[0] == noise[1] != noise[2]


def test_each_microbatch_draws_numbers_of_its_own():
    class Accumulated:
        def __init__(self):
            self.keys = set()

        def note(self, key_data):
            self.keys.add(tuple(np.asarray(key_data).tolist()))

        def totals(self, batch):
            return (batch["rating"].shape[0],)

        def __call__(self, model, batch, key, totals):
            jax.debug.callback(self.note, jax.random.key_data(key))
            error = model(batch["user"], batch["item"]) - batch["rating"]
            return jnp.sum(error**2) / totals[0], {}

    two, one = Accumulated(), Accumulated()
    found = one_step(two, num_microbatches=2, settings=MeshSettings(data=4, tensor=2))
    whole = one_step(lambda *args: one(*args, (8,)), settings=MeshSettings(data=4, tensor=2))
    jax.effects_barrier()
    assert len(two.keys | one.keys) == 3
    for name, value in whole.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_microbatches_of_an_objective_that_does_not_add_up_are_refused():
    with pytest.raises(UserError, match=r"NUM_MICROBATCHES is 2, but .* has no method `totals`"):
        one_step(squared_error, num_microbatches=2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_module_trains_and_goes_on_bit_for_bit(tmp_path, name):
    settings = MeshSettings(data=2, fsdp=2, tensor=2)
    whole = run(tmp_path / "whole", 6, OPTIMIZERS[name], settings)
    run(tmp_path / "cut", 4, OPTIMIZERS[name], settings)
    cut = run(tmp_path / "cut", 6, OPTIMIZERS[name], settings)
    jax.tree.map(np.testing.assert_array_equal, cut, whole)
    losses = [
        line["loss"] for line in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in line
    ]
    assert len(losses) == 6 and losses[-1] != losses[0]


def test_any_module_is_sharded_by_the_axes_it_names():
    mesh = make_mesh(MeshSettings(data=1, fsdp=4, tensor=2))
    state = abstract_state(Towers, OPTIMIZERS["adamw"], mesh)
    (adam,) = [
        part for part in jax.tree.leaves(state.optimizer_state, is_leaf=_is_adam) if _is_adam(part)
    ]
    for part in (state.model, adam.mu, adam.nu):
        specs = [leaf.sharding.spec for leaf in jax.tree.leaves((part.users, part.bias))]
        assert specs == [PartitionSpec("tensor", "fsdp"), PartitionSpec()]


def test_moments_that_their_axes_do_not_divide_are_on_every_device():
    mesh = make_mesh(MeshSettings(data=1, fsdp=8, tensor=1))
    state = abstract_state(Towers, OPTIMIZERS["optax's own"], mesh).optimizer_state
    small = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 1 and leaf.size == 1]
    assert small and all(leaf.sharding.spec == PartitionSpec() for leaf in small)


def _is_adam(part):
    return isinstance(part, optax.ScaleByAdamState)
