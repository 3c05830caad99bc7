"""Who is answered: without a token nobody is told anything but health.

It stands before all routes, so what it refuses has not been parsed, and a path that is written in
an unusual way is no way around it.
"""

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import logging
import secrets
import time
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructrec_jax.serving.monitoring import OTHER, AuditLog, Figures
from instructrec_jax.serving.refusals import RefusedError
from instructrec_jax.serving.tokens import RateLimiter, Token, TokenStore

logger = logging.getLogger(__name__)
OPEN = "open"  # the scope of what anybody may ask
CALL = "instructrec.call"  # where the call stands in the scope of ASGI
_BODY_SECONDS = 10.0
_LENGTH_DIGITS = 18  # of the length of a body, at most
_CLOSE = {"connection": "close"}  # where a body was not read
_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": _POLICY,
}


@dataclasses.dataclass(kw_only=True)
class Call:
    """One request.

    Attributes:
      request_id: names it in the answer's header and in the audit log.
      route: its path if that is one of the service's.
      came: when, by `time.monotonic`.
      token: whose it is; None until it has shown one.
      notes: what handlers add to its line in the audit log.
    """

    request_id: str
    route: str
    came: float
    token: Token | None = None
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Gate:
    """Lets requests with a right to be answered through, and notes all."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        scopes: Mapping[str, str],
        tokens: TokenStore,
        figures: Figures,
        audit: AuditLog,
        max_body_bytes: int,
    ) -> None:
        """Stands before an application.

        Args:
          app: what answers.
          scopes: of each path, what a token has to allow: a scope, "" for any token, or `OPEN`.
          tokens: who may ask.
          figures: where requests are counted.
          audit: where they are noted.
          max_body_bytes: the longest body that is read.
        """
        self._app, self._scopes, self._tokens = app, scopes, tokens
        self._figures, self._audit, self._max_body_bytes = figures, audit, max_body_bytes
        self._limiter = RateLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has the application answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._scopes else OTHER
        call = Call(request_id=secrets.token_hex(16), route=route, came=time.monotonic())
        scope[CALL] = call
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in (*_HEADERS.items(), ("x-request-id", call.request_id)):
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, await self._let_in(scope, receive, call), send_noting)
        except RefusedError as refused:
            await refused.response()(scope, receive, send_noting)
        except Exception as error:
            # Its message may hold texts of the request, so it is not told.
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("%s in request %s:\n%s", type(error).__name__, call.request_id, stack)
            if not status:
                await _broken().response()(scope, receive, send_noting)
        finally:
            self._note(scope, call, status, time.monotonic() - call.came)

    async def _let_in(self, scope: Scope, receive: Receive, call: Call) -> Receive:
        """Returns what gives the body of a request that may be answered.

        Raises:
          RefusedError: if it may not.
        """
        headers = Headers(scope=scope)
        needed = self._scopes.get(scope["path"], "")
        if needed == OPEN:
            return receive
        call.token = token = self._token_of(scope, headers)
        if needed and needed not in token.scopes:
            problem = f"the token of {token.name!r} does not allow {needed!r}"
            raise RefusedError(403, "not_allowed", problem, headers=_CLOSE)
        if wait := self._limiter.seconds_to_wait(token, time.monotonic()):
            problem = f"more than {token.requests_per_minute} requests in a minute"
            raise RefusedError(429, "too_often", problem, retry_after=wait, headers=_CLOSE)
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            problem = "the request comes from a page of another site"
            raise RefusedError(403, "other_site", problem, headers=_CLOSE)
        return await self._with_body(headers, receive)

    def _token_of(self, scope: Scope, headers: Headers) -> Token:
        """Returns the token that a request shows: as bearer, or as the password of a browser."""
        # A browser asks its user for a token; it understands one challenge alone.
        kind = "Basic" if scope["method"] == "GET" else "Bearer"
        challenge = {"www-authenticate": f'{kind} realm="instructrec"', **_CLOSE}
        scheme, _, value = headers.get("authorization", "").partition(" ")
        secret = value.strip()
        if scheme.lower() == "basic":
            with contextlib.suppress(binascii.Error, ValueError):
                secret = base64.b64decode(secret, validate=True).decode().partition(":")[2]
        if scheme.lower() not in ("bearer", "basic") or not secret:
            problem = "a token is needed: send the header `Authorization: Bearer TOKEN`"
            raise RefusedError(401, "no_token", problem, headers=challenge)
        token = self._tokens.find(secret)
        if token is None:
            raise RefusedError(401, "unknown_token", "the token is unknown", headers=challenge)
        if token.expires <= time.time():
            raise RefusedError(401, "expired_token", "the token has expired", headers=challenge)
        return token

    async def _with_body(self, headers: Headers, receive: Receive) -> Receive:
        """Reads the body, and returns what gives it again.

        Raises:
          RefusedError: if it is too long, or takes too long to come.
        """
        most = self._max_body_bytes
        too_long = RefusedError(
            413, "too_large", f"the body is longer than {most} bytes", headers=_CLOSE
        )
        length = headers.get("content-length", "0")
        if len(length) > _LENGTH_DIGITS or not length.isdecimal() or int(length) > most:
            raise too_long
        parts, size, is_more = list[bytes](), 0, True
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while is_more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "gone", "the connection was closed")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_long
                    is_more = message.get("more_body", False)
        except TimeoutError:
            problem = f"the body took longer than {_BODY_SECONDS:.0f} seconds to come"
            raise RefusedError(408, "slow_body", problem, headers=_CLOSE) from None
        waiting: list[Message] = [{"type": "http.request", "body": b"".join(parts)}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again

    def _note(self, scope: Scope, call: Call, status: int, seconds: float) -> None:
        """Counts a request and adds its line to the audit log, health excepted."""
        self._figures.observe_request(call.route, status, seconds)
        if self._scopes.get(scope["path"]) == OPEN:
            return
        self._audit.write(
            {
                "request_id": call.request_id,
                "token": call.token.name if call.token else None,
                "route": call.route,
                "status": status,
                "seconds": round(seconds, 4),
                **call.notes,
            }
        )


def _broken() -> RefusedError:
    return RefusedError(500, "broken", "the service made a mistake; its log tells of it")
