"""What the service tells of itself: figures for Prometheus, and a log of who asked for what."""

import json
import logging
import logging.handlers
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from instructrec_jax import files

AUDIT_NAME = "audit.jsonl"
OTHER = "other"  # stands for every path that is none of the service's
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Figures:
    """The figures of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "instructrec_{}".format
        self.requests = Counter(
            name("requests"), "Answered requests.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            name("request_seconds"),
            "Seconds from a request's head to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            name("batch_requests"), "Requests of a batch.", buckets=_BATCHES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            name("batch_seconds"),
            "Seconds that a batch took to score.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.candidates = Counter(
            name("candidates"), "Candidates of ranked requests.", registry=self.registry
        )
        self.taken = Gauge(
            name("taken_requests"), "Requests that are being ranked.", registry=self.registry
        )
        self.compiled = Gauge(
            name("compiled_shapes"), "Array shapes that were compiled.", registry=self.registry
        )
        self.lookups = Counter(
            name("cache_requests"),
            "Requests that the cache answered (hit), or did not.",
            ["result"],
            registry=self.registry,
        )
        for result in ("hit", "miss"):  # both are there from the start, for rates
            self.lookups.labels(result)
        self.cached = Gauge(
            name("cached_candidates"), "Log-likelihoods in the cache.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def observe_batch(self, number: int, seconds: float) -> None:
        """Notes a batch."""
        self.batches.observe(number)
        self.batch_seconds.observe(seconds)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Notes an answered request."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def as_text(self) -> bytes:
        """Returns the figures as Prometheus reads them."""
        return generate_latest(self.registry)


class AuditLog:
    """A JSON line for each request: when, who, what, how it ended; never a token.

    It may be moved away while the service runs; a new one is begun then.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, readable by its owner alone, and adds to it."""
        with files.named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")

    def write(self, fields: Mapping[str, Any]) -> None:
        """Adds a line."""
        line = json.dumps({"time": round(time.time(), 3), **fields})
        self._handler.emit(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))

    def close(self) -> None:
        """Closes the file."""
        self._handler.close()
