"""W&B and MLflow: each gets what metrics.jsonl gets, where a run names it."""

import hashlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from instructrec_jax.errors import UserError, unknown_name

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Somebody else's log of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the finite values of a step."""

    def close(self) -> None:
        """Ends the run there."""


class WandbTracker:
    """A run of W&B; the same MODEL_DIR goes on in the same run."""

    def __init__(self, module: Any, model_dir: Path) -> None:
        name = hashlib.sha256(str(model_dir.resolve()).encode()).hexdigest()[:16]
        self._run = module.init(id=name, name=model_dir.name, dir=str(model_dir), resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what waits."""
        self._run.finish()


class MlflowTracker:
    """A run of MLflow; a run that goes on begins a new one of the same name there."""

    def __init__(self, module: Any, model_dir: Path) -> None:
        self._module = module
        module.start_run(run_name=model_dir.name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values; names there have no @."""
        named = {name.replace("@", "_at_"): value for name, value in values.items()}
        self._module.log_metrics(named, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._module.end_run()


KINDS: dict[str, Callable[[Any, Path], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


class Trackers:
    """Several of them. One that fails is left, with a warning: training goes on."""

    def __init__(self, names: Sequence[str], model_dir: Path | str) -> None:
        """Begins a run with each.

        Args:
          names: of `KINDS`; each needs the extra of its name.
          model_dir: folder of the run.

        Raises:
          UserError: if a name is unknown, its package missing, or it refuses to begin.
        """
        self._opened: dict[str, Tracker] = {}
        for name in names:
            if name not in KINDS:
                raise unknown_name("tracker", name, KINDS)
            try:
                self._opened[name] = KINDS[name](importlib.import_module(name), Path(model_dir))
            except ImportError:
                raise UserError(
                    f"the tracker {name!r} needs its package: pip install -e '.[{name}]', or take "
                    "it out of train.TrainSettings.trackers"
                ) from None
            except Exception as error:
                raise UserError(
                    f"the tracker {name!r} does not begin: {error}; mend that"
                ) from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values of a step to each."""
        self._each(lambda tracker: tracker.write(step, values))

    def close(self) -> None:
        """Ends the run with each."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._opened.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever a network does
                logger.warning("the tracker %s fails (%s); nothing more is sent to it", name, error)
                del self._opened[name]
