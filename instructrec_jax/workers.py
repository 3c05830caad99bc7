"""Work of many parts in other processes of this machine, and which of them live."""

import hashlib
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from instructrec_jax.errors import UserError

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def map_parts(
    work: Callable[[_Part], _Result], parts: Sequence[_Part], *, num_workers: int
) -> Iterator[_Result]:
    """Yields what a function makes of each part, in order.

    Ctrl-C reaches this process alone. Whatever ends it, `kill -9` too, its workers end with it.
    They share no queue and no lock, so that nothing is left of them.

    Args:
      work: what is done; it and the parts must be picklable if there are several processes.
      parts: what it is done to.
      num_workers: processes; 1 for this one alone.

    Raises:
      UserError: if a worker is killed.
    """
    if num_workers == 1:
        yield from map(work, parts)
        return
    workers = _start(work, min(num_workers, len(parts)))
    try:
        waiting = enumerate(parts)
        busy = set(workers)
        for connection in workers:
            connection.send(next(waiting))
        done: dict[int, _Result] = {}
        for number in range(len(parts)):
            while number not in done:
                wait(list(busy))
                for connection in [ready for ready in busy if ready.poll()]:
                    index, result = _received(connection)
                    done[index] = result
                    if (part := next(waiting, None)) is None:
                        busy.remove(connection)
                    else:
                        connection.send(part)
            yield done.pop(number)
    except KeyboardInterrupt:
        for process in workers.values():
            process.kill()
        raise
    finally:
        for connection, process in workers.items():
            connection.close()  # no more work: it ends after what it is at
            process.join()


def _start(work: Callable[[Any], Any], number: int) -> dict[Connection, Any]:
    """Starts workers; returns each by the connection to it."""
    context = multiprocessing.get_context("spawn")  # not forked: TensorFlow has threads by now
    workers = {}
    # A new process inherits which signals are blocked, from its first instruction on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return workers


def _received(connection: Connection) -> tuple[int, Any]:
    """Returns the index of a part and what a worker made of it, or raises what it raised."""
    try:
        index, result, error = connection.recv()
    except (EOFError, ConnectionResetError):
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; run the same command again, "
            "if need be with fewer --num_workers"
        ) from None
    if error is not None:
        raise error
    return index, result


def _serve(work: Callable[[Any], Any], connection: Connection) -> None:
    """Does the parts that come, until no more do."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    try:
        while (numbered := connection.recv()) is not None:
            index, part = numbered
            try:
                connection.send((index, work(part), None))
            except Exception as error:
                error.add_note(traceback.format_exc())
                connection.send((index, None, error))
    except (EOFError, BrokenPipeError):
        return


def _end_with(sentinel: int) -> None:
    """Ends this process as soon as the one that started it is gone."""
    wait([sentinel])
    os._exit(1)


def host_id() -> str:
    """Returns what tells this host from others, without its name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]


def is_alive(pid: object) -> bool:
    """Returns whether there is a process of this number on this host."""
    try:
        os.kill(int(str(pid)), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
