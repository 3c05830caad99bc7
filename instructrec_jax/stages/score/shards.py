"""Scores sets shard by shard, together with any number of other processes on the same folder."""

import contextlib
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from instructrec_jax.damage import Damage
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.stopping import AgreedStop
from instructrec_jax.progress import Progress, StopAskedError
from instructrec_jax.scores import parts
from instructrec_jax.scores.claims import Claims
from instructrec_jax.scores.parts import ScoredRequest, Shard
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.stages.score.request_sets import PendingRequest, SetReader

logger = logging.getLogger(__name__)
CLAIMS = "claims"
_POLL_SECONDS = 0.5
_Item = TypeVar("_Item")

ScoreRequests = Callable[[Sequence[TokenRequest]], list[np.ndarray]]
Ready = tuple[SetReader, Shard, list[PendingRequest], Damage]


def score_shards(
    readers: Sequence[SetReader],
    folder: Path,
    *,
    score: ScoreRequests,
    metadata: Mapping[str, Mapping[str, Any]],
    stop: AgreedStop,
    stale_seconds: float,
) -> bool:
    """Writes the parts of all shards that nobody has written, and waits for those of others.

    The next shard is read, rendered and tokenised while one is scored. Of processes that run
    together the first one claims shards and writes their parts; all read and score them.

    Args:
      readers: of the sets that are scored.
      folder: where parts and claims lie.
      score: gives the log-likelihoods of requests, float32 [c] each.
      metadata: what the parts of each template say of where they come from.
      stop: asks to stop: the shard being scored is dropped, by several processes finished.
      stale_seconds: age after which the claim of another process is dead.

    Returns:
      Whether all parts are there; False after a request to stop.

    Raises:
      UserError: if a request cannot be used, or the disk is full.
    """
    work = [(reader, shard) for reader in readers for shard in reader.set.shards()]
    names, num_tied, mark = {shard.file_name for _, shard in work}, 0, time.monotonic()

    def num_written() -> int:
        return len(names.intersection(os.listdir(folder)))

    progress = Progress(
        "score", total=len(names), unit="parts", done=num_written(), seconds_between_lines=0.0
    )
    with progress, Claims(folder / CLAIMS, stale_seconds=stale_seconds) as claims:
        ahead = ReadAhead(lambda is_over: _read(work, folder, claims, is_over))
        with contextlib.closing(ahead):
            while True:
                try:
                    with stop.interrupts():
                        ready = ahead.next()
                        if ready is None:
                            break
                        reader, shard, requests, damage = ready
                        render = functools.partial(reader.next_round, damage=damage)
                        decided = decide(requests, score=score, render=render)
                except StopAskedError:
                    logger.info(
                        "stopped on SIGTERM; the same command goes on: %d of %d parts are there",
                        *(num_written(), len(names)),
                    )
                    return False
                num_tied += sum(request.has_equal_candidates for request in requests)
                if not processes.is_main():
                    continue
                number = _write(folder, shard, decided, metadata[shard.template], damage)
                claims.give_back(shard.file_name)
                rate, mark = number / (time.monotonic() - mark), time.monotonic()
                note = f"{shard.file_name}: {len(decided)} requests, {rate:.0f} candidates/s"
                progress.advance(num_written() - progress.done, note)
    if num_tied and processes.is_main():
        logger.warning(
            "%d requests hold candidates of equal tokens: no model tells these apart, so they tie",
            num_tied,
        )
    return True


def decide(
    requests: Sequence[PendingRequest],
    *,
    score: ScoreRequests,
    render: Callable[[Sequence[PendingRequest]], list[PendingRequest]],
) -> list[ScoredRequest]:
    """Scores round after round, each of all requests at once, until all are decided.

    Args:
      requests: with the prompts of their first round.
      score: gives the log-likelihoods of requests, float32 [c] each.
      render: gives requests the prompts of their next round; those that it leaves out are dropped.

    Returns:
      What is decided, in the order of the requests.
    """
    waiting = list(requests)
    while waiting:
        scored = iter(score([prompt for request in waiting for prompt in request.prompts]))
        for request in waiting:
            request.take(scored)
        waiting = [request for request in waiting if request.outcome is None]
        waiting = render(waiting) if waiting else []
    return [request.scored for request in requests if request.outcome is not None]


def _read(
    work: Sequence[tuple[SetReader, Shard]],
    folder: Path,
    claims: Claims,
    is_over: threading.Event,
) -> Iterator[Ready]:
    """Reads the shards that this process, or the first of those that run together, claims."""
    shards = [shard for _, shard in work]
    claimed = _claimed(shards, folder, claims, is_over) if processes.is_main() else iter(())
    channel = processes.Channel("shards", is_over)
    while (index := channel.gathered(next(claimed, None))[0]) is not None:
        reader, shard = work[index]
        yield reader, shard, *reader.read(shard)


def _claimed(
    shards: Sequence[Shard], folder: Path, claims: Claims, is_over: threading.Event
) -> Iterator[int]:
    """Yields the index of each shard that could be claimed, until all parts are there."""
    left = list(range(len(shards)))
    is_waiting = False
    while left:
        taken, num_taken = [], 0
        for index in left:
            shard = shards[index]
            if parts.is_written(folder, shard):
                continue
            if not claims.take(shard.file_name):
                taken.append(index)
            elif parts.is_written(folder, shard):  # by another process, a moment ago
                claims.give_back(shard.file_name)
            else:
                num_taken += 1
                yield index
        if taken and not num_taken:
            if not is_waiting:
                logger.info("waiting for %d parts that other processes are at", len(taken))
            is_waiting = True
            if is_over.wait(_POLL_SECONDS):
                return
        left = taken


def _write(
    folder: Path,
    shard: Shard,
    decided: Sequence[ScoredRequest],
    metadata: Mapping[str, Any],
    damage: Damage,
) -> int:
    """Writes a part, unless another process has written the same and tidied up.

    Returns:
      How many candidates it holds.
    """
    rows = parts.score_rows(shard.template, decided, normaliser=metadata["normaliser"])
    try:
        parts.write_part(folder / shard.file_name, rows, metadata, damage)
    except FileNotFoundError:
        if not parts.is_written(folder, shard):
            raise
    return sum(len(row["candidate_ids"]) for row in rows)


class ReadAhead(Generic[_Item]):
    """Runs an iterator in a thread, one item ahead of its reader."""

    def __init__(self, make: Callable[[threading.Event], Iterator[_Item]]) -> None:
        """Starts the thread.

        Args:
          make: makes the iterator, which ends early where the event is set.
        """
        self._is_over = threading.Event()
        self._slots = threading.Semaphore(1)
        self._items: queue.SimpleQueue[_Item | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(make,), name="reader", daemon=True)
        self._thread.start()

    def next(self) -> _Item | None:
        """Returns the next item, None after the last; raises what the iterator raised."""
        item = self._items.get()
        self._slots.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread."""
        self._is_over.set()
        self._slots.release()
        self._thread.join()

    def _run(self, make: Callable[[threading.Event], Iterator[_Item]]) -> None:
        last: BaseException | None = None
        try:
            items = make(self._is_over)
            while self._slots.acquire() and not self._is_over.is_set():
                item = next(items, None)
                if item is None:
                    break
                self._items.put(item)
        except BaseException as error:
            last = error
        self._items.put(last)
