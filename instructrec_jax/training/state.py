"""The training state: step, model, optimizer state. Whole parameters never lie on one device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.sharding import state_shardings


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
