"""The endpoints as an ASGI application behind its gate."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from instructrec_jax.serving import openapi, tokens
from instructrec_jax.serving.endpoints import ENDPOINTS, Endpoint
from instructrec_jax.serving.gate import CALL, Gate
from instructrec_jax.serving.monitoring import CONTENT_TYPE, AuditLog
from instructrec_jax.serving.refusals import RefusedError, parsed
from instructrec_jax.serving.state import Service

METRICS_PATH = "/metrics"
PAGE_FOLDER = Path(__file__).parent / "page"
PAGES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# The page asks nobody but the service, and nobody frames it.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_JSON = "application/json"
Answer = Callable[[Request], Awaitable[Response]]


def make_application(
    service: Service,
    *,
    token_store: tokens.TokenStore,
    audit: AuditLog,
    max_body_bytes: int,
) -> ASGIApp:
    """Returns the application.

    While it runs, it first compiles what batches need, then scores them; at its end it answers
    what it has taken.

    Args:
      service: what the handlers work with.
      token_store: who may ask.
      audit: where requests are noted.
      max_body_bytes: the longest body that is read.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    def broken(_: Request, error: Exception) -> Response:
        return RefusedError(500, "broken", "the service made a mistake; its log tells").response()

    app = Starlette(
        routes=_routes(service, ENDPOINTS),
        lifespan=lifespan,
        exception_handlers={
            RefusedError: _refused,
            HTTPException: _without_route,
            Exception: broken,
        },
    )
    app.router.redirect_slashes = False
    scopes = {each.path: each.scope for each in ENDPOINTS}
    return Gate(
        app,
        scopes=scopes
        | {METRICS_PATH: tokens.METRICS, openapi.PATH: ""}
        | dict.fromkeys(PAGES, tokens.RANK),
        tokens=token_store,
        figures=service.figures,
        audit=audit,
        max_body_bytes=max_body_bytes,
    )


def _routes(service: Service, endpoints: Sequence[Endpoint]) -> list[Route]:
    """Returns the routes of endpoints, of the page, and of documents that are no JSON models."""
    described = json.dumps(openapi.document(endpoints)).encode()

    async def metrics(_: Request) -> Response:
        return Response(service.figures.as_text(), media_type=CONTENT_TYPE)

    async def document(_: Request) -> Response:
        return Response(described, media_type=_JSON)

    return [
        *(Route(each.path, _answer(service, each), methods=[each.method]) for each in endpoints),
        Route(METRICS_PATH, metrics),
        Route(openapi.PATH, document),
        *(Route(path, _file(*page)) for path, page in PAGES.items()),
    ]


def _file(name: str, media_type: str) -> Answer:
    """Returns what answers with a file of the page."""
    content = (PAGE_FOLDER / name).read_bytes()

    async def answer(_: Request) -> Response:
        policy = {"content-security-policy": _PAGE_POLICY}
        return Response(content, headers=policy, media_type=media_type)

    return answer


def _answer(service: Service, endpoint: Endpoint) -> Answer:
    """Returns what answers an endpoint's requests."""

    async def answer(request: Request) -> Response:
        body = None
        if endpoint.body is not None:
            media_type = request.headers.get("content-type", "").partition(";")[0]
            if media_type.strip().lower() != _JSON:
                problem = "send the body with the header `Content-Type: application/json`"
                raise RefusedError(415, "not_json", problem)
            body = parsed(endpoint.body, await request.body())
        found = await endpoint.handler(service, request.scope[CALL], body)
        return Response(found.model_dump_json(exclude_none=True), media_type=_JSON)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _without_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message = {
        404: ("no_such_path", "there is nothing at this path; /openapi.json tells what there is"),
        405: ("wrong_method", "this path takes another method; /openapi.json tells which"),
    }.get(error.status_code, ("refused", error.detail))
    return RefusedError(error.status_code, code, message, headers=error.headers).response()
