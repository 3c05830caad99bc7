"""A request to stop that any process of a run may get, and that all follow at the same place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from instructrec_jax.parallel.processes import POLL_SECONDS, Channel, client, gathered
from instructrec_jax.progress import Stop, StopAskedError


class AgreedStop:
    """A request to stop, which any process may get and all follow at the same place.

    The processes pass the same places in the same order, and count them. When one is asked, a
    thread of each tells how many its process has passed, and holds it at the next one until all
    have told; they stop at the place after the last that any of them has passed.
    """

    def __init__(self, stop: Stop) -> None:
        """Use `agreed`."""
        self._stop, self._lock, self._is_over = stop, threading.Lock(), threading.Event()
        self._channel = Channel("stop", self._is_over)
        self._passed, self._last = 0, float("inf")
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)

    def is_due(self) -> bool:
        """Whether to stop at this place; all processes call it at the same places."""
        if jax.process_count() == 1:
            return self._stop.is_asked
        with self._lock:
            self._passed += 1
            return self._passed >= self._last

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Lets a request break off what runs inside; several processes stop before it or after.

        Raises:
          StopAskedError: as `Stop.interrupts`.
        """
        if jax.process_count() > 1:
            if self.is_due():
                raise StopAskedError
            yield
            return
        with self._stop.interrupts():
            yield

    def _watch(self) -> None:
        """Waits until a process is asked, tells the others, and agrees with them where to stop."""
        service, key = client(), f"{self._channel.name}/asked"
        while not self._is_over.is_set():
            if self._stop.asked_by is not None:
                service.key_value_set(key, str(int(self._stop.asked_by)), allow_overwrite=True)
            try:
                number = service.blocking_key_value_get(key, int(POLL_SECONDS * 1000))
            except jax.errors.JaxRuntimeError:
                continue
            with self._lock:
                try:
                    self._last = 1 + max(self._channel.gathered(self._passed))
                except InterruptedError:
                    return
            self._stop.asked_by = self._stop.asked_by or signal.Signals(int(number))
            return


@contextmanager
def agreed(stop: Stop) -> Iterator[AgreedStop]:
    """Has all processes follow a request to stop at the same place, see `AgreedStop`."""
    found = AgreedStop(stop)
    if jax.process_count() == 1:
        yield found
        return
    found._thread.start()
    try:
        yield found
        gathered(None)  # a thread that ends may keep others waiting at their last place
    finally:
        found._is_over.set()
        found._thread.join()
