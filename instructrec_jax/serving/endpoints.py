"""What the service answers: each path with its scope, its bodies and its handler."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from instructrec_jax.errors import UserError
from instructrec_jax.instructions.token_budget import MisfitError
from instructrec_jax.scores.ranked_files import Row
from instructrec_jax.serving import bodies, tokens
from instructrec_jax.serving.batching import Batcher, BusyError, LateError
from instructrec_jax.serving.gate import OPEN, Call
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.text_ranker import Prepared, TextRanker
from instructrec_jax.teacher.scrubbing import scrub

# What writes the instruction of a rerank request; the second shows no documents, so that any
# number of them fits.
RERANK_TEMPLATES = ("B7.specific", "B1.specific")
_NOT_OF_THE_ROW = {"template", "normaliser", "top_n", "explain", "record", "user_id"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of the model.

    Attributes:
      name: of it in answers.
      made: when it was written, seconds since 1970.
      normaliser: what it ranks by unless asked otherwise.
      template: what writes the instructions; None: one that suits each request.
      max_candidates: the most that a request may hold.
    """

    name: str
    made: int
    normaliser: str
    template: str | None
    max_candidates: int


@dataclasses.dataclass(kw_only=True)
class Service:
    """What the handlers work with.

    Attributes:
      card: of the model.
      ranker: makes tokens of texts.
      batcher: scores tokens.
      figures: what is counted.
      audits_texts: whether the audit log tells texts, without personal details.
      is_ready: whether everything is compiled.
    """

    card: ModelCard
    ranker: TextRanker
    batcher: Batcher
    figures: Figures
    audits_texts: bool = False
    is_ready: bool = False


