"""Requests that arrive one by one, scored in batches: at once where the scorer is free.

While one batch is scored, the requests of the next gather. A request that would have to wait too
long is refused when it comes, so that those that are taken are answered in time.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from instructrec_jax.scoring.prefix_trees import TokenRequest

_NEW_SHARE = 0.2  # of a batch's pace in the running mean
_SURE = 0.8  # of the time that is left may be planned with: what comes takes more or less
Score = Callable[[Sequence[TokenRequest]], list[np.ndarray]]


class BusyError(Exception):
    """A request that is not taken.

    Attributes:
      retry_after: whole seconds after which another try may succeed.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy")
        self.retry_after = max(1, math.ceil(retry_after))


class LateError(Exception):
    """A request that was taken and not answered before its deadline."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What bounds the work that is taken.

    Attributes:
      max_waiting: requests that are prepared, waiting or being scored.
      max_batch: requests that are scored at once.
      batch_seconds: how long the first request of a batch waits for others that are taken and not
        yet prepared.
      deadline_seconds: how long a request may take.
    """

    max_waiting: int
    max_batch: int
    batch_seconds: float
    deadline_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """A request in the queue, with the time when it came there."""

    request: TokenRequest
    work: int  # tokens
    came: float
    answer: asyncio.Future[np.ndarray]


class Batcher:
    """The queue before a scorer; all methods run in one event loop, the scorer in a thread."""

    def __init__(
        self,
        score: Score,
        *,
        fits: Callable[[Sequence[TokenRequest]], bool],
        limits: Limits,
        observe: Callable[[int, float], None] = lambda number, seconds: None,
    ) -> None:
        """Makes an empty queue.

        Args:
          score: gives the log-likelihoods of requests, float32 [c] each.
          fits: whether requests may be scored at once.
          limits: what is taken.
          observe: is told the number of requests of each batch, and the seconds it took.
        """
        self.limits, self.num_taken = limits, 0
        self._score, self._fits, self._observe = score, fits, observe
        self._queue: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._is_closing = False
        self._work = 0  # tokens that wait or are being scored
        self._pace = 0.0  # seconds a token
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "scorer")

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Counts a request as taken while the block runs.

        Raises:
          BusyError: if there are as many as may be.
        """
        if self.num_taken >= self.limits.max_waiting:
            raise BusyError(self._work * self._pace)
        self.num_taken += 1
        try:
            yield
        finally:
            self.num_taken -= 1
            self._arrived.set()  # a queue that is closing may be empty now

    async def score(self, request: TokenRequest, *, came: float) -> np.ndarray:
        """Returns the log-likelihoods of a request, float32 [c].

        Args:
          request: what is scored.
          came: when it came to the service, by `time.monotonic`, as the loop counts time.

        Raises:
          BusyError: if those before it take longer than the deadline.
          LateError: if it was not scored before its deadline.
        """
        loop, limit = asyncio.get_running_loop(), self.limits.deadline_seconds
        work = len(request.instruction) + sum(map(len, request.candidates))
        now = loop.time()
        left = came + limit - now
        if self._work and (self._work + work) * self._pace > left * _SURE:
            raise BusyError(self._work * self._pace)
        waiting = _Waiting(
            request=request,
            work=work,
            came=now,
            answer=loop.create_future(),
        )
        self._queue.append(waiting)
        self._work += work
        self._arrived.set()
        try:
            return await asyncio.wait_for(waiting.answer, left)
        except TimeoutError:
            raise LateError from None

    async def run(self) -> None:
        """Scores batch after batch, until `close` is called and nothing waits."""
        while batch := await self._next_batch():
            live = [each for each in batch if not each.answer.done()]
            if live:
                await self._answer(live)
            self._work -= sum(each.work for each in batch)
        self._thread.shutdown(wait=False)

    async def in_scorer_thread(self, work: Callable[[], None]) -> None:
        """Does work in the scorer's thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Lets `run` end once what was taken is answered."""
        self._is_closing = True
        self._arrived.set()

    async def _answer(self, batch: list[_Waiting]) -> None:
        """Scores requests at once; where that fails, one by one, so that no other suffers."""
        loop = asyncio.get_running_loop()
        began, requests = loop.time(), [each.request for each in batch]
        try:
            found = await loop.run_in_executor(self._thread, self._score, requests)
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    await self._answer([each])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        seconds = loop.time() - began
        pace = seconds / sum(each.work for each in batch)
        self._pace += (pace - self._pace) * (_NEW_SHARE if self._pace else 1.0)
        self._observe(len(batch), seconds)
        for each, values in zip(batch, found, strict=True):
            if not each.answer.done():
                each.answer.set_result(values)

    async def _next_batch(self) -> list[_Waiting]:
        """Waits for requests; returns none where there is nothing left to do."""
        loop = asyncio.get_running_loop()
        while not self._queue:
            if self._is_closing and not self.num_taken:
                return []
            await self._wait(None)
        last = self._queue[0].came + self.limits.batch_seconds
        while len(self._queue) < min(self.limits.max_batch, self.num_taken):
            if (left := last - loop.time()) <= 0:
                break
            await self._wait(left)
        batch = [self._queue.popleft()]
        while self._queue and len(batch) < self.limits.max_batch:
            if not self._fits([each.request for each in (*batch, self._queue[0])]):
                break
            batch.append(self._queue.popleft())
        return batch

    async def _wait(self, seconds: float | None) -> None:
        """Waits until a request arrives, at most some seconds."""
        self._arrived.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)
