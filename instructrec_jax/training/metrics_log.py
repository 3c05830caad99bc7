"""What a run measured, step by step: metrics.jsonl, TensorBoard events, incidents.jsonl.

They stand in MODEL_DIR.
"""

import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.training.trackers import Trackers

FILE_NAME, INCIDENTS, EVENTS = "metrics.jsonl", "incidents.jsonl", "tensorboard"
TIMING = "timing/"  # begins the names of what differs from run to run


class MetricsLog:
    """Appends metrics to MODEL_DIR; a resumed run forgets the lines after its checkpoint."""

    def __init__(
        self, model_dir: Path | str, *, first_step: int, trackers: Sequence[str] = ()
    ) -> None:
        """Opens the log.

        Args:
          model_dir: folder of the run.
          first_step: the step the run starts from; lines of later steps are dropped, since those
            steps are taken again.
          trackers: names of `trackers.KINDS`, which get the metrics too.
        """
        self._trackers = Trackers(trackers, model_dir)
        path, self._incidents = (Path(model_dir) / name for name in (FILE_NAME, INCIDENTS))
        kept = _keep_lines(path, first_step)
        self._last = {name for line in kept if line["step"] == first_step for name in line}
        _keep_lines(self._incidents, first_step)
        self._stream = path.open("a", encoding="utf-8")
        events = Path(model_dir) / EVENTS
        purge_step = first_step + 1 if first_step else None
        self._events = _summary_writer()(str(events), purge_step=purge_step)
        for path in events.glob(f"*.{socket.gethostname()}"):  # nothing written names the host
            path.rename(path.with_suffix(""))

    def began_with(self, name: str) -> bool:
        """Whether a metric of the step that the run starts from had been logged before."""
        return name in self._last

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line and one TensorBoard point for each value that is finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = {"step": step, "time": round(time.time(), 3), **finite}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        for name, value in finite.items():
            self._events.add_scalar(name.replace("@", "_at_"), value, step)  # its names allow no @
        self._trackers.write(step, finite)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows texts in TensorBoard, Markdown by name."""
        for name, text in texts.items():
            self._events.add_text(name, text, step)

    def report(self, step: int, incident: Mapping[str, Any]) -> None:
        """Appends something to incidents.jsonl that nobody expects of a step."""
        line = {"step": step, "time": round(time.time(), 3), **incident}
        with self._incidents.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Flushes metrics and events."""
        self._stream.close()
        self._events.close()
        self._trackers.close()


class NoMetricsLog(MetricsLog):
    """Stands for the log in a process that is not the one that writes."""

    def __init__(self) -> None:
        """Opens nothing."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes nothing."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes nothing."""

    def report(self, step: int, incident: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Closes nothing."""


class StepTimes:
    """Where the time between two logged steps went."""

    def __init__(self, step: int) -> None:
        """Begins after a step."""
        self._begin(step)

    def _begin(self, step: int) -> None:
        self._step, self._began = step, time.monotonic()
        self._spent = dict.fromkeys(("data", "save", "evaluation"), 0.0)

    @contextlib.contextmanager
    def spent_on(self, name: str) -> Iterator[None]:
        """Counts what the block takes as waiting for "data", a "save" or an "evaluation"."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[name] += time.monotonic() - began

    def up_to(self, step: int) -> dict[str, float]:
        """Returns what was measured since the last call, under names that begin with TIMING.

        `seconds_per_step` is without saves and evaluations, `data_wait_fraction` the part of it
        that the step waited for its batch; `save_seconds` is how long saves kept training waiting.
        """
        passed = time.monotonic() - self._began - self._spent["save"] - self._spent["evaluation"]
        found = {
            "seconds_per_step": passed / (step - self._step),
            "data_wait_fraction": self._spent["data"] / max(passed, 1e-9),
        }
        if self._spent["save"]:
            found["save_seconds"] = self._spent["save"]
        self._begin(step)
        return {TIMING + name: round(value, 4) for name, value in found.items()}


def _summary_writer() -> Any:
    """Returns the class that writes events, imported where a run begins to write some.

    Its package imports torch where that is installed, which takes seconds and serves nothing here.
    """
    is_imported = sys.modules.setdefault("torch", None) is not None  # type: ignore[arg-type]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if not is_imported:
            del sys.modules["torch"]
    return SummaryWriter


def as_table(title: str, values: Mapping[str, float]) -> str:
    """Returns measured values in aligned lines, a line for each group of names.

    Args:
      title: stands before the names of the metrics, such as "step 200".
      values: by name, "<group>/<metric>".

    Example:
      >>> print(as_table("step 20", {"validation/hr@1": 0.5, "validation/toys.A7/hr@1": 0.5}))
      step 20              hr@1
      validation          .5000
      validation/toys.A7  .5000
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        group, _, metric = name.rpartition("/")
        rows.setdefault(group, {})[metric] = value
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    texts = [[title, *metrics]]
    for group, row in rows.items():
        cells = [f"{row[name]:.4f}" if name in row else "" for name in metrics]
        texts.append([group, *(cell.removeprefix("0") for cell in cells)])
    first, *others = (max(map(len, column)) for column in zip(*texts, strict=True))
    widths = [width + 2 for width in others]
    return "\n".join(
        head.ljust(first) + "".join(map(str.rjust, cells, widths)) for head, *cells in texts
    )


def _keep_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Removes the lines of later steps, and a file that then is empty; returns the others."""
    kept = [line for line in read_metrics(path) if line["step"] <= last_step]
    if kept:
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    else:
        path.unlink(missing_ok=True)
    return kept


def read_metrics(path: Path | str) -> list[dict[str, float]]:
    """Reads a metrics.jsonl; a last line cut short by a kill, and a missing file, are no error.

    Returns:
      One dict per line, each with "step", in the order they were written.

    Raises:
      UserError: if a line before the last is damaged.
    """
    path = Path(path)
    if not path.exists():
        return []
    found = []
    lines = files.read_text(path).splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = files.parse_json(text)
            int(line["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines) or not text.strip():
                continue  # only the last line can be half written: lines are appended one at a time
            raise UserError(
                f"{path} line {number} is not a JSON object with a step ({error}): {text[:80]!r}; "
                "remove the line"
            ) from None
        found.append(line)
    return found
