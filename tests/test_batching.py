"""Requests in batches: who waits for whom, who is refused, and what fails alone."""

import asyncio
import threading
import time

import numpy as np
import pytest

from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.serving.batching import Batcher, BusyError, LateError, Limits

LIMITS = {"max_waiting": 4, "max_batch": 3, "batch_seconds": 0.0, "deadline_seconds": 30.0}


def request(number, length=1):
    tokens = np.full(length, 1, np.int32)
    return TokenRequest(request_id=str(number), instruction=tokens, candidates=[tokens])


class Scorer:
    """Answers each request with its number; waits where it is told to."""

    def __init__(self):
        self.batches, self.may_go = [], threading.Event()

    def __call__(self, requests):
        self.may_go.wait(20)
        names = [int(each.request_id) for each in requests]
        self.batches.append(names)
        if 13 in names:
            raise ValueError("13")
        return [np.array([name], np.float32) for name in names]


def run(body, scorer, **limits):
    async def main():
        batcher = Batcher(scorer, fits=lambda _: True, limits=Limits(**LIMITS | limits))
        running = asyncio.create_task(batcher.run())
        try:
            return await body(batcher)
        finally:
            scorer.may_go.set()
            batcher.close()
            await running

    return asyncio.run(main())


async def ask(batcher, number, came=None):
    with batcher.taken():
        came = time.monotonic() if came is None else came
        return (await batcher.score(request(number), came=came))[0]


def test_what_gathers_while_a_batch_is_scored_is_the_next_one():
    scorer = Scorer()

    async def body(batcher):
        first = asyncio.create_task(ask(batcher, 0))
        await asyncio.sleep(0.05)  # it is being scored
        others = [asyncio.create_task(ask(batcher, number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as busy:
            await ask(batcher, 4)  # four are taken
        assert busy.value.retry_after >= 1
        scorer.may_go.set()
        return await asyncio.gather(first, *others)

    assert run(body, scorer) == [0, 1, 2, 3]
    assert scorer.batches == [[0], [1, 2, 3]]


def test_one_request_that_fails_leaves_the_others_of_its_batch_alone():
    scorer = Scorer()

    async def body(batcher):
        asked = [asyncio.create_task(ask(batcher, number)) for number in (1, 13, 3)]
        await asyncio.sleep(0)
        scorer.may_go.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = run(body, scorer)
    assert (first, last) == (1, 3) and isinstance(failed, ValueError)


def test_what_was_taken_is_answered_after_the_end_was_asked_for():
    scorer = Scorer()

    async def body(batcher):
        with batcher.taken():  # still being read when the end is asked for
            batcher.close()
            await asyncio.sleep(0.05)
            scorer.may_go.set()
            return (await batcher.score(request(5), came=time.monotonic()))[0]

    assert run(body, scorer) == 5


def test_a_deadline_counts_from_the_arrival():
    async def body(batcher):
        with pytest.raises(LateError):
            await ask(batcher, 1, came=time.monotonic() - 29.9)

    scorer = Scorer()
    run(body, scorer)


def test_what_would_be_late_is_refused_at_once():
    scorer = Scorer()

    async def body(batcher):
        batcher._pace = 10.0  # seconds a token
        first = asyncio.create_task(ask(batcher, 1))
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as busy:
            await ask(batcher, 2)
        scorer.may_go.set()
        return await first, busy.value.retry_after

    assert run(body, scorer) == (1, 20)
