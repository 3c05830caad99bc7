"""SIGTERM, which preempted machines get, as a request to stop at the next good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StopAskedError(BaseException):
    """Raised where SIGTERM arrives inside `Stop.interrupts`.

    No `Exception`, so that nothing on the way takes it for a failure that can be passed over.
    """


class Stop:
    """Whether somebody asked to stop.

    Attributes:
      is_asked: whether SIGTERM has arrived.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._may_interrupt = False

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Lets SIGTERM break off what runs inside, which can be done again at any time.

        Raises:
          StopAskedError: if SIGTERM arrives, or has arrived.
        """
        self._may_interrupt = True
        try:
            if self.is_asked:
                raise StopAskedError
            yield
        finally:
            self._may_interrupt = False

    def ask(self, _signal: int, _frame: Any) -> None:
        """Handles the signal."""
        self.is_asked = True
        if self._may_interrupt:
            raise StopAskedError


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Turns SIGTERM into a request to stop, until the block ends."""
    stop = Stop()
    try:
        previous = signal.signal(signal.SIGTERM, stop.ask)
    except ValueError:  # not the main thread: whoever embeds this owns the signals
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
