"""The loop around the jitted step: logging, evaluation, checkpoints, interruption."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import Metrics
from instructrec_jax.training.metrics_log import MetricsLog
from instructrec_jax.training.progress import Progress
from instructrec_jax.training.state import TrainState
from instructrec_jax.training.step import TrainStep
from instructrec_jax.training.stopping import stop_on_sigterm

logger = logging.getLogger(__name__)
NumpyBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
    """When the loop does what, in steps.

    Attributes:
      train_steps: the step after which training ends; None where that is still to be found out.
      log: steps between two lines of progress.
      evaluate: steps between two evaluations; the last step is evaluated too.
      checkpoint: steps between two checkpoints; the last step is saved too.
    """

    train_steps: int | None
    log: int = 100
    evaluate: int = 1000
    checkpoint: int = 1000

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UserError(f"{field.name} is {value}; expected a number of steps >= 1")

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        if self.train_steps is None:
            raise ValueError("nobody has said yet when training ends")
        return self.train_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions:
    """What the loop calls; each is given by the stage that knows how.

    Attributes:
      place: moves a numpy batch onto the devices.
      evaluate: measures a model on validation data, by metric name.
      save: keeps a state, with its evaluation if it has one; nothing where the step is kept
        already.
    """

    place: Callable[[NumpyBatch], dict[str, jax.Array]]
    evaluate: Callable[[Any], dict[str, float]]
    save: Callable[[int, TrainState, Mapping[str, float] | None], None]


def run_loop(
    state: TrainState,
    batches: Iterator[NumpyBatch],
    *,
    train_step: TrainStep,
    periods: Periods,
    actions: Actions,
    log: MetricsLog,
) -> TrainState:
    """Trains until `periods.train_steps`, or until SIGTERM asks to stop after the current step.

    Args:
      state: where to start; its buffers are donated.
      batches: endless numpy batches, beginning with the one that belongs to the state's step.
      train_step: from `make_train_step`.
      periods: when to log, evaluate and save.
      actions: how to.
      log: where metrics go.

    Returns:
      The last state, saved.

    Raises:
      UserError: if loss or gradient is not finite; the last checkpoint holds a state before it.
    """
    first_step, step = int(state.step), int(state.step)
    progress = Progress(first_step=first_step, last_step=periods.last_step)
    unchecked: _Unchecked | None = None
    with stop_on_sigterm() as stop:
        while step < periods.last_step and not stop.is_asked:
            batch = next(batches)
            state, metrics = train_step(state, actions.place(batch))
            step += 1
            # The previous step's loss is looked at while this one runs: no waiting.
            _check_finite(unchecked)
            unchecked = _Unchecked(step, metrics, batch)
            is_last = step == periods.last_step
            is_measured = step % periods.evaluate == 0 or is_last
            is_saved = step % periods.checkpoint == 0 or is_measured
            if step % periods.log == 0 or is_last or step == first_step + 1:
                _check_finite(unchecked)
                values = {name: float(value) for name, value in metrics.items()}
                log.write(step, values)
                logger.info(progress.line(step, values))
            if is_saved:
                _check_finite(unchecked)
                measured = None
                if is_measured:
                    measured = actions.evaluate(state.model)
                    log.write(step, measured)
                    logger.info("step %d  %s", step, _spell(measured))
                actions.save(step, state, measured)
        if stop.is_asked:
            # No evaluation: a machine about to be taken away leaves seconds, and one more than an
            # uninterrupted run has could make another checkpoint the best.
            _check_finite(unchecked)
            actions.save(step, state, None)
            logger.info(
                "stopped on SIGTERM after step %d; the same command goes on from there", step
            )
    return state


@dataclasses.dataclass(frozen=True)
class _Unchecked:
    """A step whose loss nobody has looked at yet."""

    step: int
    metrics: Metrics
    batch: NumpyBatch


def _check_finite(taken: _Unchecked | None) -> None:
    """Raises where a step's loss, or the gradient that made its parameters, is not finite."""
    for name in ("loss", "gradient_norm"):
        if taken is None or math.isfinite(value := float(taken.metrics[name])):
            continue
        ids = [str(example) for example in taken.batch.get("example_id", ()) if example]
        named = f"; examples of that batch: {', '.join(ids[:20])}" if ids else ""
        raise UserError(
            f"the {name.replace('_', ' ')} of step {taken.step} is {value}; training stops here "
            "and the last checkpoint is kept. Look at the data, or start a new MODEL_DIR with a "
            "lower learning rate, INITIAL_CHECKPOINT_PATH being this one" + named
        )


def _spell(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
