"""`instructrec serve`: a model as a service over HTTP, until it is asked to stop."""

import asyncio
import contextlib
import dataclasses
import functools
import importlib.util
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.metrics.ranking import checked_normalisers
from instructrec_jax.parallel.compilation_cache import COMPILATION_CACHE_DIR, keep_compiled
from instructrec_jax.settings import (
    Count,
    Natural,
    NotNegative,
    OneOf,
    Place,
    Positive,
    Range,
    Share,
    WebAddress,
    check_fields,
    refuse,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from instructrec_jax.serving.state import Service

logger = logging.getLogger(__name__)
_PARTS = ("starlette", "uvicorn", "prometheus_client", "pydantic")
_MAX_CONNECTIONS = 1000
_IDLE_SECONDS = 15
_BACKLOG = 256  # connections that wait to be accepted
_EXTRA_SECONDS = 5.0  # to write answers, after the deadline of what is being ranked


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A model, and for whom it ranks.

    Attributes:
      model: a MODEL_DIR, or Flan-T5 or T5 1.1 as Hugging Face or T5X keep it.
      state_dir: folder of tokens, feedback and audit log; `instructrec token make` begins it.
      challengers: further models, in memory beside the first. Each user gets one of all and keeps
        it, and `instructrec feedback report` compares them; /v1/rerank is the first one's alone.
      prepared_dir: what `prepare` wrote of the catalogue that is recommended from.
      matcher_dir: the output of `instructrec baseline matcher` on the same data, whose towers
        retrieve too, beside words and co-occurrence.
      qdrant: address of a Qdrant server that is to hold the vectors of matcher_dir, in a collection
        of their own; its key is read from QDRANT_API_KEY. By default this process holds them.
      feedback: where feedback is kept: a path, for SQLite, or the address of a PostgreSQL database,
        postgresql://USER@HOST/DATABASE (its password is better in PGPASSWORD or ~/.pgpass, since a
        command line can be read); by default a file in state_dir.
      bind: address and port; others than those of this machine need TLS or a proxy that has it.
      tls_certificate_path: the certificate in PEM, with its chain; HTTPS then.
      tls_key_path: its key.
      template: what writes the instructions, such as A7; by default one that suits each request.
        Of several each user gets one, always the same of those that suit the request, and
        `instructrec feedback report` compares them.
      normaliser: "sum", "mean" or "char"; by default as the model was trained.
      dtype: of computing, "float32" or "bfloat16".
      input_tokens: most tokens of an instruction; by default as the model was trained.
      target_tokens: most tokens of a candidate, likewise; longer ones are cut.
      vocabulary: the SentencePiece model, where none lies beside the model.
      task_module: module that declares the templates.
      deadline_seconds: how long a request may take; what would take longer is refused at once.
      max_waiting: requests that are taken at a time; more are told to come later.
      max_batch: requests that are scored at once.
      batch_milliseconds: how long the first request of a batch waits for others that have come.
      max_candidates: of a request.
      max_body_bytes: of a request.
      cached_candidates: log-likelihoods that are kept, some 200 bytes each, so that a request that
        comes again costs no scoring; 0: none.
      explore: share of the rankings that are asked for with "record" whose order is drawn at
        random, so that feedback tells of other orders too.
      audit_texts: write texts into the audit log too, without e-mail addresses, telephone
        numbers, links, cards and handles.
    """

    model: str
    state_dir: str
    challengers: Sequence[str] = ()
    prepared_dir: str | None = None
    matcher_dir: str | None = None
    qdrant: WebAddress | None = None
    feedback: Place | None = dataclasses.field(default=None, repr=False)  # may hold a password
    bind: str = "127.0.0.1:8080"
    tls_certificate_path: str | None = None
    tls_key_path: str | None = None
    template: Sequence[str] = ()
    normaliser: str | None = None
    dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    input_tokens: Count | None = None
    target_tokens: Count | None = None
    vocabulary: str | None = None
    task_module: str = SHIPPED
    deadline_seconds: Positive = 10.0
    max_waiting: Count = 64
    max_batch: Annotated[int, Range(1, 512)] = 32
    batch_milliseconds: NotNegative = 5.0
    max_candidates: Annotated[int, Range(2, 100_000)] = 1000
    max_body_bytes: Annotated[int, Range(1024, 1 << 28)] = 1 << 20
    cached_candidates: Natural = 100_000
    explore: Share = 0.0
    audit_texts: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.normaliser is not None:
            checked_normalisers([self.normaliser])
        if (self.tls_certificate_path is None) != (self.tls_key_path is None):
            raise refuse(self, "tls_key_path", "a certificate and its key, or neither")
        if self.matcher_dir is not None and self.prepared_dir is None:
            raise refuse(self, "matcher_dir", "--prepared_dir too, of the data it was trained on")
        if self.qdrant is not None and self.matcher_dir is None:
            raise refuse(self, "qdrant", "--matcher_dir too, whose vectors it is to hold")
        _address(self)


def serve(settings: ServeSettings) -> None:
    """Serves a model until SIGTERM or Ctrl-C; what was taken is answered first.

    Args:
      settings: what, where and for whom.

    Raises:
      UserError: for a mistake in settings, model or state, or if the port is taken.
    """
    if missing := [part for part in _PARTS if importlib.util.find_spec(part) is None]:
        raise UserError(
            f"`instructrec serve` needs {', '.join(missing)}; "
            "install them: pip install 'instructrec-jax[serve]'"
        )
    host, port = _address(settings)
    if not ipaddress.ip_address(host).is_loopback and settings.tls_key_path is None:
        logger.warning(
            "tokens and texts travel in the clear to %s: give --tls_certificate_path and "
            "--tls_key_path, or let a proxy with TLS alone reach it",
            settings.bind,
        )
    _check_files(settings)
    with contextlib.ExitStack() as opened:
        listening = opened.enter_context(_listening(host, port))
        app, service = open_application(settings, opened)
        asyncio.run(_run(app, service, listening, settings))
    logger.info("stopped; what was taken is answered")


def open_application(
    settings: ServeSettings, opened: contextlib.ExitStack
) -> "tuple[ASGIApp, Service]":
    """Returns the service as an ASGI application, for another server than uvicorn too.

    Args:
      settings: what it serves.
      opened: closes what it holds.

    Raises:
      UserError: for a mistake in settings, model or state.
    """
    from instructrec_jax.serving import engine, monitoring, tokens
    from instructrec_jax.serving.application import make_application
    from instructrec_jax.serving.feedback import FILE_NAME, FeedbackStore
    from instructrec_jax.serving.score_cache import ScoreCache
    from instructrec_jax.serving.state import Service

    token_store = tokens.TokenStore(tokens.existing(settings.state_dir))
    opened.callback(token_store.close)
    if all(token.expires <= time.time() for token in token_store.all()):
        logger.warning("no token is valid: make one with `instructrec token make`")
    audit = monitoring.AuditLog(Path(settings.state_dir) / monitoring.AUDIT_NAME)
    opened.callback(audit.close)
    feedback = FeedbackStore(settings.feedback or Path(settings.state_dir) / FILE_NAME)
    opened.callback(feedback.close)
    figures = monitoring.Figures()
    keep_compiled(COMPILATION_CACHE_DIR)
    open_engines = functools.partial(engine.open_engines, settings, figures)
    service = Service(
        open_engines(),
        open_engines=open_engines,
        figures=figures,
        feedback=feedback,
        cache=ScoreCache(settings.cached_candidates),
        explored=settings.explore,
        audits_texts=settings.audit_texts,
    )
    app = make_application(
        service, token_store=token_store, audit=audit, max_body_bytes=settings.max_body_bytes
    )
    return app, service


async def _run(
    app: "ASGIApp", service: "Service", listening: socket.socket, settings: ServeSettings
) -> None:
    """Serves until a signal asks to stop."""
    import uvicorn

    class Server(uvicorn.Server):
        """A server that leaves signals to us: they end the process with 0, not by themselves."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.tls_certificate_path,
        ssl_keyfile=settings.tls_key_path,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=int(settings.deadline_seconds + _EXTRA_SECONDS),
    )
    server = Server(config)

    def stop() -> None:
        server.force_exit = server.should_exit  # the second Ctrl-C does not wait
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    scheme = "https" if settings.tls_key_path else "http"
    host, port = listening.getsockname()[:2]
    logger.info("serving at %s://%s:%d; Ctrl-C or SIGTERM stops", scheme, host, port)
    await server.serve(sockets=[listening])


def _address(settings: ServeSettings) -> tuple[str, int]:
    """Returns host and port."""
    host, colon, port = settings.bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
        is_port = bool(colon) and port.isdecimal() and int(port) <= 65535
    except ValueError:
        is_port = False
    if not is_port:
        raise refuse(settings, "bind", "an address and a port, such as 127.0.0.1:8080 or [::]:443")
    return str(address), int(port)


def _listening(host: str, port: int) -> socket.socket:
    """Returns a socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once, not 40 ms later, where a socket says that it is TCP.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise UserError(
            f"cannot listen at {host}:{port} ({error.strerror}); name another --bind"
        ) from None
    return found


def _check_files(settings: ServeSettings) -> None:
    for path in (settings.tls_certificate_path, settings.tls_key_path):
        if path is not None:
            files.open_input(path).close()
