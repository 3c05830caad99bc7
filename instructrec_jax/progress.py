"""Long work: its progress, shown, and the signals by which it is asked to stop.

Progress is one live line at a terminal, and full lines where messages are piped. Preempted machines
get SIGTERM, and a person presses Ctrl-C: work stops at the next good moment.
"""

import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0
_SECONDS_LIVE = 0.1  # what is counted by the million must not be shown as often
_Part = TypeVar("_Part")


class Progress:
    """Shows how much of a piece of work is done, its rate and the time left.

    At a terminal one line at the bottom of stderr is renewed, and removed at the end. Elsewhere
    lines are logged. The rate is measured from the first part on: compilation is not counted.

    Example:
      >>> with Progress("score", total=2048, unit="requests") as progress:
      ...     for part in parts:
      ...         progress.advance(len(part))

      logs "score: 512/2048 requests  12.30 requests/s  2:03 left".
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        """Measures from now on.

        Args:
          what: the work, such as the verb.
          total: units in all; None if unknown.
          unit: what is counted, in the plural.
          done: units that are done already.
          seconds_between_lines: least time between two logged lines; 0.0 logs every call of
            `advance`.
        """
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._seconds_between_lines = seconds_between_lines
        self._first: tuple[int, float] | None = None  # units and time when the first part was done
        self._last_line = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            self._live = _live_line(self.what, self.total, self.done)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def advance(self, number: int = 1, note: str = "") -> None:
        """Counts units as done and shows it.

        Args:
          number: units that were done since the last call.
          note: what else to show, such as "loss 1.2345".
        """
        self.done += number
        now = time.monotonic()
        if self._first is None:
            self._first = (self.done, now)
        is_live = self._live is not None
        if now - self._last_line < (_SECONDS_LIVE if is_live else self._seconds_between_lines):
            return
        self._last_line = now
        line = self._line(now, note, note_last=is_live)  # its end may not fit
        if is_live:
            (task,) = self._live.task_ids
            self._live.update(task, completed=self.done, line=line)
        else:
            logger.info("%s: %s", self.what, line)

    def track(self, parts: Iterable[_Part], *, every: int = 1) -> Iterator[_Part]:
        """Yields the parts, each counted as one unit when the next is asked for.

        Args:
          parts: what is worked on.
          every: units that are counted together; more than one where units are small.
        """
        number = 0
        with self:
            for number, part in enumerate(parts, start=1):
                yield part
                if number % every == 0:
                    self.advance(every)
            self.advance(number % every)

    def rate(self) -> float:
        """Returns units per second since the first part was done; 0.0 where nothing is measured."""
        return self._rate(time.monotonic())

    def _rate(self, now: float) -> float:
        if self._first is None:
            return 0.0
        number, since = self.done - self._first[0], now - self._first[1]
        return number / since if number and since else 0.0

    def _line(self, now: float, note: str, *, note_last: bool) -> str:
        """Returns "20/300 steps  loss 1.2345  12.30 steps/s  0:23 left"."""
        counted = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{counted} {self.unit}"]
        if rate := self._rate(now):
            parts.append(f"{rate:,.2f} {self.unit}/s")
            if self.total is not None:
                parts.append(f"{clock((self.total - self.done) / rate)} left")
        parts.insert(len(parts) if note_last else 1, note)
        return "  ".join(part for part in parts if part)


def clock(seconds: float) -> str:
    """Returns a time as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _live_line(what: str, total: int | None, done: int) -> Any:
    """Returns rich's display of one line on stderr; messages logged meanwhile appear above it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    live = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(what))),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[line]}", markup=False),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # a result may be piped
        refresh_per_second=4,
    )
    live.add_task(what, total=total, completed=done, line="")
    return live


class StopAskedError(BaseException):
    """Raised where a request to stop arrives inside `Stop.interrupts`.

    No `Exception`, so that nothing on the way takes it for a failure that can be passed over.
    """


class Stop:
    """Whether somebody asked to stop.

    Attributes:
      asked_by: the first signal that asked; None: nobody did.
    """

    def __init__(self) -> None:
        self.asked_by: signal.Signals | None = None
        self._may_interrupt = False

    @property
    def is_asked(self) -> bool:
        """Whether a signal has arrived."""
        return self.asked_by is not None

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Lets a request break off what runs inside, which can be done again at any time.

        Raises:
          StopAskedError: if one arrives, or has arrived.
        """
        self._may_interrupt = True
        try:
            if self.is_asked:
                raise StopAskedError
            yield
        except Exception:  # a library may wrap it
            if self.is_asked:
                raise StopAskedError from None
            raise
        finally:
            self._may_interrupt = False

    def ask(self, number: int, _frame: Any) -> None:
        """Handles a signal; a second Ctrl-C waits for nothing.

        Raises:
          KeyboardInterrupt: at the second Ctrl-C.
          StopAskedError: where the work may be broken off.
        """
        if number == signal.SIGINT == self.asked_by:
            raise KeyboardInterrupt
        self.asked_by = self.asked_by or signal.Signals(number)
        if self._may_interrupt:
            raise StopAskedError


@contextmanager
def stop_on(*numbers: signal.Signals) -> Iterator[Stop]:
    """Turns signals into a request to stop, until the block ends.

    Args:
      *numbers: SIGTERM, and SIGINT where work is to be saved before Ctrl-C ends it; one that the
        process ignores stays ignored.
    """
    stop, previous = Stop(), {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            try:
                previous[number] = signal.signal(number, stop.ask)
            except ValueError:  # not the main thread: whoever embeds this owns the signals
                break
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
