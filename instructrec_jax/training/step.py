"""One jitted training step."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from instructrec_jax.models.adapters import EVERYTHING, FineTuning, join, split
from instructrec_jax.models.objectives import Batch, Metrics, Objective
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import batch_sharding
from instructrec_jax.training.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    shardings: TrainState,
    seed: int,
    fine_tuning: FineTuning = EVERYTHING,
) -> TrainStep:
    """Returns the jitted step: loss, gradient, update; the state given to it is donated.

    The dropout key is a function of (seed, step), so a resumed run draws the same masks.

    Args:
      objective: maps (model, batch, dropout key) to (loss, metrics).
      optimizer: an optax transformation.
      mesh: the device mesh.
      shardings: of every array of the state, as `state_shardings` gives them.
      seed: of the dropout masks.
      fine_tuning: what learns; gradients, their norm and the optimizer know nothing else.

    Returns:
      A function of (state, batch) that gives (state, metrics); metrics are float32 scalars, with
      "loss" and "gradient_norm" among them.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = None
        if state.model.config.dropout_rate > 0:
            dropout_key = jax.random.fold_in(jax.random.key(seed), state.step)
        trained, rest = split(state.model, fine_tuning)

        def loss_of(trained: T5) -> tuple[jax.Array, Metrics]:
            return objective(join(trained, rest), batch, dropout_key)

        (loss, metrics), gradient = jax.value_and_grad(loss_of, has_aux=True)(trained)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, trained)
        model = join(optax.apply_updates(trained, updates), rest)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradient), **metrics}
        return TrainState(state.step + 1, model, optimizer_state), metrics

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
    )
