"""Work of many parts in other processes of this machine, which never outlive this one."""

import collections
import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from instructrec_jax.errors import UserError

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def map_parts(
    work: Callable[[_Part], _Result], parts: Sequence[_Part], *, num_workers: int
) -> Iterator[_Result]:
    """Yields what a function makes of each part, in order.

    Ctrl-C reaches this process alone. Whatever ends it, `kill -9` too, its workers end with it.

    Args:
      work: what is done; it and the parts must be picklable if there are several processes.
      parts: what it is done to.
      num_workers: processes; 1 for this one alone.
    """
    if num_workers == 1:
        yield from map(work, parts)
        return
    # Not forked: TensorFlow has threads by now.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_watch_parent
    )
    wait = True
    try:
        # A new process inherits which signals are blocked, from its first instruction on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running = collections.deque(pool.submit(work, part) for part in parts)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; run the same command again, "
            "if need be with fewer --num_workers"
        ) from None
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)


def _watch_parent() -> None:
    """Ends this worker as soon as the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
