"""The jitted training step: loss, gradient, update. Generic in the model and the objective.

An objective maps (model, batch, key) to (loss, metrics). To be accumulated over microbatches it has
two things more: a method `totals(batch)`, of what loss and metrics are divided by, and an argument
`totals`. With those of the whole batch, the losses and metrics of its parts add up to its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import EVERYTHING, FineTuning, join, split
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import batch_sharding
from instructrec_jax.training.state import Init, TrainState, abstract_state, shardings_of

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, Metrics]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
SOFTWARE_RNG, HARDWARE_RNG = "threefry2x32", "rbg"


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: LogicalMesh,
    shardings: TrainState,
    seed: int,
    fine_tuning: FineTuning = EVERYTHING,
    num_microbatches: int = 1,
    rng: str = SOFTWARE_RNG,
) -> Any:
    """Returns the jitted step; the state given to it is donated.

    The objective's key is a function of (seed, step), so a resumed run drops the same activations.
    Of several microbatches, number n gets that key with n folded in.

    Args:
      objective: maps (model, batch, key) to (loss, metrics); of several microbatches see above.
      optimizer: an optax transformation; it may ask for the loss as `value`.
      mesh: the device mesh.
      shardings: of every array of the state, as `state_shardings` gives them.
      seed: of the objective's keys.
      fine_tuning: what learns; the others have no gradient and no optimizer state.
      num_microbatches: parts of the batch whose gradients are computed in turn and added up.
      rng: JAX's name of what draws the objective's numbers. Those of `HARDWARE_RNG` depend on how
        arrays are sharded.

    Returns:
      A function of (state, batch) that gives (state, metrics); metrics are float32 scalars, with
      "loss" and "gradient_norm" among them. It is jitted: `lower` takes shapes.

    Raises:
      UserError: if there are several microbatches and the objective cannot be accumulated.
    """
    if num_microbatches > 1 and not hasattr(objective, "totals"):
        raise UserError(
            f"NUM_MICROBATCHES is {num_microbatches}, but {objective!r} has no method `totals`, by "
            "which the losses of microbatches add up; leave NUM_MICROBATCHES out"
        )
    update = optax.with_extra_args_support(optimizer).update

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed, impl=rng), state.step)
        trained, rest = split(state.model, fine_tuning)

        def loss_of(trained: Any, *args: Any) -> tuple[jax.Array, Metrics]:
            return objective(join(trained, rest), *args)

        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        with constrained_by(mesh.constraints):
            if num_microbatches == 1:
                (loss, metrics), gradient = gradient_of(trained, batch, key)
            else:
                totals = objective.totals(batch)  # type: ignore[attr-defined]  # checked above
                of_part = lambda part, key: gradient_of(trained, part, key, totals)  # noqa: E731
                parts = _microbatches(batch, num_microbatches)
                (loss, metrics), gradient = _sum(of_part, parts, key)
        updates, optimizer_state = update(gradient, state.optimizer_state, trained, value=loss)
        model = join(optax.apply_updates(trained, updates), rest)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}
        return TrainState(state.step + 1, model, optimizer_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
    )


def lower_train_step(
    init: Init,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: LogicalMesh,
    batch: Mapping[str, tuple[int, ...]],
    fine_tuning: FineTuning = EVERYTHING,
    **settings: Any,
) -> Any:
    """Returns the lowered step of a run, which can be compiled and looked at; nothing is allocated.

    Args:
      init: builds the model from a key.
      objective: of the run, as for `make_train_step`.
      optimizer: of the run.
      mesh: devices, or descriptions of devices that are not there.
      batch: the shape of each int32 array of a batch.
      fine_tuning: what learns.
      **settings: `num_microbatches` and `rng` of `make_train_step`.
    """
    state = abstract_state(init, optimizer, mesh, fine_tuning=fine_tuning)
    step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        shardings=shardings_of(state),
        seed=0,
        fine_tuning=fine_tuning,
        **settings,
    )
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))
        for name, shape in batch.items()
    }
    return step.lower(state, shapes)


def _microbatches(batch: Batch, number: int) -> Batch:
    """Returns [number, rows of a microbatch, ...] of [rows, ...].

    Row r goes to microbatch r % number: every device has its rows of each already.
    """
    return {
        name: jnp.swapaxes(array.reshape(-1, number, *array.shape[1:]), 0, 1)
        for name, array in batch.items()
    }


def _sum(of_part: Callable[[Batch, jax.Array], Any], parts: Batch, key: jax.Array) -> Any:
    """Returns the sum of what a function gives for each microbatch and its key, in turn."""
    number = len(next(iter(parts.values())))
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(number))
    first = {name: array[0] for name, array in parts.items()}
    shapes = jax.eval_shape(of_part, first, keys[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add(sums: Any, part_and_key: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, of_part(*part_and_key)), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]
