"""Asks many questions at once, one request each.

A question is claimed in the ledger before it is sent, and its place in flight is free again once
its answer is safe on disk. So a run that is killed loses at most what is in flight; at any other
end (Ctrl-C, SIGTERM, no money left, a full disk) what was sent is awaited.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import time
from typing import Any

from instructrec_jax.progress import Stop
from instructrec_jax.teacher.claiming import Claiming
from instructrec_jax.teacher.likelihoods import NoLogProbsError
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.server import RefusedError, Server, TryAgainError
from instructrec_jax.teacher.settings import ClientSettings

logger = logging.getLogger(__name__)
_TICK_SECONDS = 0.25  # between two looks for a signal
_FIRST_TRIES = 3  # to reach a server that has not answered yet
_FIRST_WAIT_SECONDS = 0.5  # at most, before the second try; doubles with each
_LONG_SECONDS = 60.0  # a pause that a person wants to know of
_STATES = {"perhaps": "lost", "yes": "broken"}


class _NotSentError(Exception):
    """A claimed question is not sent, since the run ends."""


class _NotClaimedError(Exception):
    """A question was not claimed again after a try that may be billed; it is waiting again."""


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What came of one claimed question.

    Attributes:
      question: that was claimed.
      answer: None where there is none.
      failure: of the last try; None where it was not sent.
      is_settled: whether nothing of it is left to enter.
    """

    question: Question
    answer: Answer | None = None
    failure: TryAgainError | None = None
    is_settled: bool = False


