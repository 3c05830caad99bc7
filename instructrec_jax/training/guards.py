"""What watches over the steps of a run: a loss that is not finite, and one far above the others.

A step's numbers are looked at while the next one runs, so nothing waits for them.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.parallel import processes
from instructrec_jax.training.metrics_log import INCIDENTS, MetricsLog

logger = logging.getLogger(__name__)
_NUM_USUAL = 50  # losses before which none counts as a spike
_MEMORY = 0.98  # how much of mean and variance stays after a step
_DEVIATIONS = 6.0  # from the mean to a spike
_LEAST_DEVIATION = 0.01  # of the mean: nearly equal losses spread less than that
_NUM_NAMED = 20  # examples in a message


@dataclasses.dataclass(kw_only=True)
class Seen:
    """What is known of the steps so far; a checkpoint keeps it, so that a resumed run knows it too.

    Attributes:
      num_skipped: updates that were skipped.
      num_spikes: spikes of the loss.
      num_losses: finite losses.
      mean: running mean of the finite losses.
      variance: running variance of them.
      is_high: whether the last one belongs to a spike.
    """

    num_skipped: int = 0
    num_spikes: int = 0
    num_losses: int = 0
    mean: float = 0.0
    variance: float = 0.0
    is_high: bool = False

    @property
    def spike(self) -> float:
        """The loss above which there is a spike."""
        if self.num_losses < _NUM_USUAL:
            return math.inf
        deviation = max(math.sqrt(self.variance), _LEAST_DEVIATION * abs(self.mean))
        return self.mean + _DEVIATIONS * deviation

    def add(self, loss: float) -> bool:
        """Takes a finite loss into account; returns whether a spike begins with it."""
        begins = loss > self.spike and not self.is_high
        self.is_high = loss > self.spike
        self.num_spikes += begins
        self.num_losses += 1
        # A spike counts as the highest usual loss: it must not make all later ones look usual.
        difference = min(loss, self.spike) - self.mean
        weight = max(1 - _MEMORY, 1 / self.num_losses)
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference**2)
        return begins


class Guards:
    """Watches over the steps of one run."""

    def __init__(
        self, log: MetricsLog, *, max_skipped: int, seen: Mapping[str, Any] | None = None
    ) -> None:
        """Begins, or goes on.

        Args:
          log: where incidents go.
          max_skipped: most updates that may be skipped; the step has to skip them, see
            `make_train_step`.
          seen: what `seen` was after the step from which the run goes on.
        """
        self._log, self._max_skipped = log, max_skipped
        self.seen = Seen(**(seen or {}))
        self._waiting: tuple[int, Mapping[str, Any], Mapping[str, np.ndarray]] | None = None

    def watch(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, np.ndarray]) -> None:
        """Takes a step that has begun to run; the one before is checked."""
        self.check()
        self._waiting = (step, metrics, batch)

    def check(self) -> None:
        """Waits for the step that was taken last, and looks at it.

        Raises:
          UserError: if its loss or gradient is not finite, and its update may not be skipped.
        """
        if self._waiting is None:
            return
        (step, metrics, batch), self._waiting = self._waiting, None
        found = {name: float(metrics[name]) for name in ("loss", "gradient_norm")}
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        usual = {"usual_loss": self.seen.mean, "spike_above": self.seen.spike}
        if wrong:
            self._refuse_or_skip(step, wrong[0], found, batch)
        elif self.seen.add(found["loss"]):
            named = self._report(step, "loss spike", {**found, **usual}, batch)
            logger.warning(
                "the loss of step %d is %.4f, far above the usual %.4f (spike %d)%s",
                *(step, found["loss"], usual["usual_loss"], self.seen.num_spikes, named),
            )

    def counts(self) -> dict[str, int]:
        """Returns what has been counted, by name of the metric."""
        return {"skipped_updates": self.seen.num_skipped, "loss_spikes": self.seen.num_spikes}

    def say_counts(self) -> None:
        """Says what was counted, if anything."""
        if processes.is_main() and any(self.counts().values()):
            logger.warning(
                "skipped updates: %d, loss spikes: %d; %s names their steps and examples",
                *(*self.counts().values(), INCIDENTS),
            )

    def _refuse_or_skip(
        self, step: int, name: str, found: Mapping[str, float], batch: Mapping[str, np.ndarray]
    ) -> None:
        """Raises, or counts a step whose update was skipped."""
        self.seen.num_skipped += 1
        is_skipped = self.seen.num_skipped <= self._max_skipped
        what = "update skipped" if is_skipped else "stopped"
        named = self._report(step, what, found, batch)
        problem = f"the {name.replace('_', ' ')} of step {step} is {found[name]}"
        if is_skipped:
            number = f"{self.seen.num_skipped} of at most {self._max_skipped}"
            logger.warning("%s; its update is skipped (%s)%s", problem, number, named)
            return
        before = f", after {self._max_skipped} skipped updates" if self._max_skipped else ""
        raise UserError(
            f"{problem}{before}; training stops here and the last checkpoint is kept. Look at the "
            "data, or start a new MODEL_DIR with a lower LEARNING_RATE, INITIAL_CHECKPOINT_PATH "
            f"being this one; MAX_SKIPPED_UPDATES skips such steps{named}"
        )

    def _report(
        self, step: int, what: str, found: Mapping[str, float], batch: Mapping[str, np.ndarray]
    ) -> str:
        """Writes an incident with all examples of its batch; returns words that name the first."""
        ids, numbers = (np.ravel(batch.get(f"example_{kind}", ())) for kind in ("id", "number"))
        own = [(int(n), str(i)) for n, i in zip(numbers, ids, strict=True) if n >= 0]
        # All processes come here at the same step, each with the rows of its devices.
        of_all = processes.gathered(own)
        examples = sorted({(number, example) for part in of_all for number, example in part})
        values = {name: v if math.isfinite(v) else str(v) for name, v in found.items()}
        self._log.report(
            step,
            {
                "what": what,
                **values,
                "example_numbers": [number for number, _ in examples],
                "example_ids": [example for _, example in examples],
            },
        )
        if not examples:
            return ""
        some = ", ".join(f"{number} ({example})" for number, example in examples[:_NUM_NAMED])
        more = len(examples) - _NUM_NAMED
        return (
            f"; examples of that batch, all in {INCIDENTS} and shown by `instructrec inspect "
            f"--numbers`: {some}" + (f" and {more} more" if more > 0 else "")
        )