Handler = Callable[[Service, Call, Any], Awaitable[BaseModel]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Something that can be asked.

    Attributes:
      method: of HTTP.
      path: where.
      scope: what a token has to allow: a scope, "" for any token, or `gate.OPEN`.
      summary: one line for the OpenAPI document.
      handler: answers.
      answer: what it answers.
      body: what it is asked with, if that has a body.
    """

    method: str
    path: str
    scope: str
    summary: str
    handler: Handler
    answer: type[BaseModel]
    body: type[BaseModel] | None = None


async def health(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers as long as the process does."""
    return bodies.Health(status="ok")


async def readiness(service: Service, call: Call, body: None) -> bodies.Health:
    """Answers once requests can be ranked without waiting for a compiler."""
    _check_ready(service)
    return bodies.Health(status="ready")


async def models(service: Service, call: Call, body: None) -> bodies.Models:
    """Tells of the model."""
    card, lengths = service.card, service.ranker.lengths
    served = bodies.ServedModel(
        id=card.name,
        created=card.made,
        normaliser=card.normaliser,
        input_tokens=lengths["inputs"],
        target_tokens=lengths["targets"],
        max_candidates=card.max_candidates,
    )
    return bodies.Models(data=[served])


async def rank(service: Service, call: Call, body: bodies.RankRequest) -> bodies.RankAnswer:
    """Ranks candidates as `instructrec score --model` does."""
    _check_number(service, len(body.candidates), "candidates")
    values = body.model_dump(exclude=_NOT_OF_THE_ROW, exclude_none=True)
    values.setdefault("id", call.request_id)
    template = body.template or (None if body.instruction else service.card.template)
    normaliser = body.normaliser or service.card.normaliser
    prepared, rows = await ranked(
        service, call, values, templates=[template], normaliser=normaliser
    )
    index_of = {number: at for at, number in enumerate(body.candidate_ids or ())}
    return bodies.RankAnswer(
        id=values["id"],
        model=service.card.name,
        template=prepared.template,
        normaliser=normaliser,
        candidates=[
            bodies.RankedTitle(
                rank=row["rank"],
                index=index_of[row["candidate_id"]] if index_of else row["candidate_id"],
                candidate=row["candidate"],
                candidate_id=row["candidate_id"],
                score=row["score"],
                log_likelihood=row["log_likelihood"],
            )
            for row in rows[: body.top_n]
        ],
        explanation=_explanation(service, prepared) if body.explain else None,
    )


async def rerank(service: Service, call: Call, body: bodies.RerankRequest) -> bodies.RerankAnswer:
    """Ranks documents for a query; equal ones share a score."""
    _check_number(service, len(body.documents), "documents")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    shares, num_tokens = await _shares(service, call, body.query, list(dict.fromkeys(texts)))
    order = sorted(range(len(texts)), key=lambda index: -shares[texts[index]])
    results = [
        bodies.RerankResult(
            index=index,
            relevance_score=shares[texts[index]],
            document=bodies.Document(text=texts[index]) if body.return_documents else None,
        )
        for index in order[: body.top_n]
    ]
    return bodies.RerankAnswer(
        id=call.request_id,
        model=service.card.name,
        results=results,
        usage={"total_tokens": num_tokens},
        meta={"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    )


async def ranked(
    service: Service,
    call: Call,
    values: Mapping[str, Any],
    *,
    templates: Sequence[str | None],
    normaliser: str,
) -> tuple[Prepared, list[Row]]:
    """Returns a request with its candidates, best first.

    Args:
      service: what ranks.
      call: is told what is ranked.
      values: by the fields of a file of requests.
      templates: what writes the instruction, None for what suits the texts; the first one with
        which it fits.
      normaliser: what is ranked by.

    Raises:
      RefusedError: if the request cannot be used, or not now.
    """
    _check_ready(service)
    call.notes["candidates"] = len(values["candidates"])
    if service.audits_texts:
        call.notes["texts"] = _scrubbed(values)
    try:
        with service.batcher.taken():
            service.figures.taken.set(service.batcher.num_taken)
            prepared = await asyncio.to_thread(_prepared, service.ranker, values, templates)
            log_likelihood = await service.batcher.score(prepared.tokens)
    except BusyError as busy:
        problem = "too many requests are waiting; try again later"
        raise RefusedError(429, "busy", problem, retry_after=busy.retry_after) from None
    except LateError:
        seconds = service.batcher.limits.deadline_seconds
        problem = f"it was not ranked within {seconds:g} seconds; ask for less, or later"
        raise RefusedError(503, "late", problem, retry_after=1) from None
    finally:
        service.figures.taken.set(service.batcher.num_taken)
    service.figures.candidates.inc(len(log_likelihood))
    return prepared, service.ranker.ranked(prepared, log_likelihood, normaliser=normaliser)


def _prepared(
    ranker: TextRanker, values: Mapping[str, Any], templates: Sequence[str | None]
) -> Prepared:
    """Returns a request as tokens.

    Raises:
      RefusedError: if it cannot be used.
    """
    *first, last = templates
    try:
        for template in first:
            with contextlib.suppress(MisfitError):
                return ranker.prepare(values, template=template)
        return ranker.prepare(values, template=last)
    except UserError as error:
        raise RefusedError(422, "unusable", str(error)) from None


async def _shares(
    service: Service, call: Call, query: str, texts: list[str]
) -> tuple[dict[str, float], int]:
    """Returns the share of each document in the probability of all, and how many tokens it took."""
    if len(texts) == 1:
        return {texts[0]: 1.0}, 0
    values = {"id": call.request_id, "intention": query, "candidates": texts}
    prepared, rows = await ranked(
        service,
        call,
        values,
        templates=RERANK_TEMPLATES,
        normaliser=service.card.normaliser,
    )
    scores = np.array([row["score"] for row in rows], np.float64)
    weights = np.exp(scores - scores.max())
    found = zip((row["candidate"] for row in rows), weights / weights.sum(), strict=True)
    request = prepared.tokens
    return dict(found), len(request.instruction) + sum(map(len, request.candidates))


def _check_ready(service: Service) -> None:
    if not service.is_ready:
        problem = "the model is being compiled; try again later"
        raise RefusedError(503, "starting", problem, retry_after=5)


def _check_number(service: Service, number: int, what: str) -> None:
    if number > (most := service.card.max_candidates):
        problem = f"holds {number} {what}; at most {most} are taken: send the best of a retriever"
        raise RefusedError(422, f"too_many_{what}", problem)


def _explanation(service: Service, prepared: Prepared) -> bodies.Explanation:
    return bodies.Explanation(
        instruction=service.ranker.instruction_text(prepared),
        num_history_hidden=prepared.num_history_hidden,
        num_titles_cut=prepared.num_titles_cut,
        num_tokens=len(prepared.tokens.instruction),
    )


def _scrubbed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts of a request without personal details."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        return scrub(value) if isinstance(value, str) else value

    return {name: clean(value) for name, value in values.items() if name != "id"}


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/healthz",
        scope=OPEN,
        summary="whether the process is alive",
        handler=health,
        answer=bodies.Health,
    ),
    Endpoint(
        method="GET",
        path="/readyz",
        scope=OPEN,
        summary="whether requests can be ranked",
        handler=readiness,
        answer=bodies.Health,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        scope="",
        summary="the model and what it takes",
        handler=models,
        answer=bodies.Models,
    ),
    Endpoint(
        method="POST",
        path="/v1/rank",
        scope=tokens.RANK,
        summary="rank candidates",
        handler=rank,
        answer=bodies.RankAnswer,
        body=bodies.RankRequest,
    ),
    *(
        Endpoint(
            method="POST",
            path=path,
            scope=tokens.RANK,
            summary="rank documents for a query, as Cohere's and Jina's clients ask",
            handler=rerank,
            answer=bodies.RerankAnswer,
            body=bodies.RerankRequest,
        )
        for path in ("/v1/rerank", "/v2/rerank")
    ),
)
