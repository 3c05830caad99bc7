"""The loop around the training step: logging, checkpoints, evaluation, interruption.

It is generic in the model: it takes any `nnx.Module`.
"""

import dataclasses
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from instructrec_jax.parallel.stopping import AgreedStop, agreed
from instructrec_jax.progress import Progress, StopAskedError, stop_on
from instructrec_jax.settings import Count, check_fields
from instructrec_jax.training.guards import Guards
from instructrec_jax.training.metrics_log import MetricsLog, StepTimes, as_table
from instructrec_jax.training.state import TrainState
from instructrec_jax.training.step import TrainStep

logger = logging.getLogger(__name__)
NumpyBatch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
    """When the loop does what, in steps.

    Attributes:
      train_steps: the step after which training ends; None where that is not known yet.
      log: steps between two lines of progress.
      evaluate: steps between two evaluations; the last step is evaluated too.
      checkpoint: steps between two checkpoints; evaluated steps and the last one are saved too.
    """

    train_steps: Count | None
    log: Count = 100
    evaluate: Count = 1000
    checkpoint: Count = 1000

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        if self.train_steps is None:
            raise ValueError("the number of training steps is unresolved")
        return self.train_steps

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after a step."""
        return step % self.evaluate == 0 or step == self.last_step

    def is_saved(self, step: int) -> bool:
        """Whether the state is saved after a step."""
        return step % self.checkpoint == 0 or self.is_evaluated(step)

    def is_logged(self, step: int) -> bool:
        """Whether a step's loss is logged."""
        return step % self.log == 0 or step == self.last_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Actions:
    """What the loop calls; each is given by the stage that knows how.

    Attributes:
      place: moves a numpy batch onto the devices.
      save: keeps a state with the latest ones; does nothing where the step is kept already.
      evaluate: measures a model on validation data, by metric name.
      keep_best: keeps an evaluated state if it is the best so far.
      has_converged: whether training ends before its last step.
      texts: by name what `evaluate` leaves to be read, such as ranked examples.
    """

    place: Callable[[NumpyBatch], dict[str, jax.Array]]
    save: Callable[[int, TrainState], None]
    evaluate: Callable[[Any], dict[str, float]]
    keep_best: Callable[[int, TrainState, Mapping[str, float]], None]
    has_converged: Callable[[], bool] = lambda: False
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_loop(
    state: TrainState,
    batches: Iterator[NumpyBatch],
    *,
    train_step: TrainStep,
    periods: Periods,
    actions: Actions,
    log: MetricsLog,
    guards: Guards,
    is_evaluation_missing: bool = False,
) -> TrainState:
    """Trains until `periods.train_steps`, until it has converged, or until a signal asks to stop.

    A state is saved before it is evaluated, so that a kill during the evaluation loses no step.
    SIGTERM ends the run as if it were complete, for its machine is needed; after Ctrl-C nothing
    that waits for the run may go on. All processes stop after the same step.

    Args:
      state: where to start; its buffers are donated.
      batches: endless numpy batches, beginning with the one that belongs to the state's step.
      train_step: from `step.make_train_step`.
      periods: when to log, evaluate and save.
      actions: how to.
      log: where metrics go.
      guards: what looks at each step's loss and gradient.
      is_evaluation_missing: whether the state was saved and its evaluation did not end.

    Returns:
      The last state, saved.

    Raises:
      UserError: as `Guards.check`; the last checkpoint holds a state before that step.
      KeyboardInterrupt: after Ctrl-C, when the state is saved; at once at the second one.
    """
    first_step = step = int(state.step)
    progress = Progress(
        "train", total=periods.last_step, unit="steps", done=step, seconds_between_lines=0.0
    )
    with stop_on(signal.SIGTERM, signal.SIGINT) as asked, agreed(asked) as stop, progress:
        if is_evaluation_missing:
            logger.info("step %d was saved and not evaluated; evaluating it now", step)
            _evaluate(step, state, actions=actions, log=log, stop=stop)
        times = StepTimes(step)
        while step < periods.last_step and not (stop.is_due() or actions.has_converged()):
            with times.spent_on("data"):
                batch = next(batches)
            state, metrics = train_step(state, actions.place(batch))
            step += 1
            guards.watch(step, metrics, batch)
            if periods.is_logged(step) or step == first_step + 1:
                guards.check()
                values = {name: float(value) for name, value in metrics.items()}
                log.write(step, {**values, **guards.counts(), **times.up_to(step)})
                progress.advance(step - progress.done, _spell(values))
            if periods.is_saved(step):
                _save(step, state, guards, actions=actions, times=times)
            if periods.is_evaluated(step):
                with times.spent_on("evaluation"):
                    _evaluate(step, state, actions=actions, log=log, stop=stop)
        if stop.is_due():
            if step > first_step:
                _save(step, state, guards, actions=actions, times=times)
            name = "Ctrl-C" if asked.asked_by == signal.SIGINT else "SIGTERM"
            logger.info(
                "stopped on %s after step %d; the same command goes on from there", name, step
            )
    guards.say_counts()
    if asked.asked_by == signal.SIGINT:
        raise KeyboardInterrupt
    return state


def _save(
    step: int, state: TrainState, guards: Guards, *, actions: Actions, times: StepTimes
) -> None:
    """Saves a state, its last step checked."""
    guards.check()
    with times.spent_on("save"):
        actions.save(step, state)


def _evaluate(
    step: int, state: TrainState, *, actions: Actions, log: MetricsLog, stop: AgreedStop
) -> None:
    """Evaluates a saved state; a request to stop breaks it off, and a later run then does it again.

    It is logged last: what the log has is complete.
    """
    try:
        with stop.interrupts():
            measured = actions.evaluate(state.model)
    except StopAskedError:
        logger.info("the evaluation of step %d was broken off; the next run begins with it", step)
        return
    actions.keep_best(step, state, measured)
    log.write_texts(step, actions.texts)
    log.write(step, measured)
    logger.info("%s", as_table(f"step {step}", measured))


def _spell(values: Mapping[str, float]) -> str:
    """Returns values in one line; what is watched comes first."""
    ordered = {"loss": values["loss"], **values}
    return "  ".join(f"{name} {value:.4f}" for name, value in ordered.items())
