"""The training state: step, model, optimizer state. No device ever holds whole parameters.

The model is any `nnx.Module` whose parameters are `nnx.Param`s; they may name their logical axes,
see `parallel.mesh.shardings`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from instructrec_jax.models.adapters import EVERYTHING, FineTuning, join, split, with_adapters
from instructrec_jax.parallel import mesh as device_mesh

Init = Callable[[jax.Array], nnx.Module]


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: int32 scalar, number of steps taken.
      model: the model, a pytree of its parameters.
      optimizer_state: optax's state, of the parameters that learn; None where it is left out.
    """

    step: Any
    model: Any
    optimizer_state: Any


def state_shardings(state: TrainState, mesh: device_mesh.LogicalMesh) -> TrainState:
    """Returns the sharding of every array of a state.

    Raises:
      UserError: if a parameter is not divisible by its mesh axes.
    """
    return TrainState(
        device_mesh.shardings(state.step, mesh),
        device_mesh.shardings(state.model, mesh),
        device_mesh.shardings(state.optimizer_state, mesh, is_strict=False),
    )


def abstract_state(
    init: Init,
    optimizer: optax.GradientTransformation,
    mesh: device_mesh.LogicalMesh,
    *,
    fine_tuning: FineTuning = EVERYTHING,
) -> TrainState:
    """Returns the state's shapes with their shardings; nothing is computed or allocated.

    Args:
      init: builds the model from a key.
      optimizer: an optax transformation.
      mesh: the device mesh.
      fine_tuning: what learns.

    Raises:
      UserError: if a pattern of `fine_tuning` matches no parameter, or a parameter is not divisible
        by its mesh axes.
    """
    return device_mesh.abstract(
        lambda: _initial_state(init, optimizer, fine_tuning, seed=0),
        lambda shapes: state_shardings(shapes, mesh),
    )


def initial_state(
    init: Init,
    optimizer: optax.GradientTransformation,
    mesh: device_mesh.LogicalMesh,
    *,
    seed: int,
    fine_tuning: FineTuning = EVERYTHING,
) -> TrainState:
    """Returns a randomly initialised state, each device computing its own shards only."""
    abstract = abstract_state(init, optimizer, mesh, fine_tuning=fine_tuning)
    # Threefry's default mode makes the numbers independent of how they are sharded.
    make = jax.jit(
        lambda: _initial_state(init, optimizer, fine_tuning, seed=seed),
        out_shardings=shardings_of(abstract),
    )
    return make()


def state_with_model(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    *,
    step: int,
    fine_tuning: FineTuning = EVERYTHING,
    seed: int = 0,
) -> TrainState:
    """Returns a state that starts from a model, its adapters and its optimizer afresh.

    Args:
      model: arrays with the shardings of `abstract`, without adapters; donated.
      optimizer: an optax transformation.
      abstract: shapes and shardings, as `abstract_state` returns them.
      step: number of steps taken.
      fine_tuning: what learns.
      seed: of the adapters.
    """
    shardings = shardings_of(abstract)
    if fine_tuning.lora is not None:
        adapt = jax.jit(
            lambda base: with_adapters(base, fine_tuning, seed=seed),
            donate_argnums=0,
            out_shardings=shardings.model,
        )
        model = adapt(model)
    make = jax.jit(optimizer.init, out_shardings=shardings.optimizer_state)
    return TrainState(_place_step(step, abstract), model, make(split(model, fine_tuning)[0]))


def stored_part(state: TrainState, fine_tuning: FineTuning) -> TrainState:
    """Returns what checkpoints hold of a state, or of its shapes: all, or adapters alone."""
    if fine_tuning.lora is None:
        return state
    return state._replace(model=split(state.model, fine_tuning)[0])


def with_stored_part(state: TrainState, stored: TrainState, fine_tuning: FineTuning) -> TrainState:
    """Returns a restored part of a state, completed by the base model of `state`."""
    return stored._replace(model=join(stored.model, split(state.model, fine_tuning)[1]))


def shardings_of(state: Any) -> Any:
    """Returns the shardings of arrays, or of shapes that have them."""
    return jax.tree.map(lambda leaf: leaf.sharding, state)


def _place_step(step: int, abstract: TrainState) -> jax.Array:
    return jax.make_array_from_callback(
        (), abstract.step.sharding, lambda _: np.asarray(step, abstract.step.dtype)
    )


def _initial_state(
    init: Init, optimizer: optax.GradientTransformation, fine_tuning: FineTuning, *, seed: int
) -> TrainState:
    model = with_adapters(init(jax.random.key(seed)), fine_tuning, seed=seed)
    trained, _ = split(model, fine_tuning)
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(trained))
