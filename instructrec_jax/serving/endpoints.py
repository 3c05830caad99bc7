"""What the service answers: each path with its scope, its bodies and its handler."""

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel

from instructrec_jax.serving import bodies, feedback_handlers, handlers, tokens
from instructrec_jax.serving.gate import OPEN, Call
from instructrec_jax.serving.state import Service

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
      absent: when it answers 404; "" for never.
    """

    method: str
    path: str
    scope: str
    summary: str
    handler: Handler
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    absent: str = ""


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/healthz",
        scope=OPEN,
        summary="whether the process is alive",
        handler=handlers.health,
        answer=bodies.Health,
    ),
    Endpoint(
        method="GET",
        path="/readyz",
        scope=OPEN,
        summary="whether requests can be ranked",
        handler=handlers.readiness,
        answer=bodies.Health,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        scope="",
        summary="the model and what it takes",
        handler=handlers.models,
        answer=bodies.Models,
    ),
    Endpoint(
        method="POST",
        path="/v1/rank",
        scope=tokens.RANK,
        summary="rank candidates",
        handler=handlers.rank,
        answer=bodies.RankAnswer,
        body=bodies.RankRequest,
    ),
    Endpoint(
        method="POST",
        path="/v1/recommend",
        scope=tokens.RANK,
        summary="rank what the catalogue has for a request",
        handler=handlers.recommend,
        answer=bodies.RankAnswer,
        body=bodies.RecommendRequest,
        absent="the service has no catalogue",
    ),
    *(
        Endpoint(
            method="POST",
            path=path,
            scope=tokens.RANK,
            summary="rank documents for a query, as Cohere's and Jina's clients ask",
            handler=handlers.rerank,
            answer=bodies.RerankAnswer,
            body=bodies.RerankRequest,
        )
        for path in ("/v1/rerank", "/v2/rerank")
    ),
    Endpoint(
        method="POST",
        path="/v1/feedback",
        scope=tokens.FEEDBACK,
        summary="say what a candidate of a ranking was worth",
        handler=feedback_handlers.say,
        answer=bodies.FeedbackAnswer,
        body=bodies.FeedbackRequest,
        absent="the token was shown no such candidate",
    ),
)