class Online:
    """One run of requests."""

    def __init__(self, claiming: Claiming, settings: ClientSettings, stop: Stop) -> None:
        import tenacity  # nothing offline needs it

        self._tenacity = tenacity
        self._claiming, self._settings, self._stop = claiming, settings, stop
        self._pace = _Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=60)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._done: list[_Outcome] = []
        self._in_flight = 0

    async def run(self, server: Server) -> None:
        """Asks until nothing is left or something ends it, and awaits what was sent."""
        self._server = server
        self._wakes, self._ends = asyncio.Event(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        with self._thread:
            while True:
                if self._stop.is_asked or self._claiming.problem:
                    self._ends.set()
                done, self._done = self._done, []
                claimed, may_wait = await self._in_thread(self._exchange, done)
                self._in_flight += len(claimed)
                for question in claimed:
                    task = asyncio.create_task(self._finish(question))
                    tasks.add(task)  # the loop itself keeps no task alive
                    task.add_done_callback(tasks.discard)
                if not self._in_flight and (self._ends.is_set() or self._claiming.is_over):
                    return
                if may_wait:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._wakes.wait(), _TICK_SECONDS)
                    self._wakes.clear()

    def _exchange(self, done: list[_Outcome]) -> tuple[list[Question], bool]:
        """Enters what is done and claims what there is room for; in the ledger's thread.

        Returns:
          What was claimed, and whether there is nothing to do until a request ends.
        """
        self._in_flight -= len(done)
        claiming, ledger = self._claiming, self._claiming.ledger
        room = 0 if self._ends.is_set() else self._settings.max_in_flight - self._in_flight
        skipped = claiming.counts["answered_before"]
        wanted = claiming.take(room) if room else []
        claimed = []
        if done or wanted:
            enter = functools.partial(self._enter_all, done)
            claimed = claiming.exchange(enter, wanted, in_flight=self._in_flight)
        for outcome in done:
            if outcome.answer is not None:
                claiming.enter_answer(outcome.answer)
            elif outcome.failure is not None:
                claiming.enter_failure(outcome.failure.reason, outcome.failure.said)
            elif not outcome.is_settled:
                claiming.put_back([outcome.question])
        ledger.renew()
        has_moved = claimed or claiming.counts["answered_before"] > skipped
        return claimed, not (has_moved and len(claimed) < room)

    def _enter_all(self, done: list[_Outcome]) -> None:
        """Enters outcomes in the ledger."""
        ledger = self._claiming.ledger
        for outcome in done:
            key = outcome.question.key
            if outcome.is_settled:
                continue
            if outcome.answer is not None:
                ledger.record(outcome.answer)
            elif outcome.failure is None or outcome.failure.billed == "no":
                ledger.give_back(key)
            else:
                state = _STATES[outcome.failure.billed]
                ledger.fail(key, state=state, raw=outcome.failure.said)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _finish(self, question: Question) -> None:
        outcome = await self._outcome(question)  # first: meanwhile the list becomes another
        self._done.append(outcome)
        self._wakes.set()

    async def _outcome(self, question: Question) -> _Outcome:
        """Asks one question until it is answered or given up."""
        retrying = self._tenacity.AsyncRetrying(
            retry=self._tenacity.retry_if_exception_type(TryAgainError),
            stop=self._is_last,
            wait=self._seconds_to_wait,
            before_sleep=functools.partial(self._charge_again, question),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return _Outcome(question, answer=await retrying(self._send, question))
        except TryAgainError as error:
            if error.is_unreachable:
                self._end(self._server.unreachable(error.said))
                return _Outcome(question)
            return _Outcome(question, failure=error)
        except RefusedError as error:
            failure = TryAgainError("refused by the server", str(error), billed="no")
            return _Outcome(question, failure=failure)
        except NoLogProbsError as error:
            self._end(error)
            failure = TryAgainError("no log-probabilities", str(error), billed="yes")
            return _Outcome(question, failure=failure)
        except _NotSentError:
            return _Outcome(question)
        except _NotClaimedError:
            return _Outcome(question, is_settled=True)
        except Exception as error:
            self._end(error)
            return _Outcome(question)

    async def _send(self, question: Question) -> Answer:
        if (seconds := self._pace.seconds_for(question)) > 0:
            await self._sleep(seconds)
        if self._ends.is_set():
            raise _NotSentError
        return await self._server.ask(question, self._claiming.price(question.model))

    def _end(self, problem: Exception) -> None:
        self._claiming.problem = self._claiming.problem or problem
        self._ends.set()

    def _is_last(self, state: Any) -> bool:
        """Returns whether a failed try was the last; tenacity's `stop`."""
        error, tries = state.outcome.exception(), state.attempt_number
        if error.is_unreachable and not self._claiming.counts["answered"]:
            return tries >= min(_FIRST_TRIES, self._settings.max_tries)
        return tries >= self._settings.max_tries

    def _seconds_to_wait(self, state: Any) -> float:
        """Returns the time before the next try; tenacity's `wait`."""
        asked = state.outcome.exception().wait_seconds
        if asked is not None:
            self._pace.pause(asked)
            if asked > _LONG_SECONDS:
                logger.warning("the server asks to wait %.0f seconds", asked)
        return (asked or 0.0) + self._backoff(state)

    async def _charge_again(self, question: Question, state: Any) -> None:
        """Counts a failed try that may be billed, and claims the next; tenacity's `before_sleep`.

        Raises:
          _NotClaimedError: if there is not enough money for another.
        """
        error = state.outcome.exception()
        if error.billed == "no":
            return

        def enter() -> None:
            failed = _STATES[error.billed]
            self._claiming.ledger.fail(question.key, state=failed, raw=error.said)

        exchange = functools.partial(self._claiming.exchange, in_flight=self._in_flight)
        if not await self._in_thread(exchange, enter, [question]):
            raise _NotClaimedError

    async def _sleep(self, seconds: float) -> None:
        """Waits; raises _NotSentError if the run ends meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ends.wait(), seconds)
            raise _NotSentError


class _Pace:
    """Limits of requests and tokens per minute: requests are spread evenly."""

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._seconds_per_request = 60.0 / requests if requests else 0.0
        self._seconds_per_token = 60.0 / tokens if tokens else 0.0
        self._free_at = 0.0

    def seconds_for(self, question: Question) -> float:
        """Enters one request, and returns how long it has to wait."""
        tokens = len(question.text) // 4 + question.max_tokens
        now = time.monotonic()
        begins = max(now, self._free_at)
        seconds = max(self._seconds_per_request, tokens * self._seconds_per_token)
        self._free_at = begins + seconds
        return begins - now

    def pause(self, seconds: float) -> None:
        """Holds all requests back: the server says that they are too many."""
        self._free_at = max(self._free_at, time.monotonic() + seconds)
