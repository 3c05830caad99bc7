"""Ctrl-C: one line, exit code 130, whatever was going on.

What is written is written whole, and a stage goes on from what is there, so the process may end at
any instruction. It is given a moment to tidy up. Then it ends without Python's own end, which waits
for the threads of other libraries or dies of them. Work that would be lost (a training step) has
its own handler of the first Ctrl-C, and is waited for; the second ends the process at once.
"""

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from instructrec_jax.progress import StopAskedError

logger = logging.getLogger(__name__)
INTERRUPTED = 130
_SECONDS_TO_TIDY_UP = 5.0
_SHOW_CURSOR = "\x1b[?25h"  # a live line hides it


@contextmanager
def interruptible(arguments: Sequence[str]) -> Iterator[None]:
    """Lets Ctrl-C end this process with one line; nothing changes where the signal is ignored.

    Args:
      arguments: of the command, which the line repeats.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interruption = _Interruption(arguments)
    try:
        yield
    finally:  # whatever Ctrl-C has become on its way through a library
        if interruption.is_asked:
            interruption.end()


class _Interruption:
    """Whether Ctrl-C was pressed, and how the process ends then."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Takes over the signal."""
        self.is_asked = False
        self._command = shlex.join(["instructrec", *arguments])
        self._stderr = os.dup(2)  # imports redirect the other one for a while
        self._told = threading.Lock()
        signal.signal(signal.SIGINT, self._ask)
        # The handler waits for the main thread, which may be in a library for minutes.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="Ctrl-C", daemon=True).start()
        sys.unraisablehook = self._pass_on
        threading.excepthook = self._pass_on

    def end(self) -> NoReturn:
        """Says the line, once, and ends the process."""
        self._told.acquire()  # for good: whoever comes second waits for the end
        cursor = _SHOW_CURSOR if os.isatty(self._stderr) else ""
        line = f"{cursor}interrupted; the same command goes on from what was saved: "
        try:
            os.write(self._stderr, f"{line}{self._command}\n".encode(errors="replace"))
        finally:
            os._exit(INTERRUPTED)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.is_asked = True
        logging.disable()
        raise KeyboardInterrupt

    def _watch(self, reader: int) -> None:
        """Ends the process some seconds after the signal, or at the second one."""
        _wait_for_signal(reader)
        if signal.getsignal(signal.SIGINT) == self._ask:
            self.is_asked = True
            timer = threading.Timer(_SECONDS_TO_TIDY_UP, self.end)
            timer.daemon = True
            timer.start()
        else:
            logger.warning("Ctrl-C: saving after this step; once more ends it at once")
        _wait_for_signal(reader)
        self.end()

    def _pass_on(self, found: Any) -> None:
        """Shows an error that nobody can catch, unless it comes of a request to stop."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            self.end()
        if not self.is_asked and not issubclass(found.exc_type, StopAskedError):
            show = sys.__unraisablehook__ if hasattr(found, "err_msg") else threading.__excepthook__
            show(found)


def _wait_for_signal(reader: int) -> None:
    """Returns when Ctrl-C is pressed; the pipe tells of other signals too."""
    while os.read(reader, 1) != bytes([signal.SIGINT]):
        pass
