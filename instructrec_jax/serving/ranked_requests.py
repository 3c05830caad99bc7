"""A request through the queue: taken, made tokens, scored or found in the cache, and ranked."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.token_budget import MisfitError
from instructrec_jax.scores.ranked_files import Row
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.serving.batching import BusyError, LateError
from instructrec_jax.serving.gate import Call
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.score_cache import Keys, keys_of
from instructrec_jax.serving.state import Engine, Service
from instructrec_jax.serving.text_ranker import Prepared
from instructrec_jax.teacher.scrubbing import scrub


async def ranked(
    service: Service,
    engine: Engine,
    call: Call,
    values: Mapping[str, Any],
    *,
    templates: Sequence[str | None],
    normaliser: str,
) -> tuple[Prepared, list[Row]]:
    """Returns a request with its candidates, best first.

    Args:
      service: what counts.
      engine: what ranks.
      call: is told what is ranked.
      values: by the fields of a file of requests.
      templates: what writes the instruction, None for what suits the texts; the first one with
        which it fits.
      normaliser: what is ranked by.

    Raises:
      RefusedError: if the request cannot be used, or not now.
    """
    call.notes["candidates"] = len(values["candidates"])
    if service.audits_texts:
        call.notes["texts"] = _scrubbed(values)
    with taken(service, engine):
        prepared, keys = await asyncio.to_thread(_prepared, engine, values, templates)
        log_likelihood = service.cached(keys)
        if log_likelihood is None:
            log_likelihood = await engine.batcher.score(prepared.tokens, came=call.came)
            service.cache.keep(keys, log_likelihood)
    service.figures.candidates.inc(len(log_likelihood))
    return prepared, engine.ranker.ranked(prepared, log_likelihood, normaliser=normaliser)


@contextlib.contextmanager
def taken(service: Service, engine: Engine) -> Iterator[None]:
    """Counts a request as taken while the block scores it.

    Raises:
      RefusedError: if it cannot be scored now, or in time.
    """
    batcher = engine.batcher
    try:
        with batcher.taken():
            service.figures.taken.set(batcher.num_taken)
            yield
    except BusyError as busy:
        problem = "too many requests are waiting; try again later"
        raise RefusedError(429, "busy", problem, retry_after=busy.retry_after) from None
    except LateError:
        seconds = batcher.limits.deadline_seconds
        problem = f"it was not ranked within {seconds:g} seconds; ask for less, or later"
        raise RefusedError(503, "late", problem, retry_after=1) from None
    finally:
        service.figures.taken.set(batcher.num_taken)


async def score(
    service: Service, engine: Engine, call: Call, requests: Sequence[TokenRequest]
) -> list[np.ndarray]:
    """Returns the log-likelihoods of requests, float32 [c] each."""
    with taken(service, engine):
        scored = (engine.batcher.score(request, came=call.came) for request in requests)
        return await asyncio.gather(*scored)


def _prepared(
    engine: Engine, values: Mapping[str, Any], templates: Sequence[str | None]
) -> tuple[Prepared, Keys]:
    """Returns a request as tokens, and the names of its candidates in the cache.

    Raises:
      RefusedError: if it cannot be used.
    """
    *first, last = templates
    prepared = None
    try:
        for template in first:
            with contextlib.suppress(MisfitError):
                prepared = engine.ranker.prepare(values, template=template)
                break
        if prepared is None:
            prepared = engine.ranker.prepare(values, template=last)
    except UserError as error:
        name = f"request {values['id']!r}: "  # which nobody else could have sent
        raise RefusedError(422, "unusable", str(error).removeprefix(name)) from None
    return prepared, keys_of(engine.fingerprint, prepared.tokens)


def _scrubbed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts of a request without personal details."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        return scrub(value) if isinstance(value, str) else value

    return {name: clean(value) for name, value in values.items() if name != "id"}
