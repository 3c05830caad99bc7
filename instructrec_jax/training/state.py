"""The training state: step, model, optimizer state. Whole parameters never lie on one device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.sharding import bytes_per_device, state_shardings


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: int32 scalar, number of steps taken; None where only the model is meant.
      model: the model, a pytree of its parameters.
      optimizer_state: optax's state.
    """

    step: Any
    model: T5
    optimizer_state: Any


def abstract_state(
    config: T5Config, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state's shapes with their shardings; nothing is computed or allocated."""
    shapes = jax.eval_shape(lambda: _initial_state(config, optimizer, seed=0))
    return _with_shardings(shapes, mesh)


def abstract_model(config: T5Config, mesh: Mesh) -> T5:
    """Returns the model's shapes with their shardings; nothing is computed or allocated."""
    model = jax.eval_shape(lambda: T5(config, jax.random.key(0)))
    return _with_shardings(TrainState(None, model, None), mesh).model


def initial_state(
    config: T5Config, optimizer: optax.GradientTransformation, mesh: Mesh, *, seed: int
) -> TrainState:
    """Returns a randomly initialised state, each device computing its own shards only."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, optimizer, mesh))
    # Threefry's default mode makes the numbers independent of how they are sharded.
    make = jax.jit(lambda: _initial_state(config, optimizer, seed=seed), out_shardings=shardings)
    return make()


def num_parameters(model: T5) -> int:
    """Returns the number of parameters of a model or of its shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def describe_placement(state: TrainState) -> str:
    """Returns the number of parameters, the mesh, and the memory that a state takes on a device.

    Args:
      state: arrays, or shapes, with shardings; a step or optimizer state that is None counts not.
    """
    mesh = jax.tree.leaves(state.model)[0].sharding.mesh
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    memory = f"{_mebibytes(state.model)} MiB of parameters"
    if state.optimizer_state is not None:
        memory = (
            f"{_mebibytes(state)} MiB of state per device ({memory}, "
            f"{_mebibytes(state.optimizer_state)} MiB of the optimizer's)"
        )
    else:
        memory += " per device"
    return f"{num_parameters(state.model):,} parameters, mesh {axes}, {memory}"


def _mebibytes(tree: Any) -> str:
    return f"{bytes_per_device(tree) / 2**20:,.1f}"


def _with_shardings(shapes: TrainState, mesh: Mesh) -> TrainState:
    """Returns the same shapes, each with its place on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def _initial_state(
    config: T5Config, optimizer: optax.GradientTransformation, *, seed: int
) -> TrainState:
    model = T5(config, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(model))
