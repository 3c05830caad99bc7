"""The training state: step, model, optimizer state. Whole parameters never lie on one device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from instructrec_jax.models.adapters import EVERYTHING, FineTuning, join, split, with_adapters
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.mesh import bytes_per_device, state_shardings


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: int32 scalar, number of steps taken; None where only the model is meant.
      model: the model, a pytree of its parameters.
      optimizer_state: optax's state, of the parameters that learn.
    """

    step: Any
    model: T5
    optimizer_state: Any


def abstract_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    fine_tuning: FineTuning = EVERYTHING,
) -> TrainState:
    """Returns the state's shapes with their shardings; nothing is computed or allocated.

    Raises:
      UserError: if a pattern of `fine_tuning` matches no parameter.
    """
    shapes = jax.eval_shape(lambda: _initial_state(config, optimizer, fine_tuning, seed=0))
    return _with_shardings(shapes, mesh)


def abstract_model(config: T5Config, mesh: Mesh) -> T5:
    """Returns the model's shapes with their shardings; nothing is computed or allocated."""
    model = jax.eval_shape(lambda: T5(config, jax.random.key(0)))
    return _with_shardings(TrainState(None, model, None), mesh).model


def initial_state(
    config: T5Config,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    seed: int,
    fine_tuning: FineTuning = EVERYTHING,
) -> TrainState:
    """Returns a randomly initialised state, each device computing its own shards only."""
    abstract = abstract_state(config, optimizer, mesh, fine_tuning=fine_tuning)
    # Threefry's default mode makes the numbers independent of how they are sharded.
    make = jax.jit(
        lambda: _initial_state(config, optimizer, fine_tuning, seed=seed),
        out_shardings=_shardings(abstract),
    )
    return make()


def state_with_model(
    model: T5,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    *,
    step: int,
    fine_tuning: FineTuning = EVERYTHING,
    seed: int = 0,
) -> TrainState:
    """Returns a state that starts from a model, its adapters and its optimizer afresh.

    Args:
      model: arrays placed as `abstract` says, without adapters; given away.
      optimizer: an optax transformation.
      abstract: shapes and shardings, as `abstract_state` returns them.
      step: number of steps taken.
      fine_tuning: what learns.
      seed: of the adapters.
    """
    shardings = _shardings(abstract)
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


def _place_step(step: int, abstract: TrainState) -> jax.Array:
    return jax.make_array_from_callback(
        (), abstract.step.sharding, lambda _: np.asarray(step, abstract.step.dtype)
    )


def num_parameters(model: T5) -> int:
    """Returns the number of parameters of a model or of its shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(model))


def describe_placement(model: T5, optimizer_state: Any = None) -> str:
    """Returns the number of parameters, the mesh, and the memory they take on a device.

    Args:
      model: arrays, or shapes, with shardings.
      optimizer_state: likewise; None where there is no optimizer.
    """
    mesh = jax.tree.leaves(model)[0].sharding.mesh
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    memory = f"{_mebibytes(model)} MiB of parameters"
    if optimizer_state is None:
        memory += " per device"
    else:
        memory = (
            f"{_mebibytes((model, optimizer_state))} MiB of state per device ({memory}, "
            f"{_mebibytes(optimizer_state)} MiB of the optimizer's)"
        )
    return f"{num_parameters(model):,} parameters, mesh {axes}, {memory}"


def _mebibytes(tree: Any) -> str:
    return f"{bytes_per_device(tree) / 2**20:,.1f}"


def _with_shardings(shapes: TrainState, mesh: Mesh) -> TrainState:
    """Returns the same shapes, each with its place on the mesh."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def _shardings(abstract: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _initial_state(
    config: T5Config, optimizer: optax.GradientTransformation, fine_tuning: FineTuning, *, seed: int
) -> TrainState:
    model = with_adapters(T5(config, jax.random.key(seed)), fine_tuning, seed=seed)
    trained, _ = split(model, fine_tuning)
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(trained))
