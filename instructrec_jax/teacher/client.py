"""Asks a teacher LLM every question that the ledger holds no answer to."""

import asyncio
import collections
import logging
import signal
from collections.abc import Iterable

from instructrec_jax.progress import Progress, stop_on
from instructrec_jax.teacher.api_key import ApiKey, read_key
from instructrec_jax.teacher.batch_api import BatchApi
from instructrec_jax.teacher.claiming import Claiming
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.online import Online
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.server import Server
from instructrec_jax.teacher.settings import BATCH, ClientSettings

logger = logging.getLogger(__name__)


def ask_all(
    questions: Iterable[Question],
    ledger: Ledger,
    settings: ClientSettings,
    *,
    total: int | None = None,
) -> collections.Counter[str]:
    """Asks every question that has no answer yet.

    Args:
      questions: a stream, taken as it is needed, in another thread.
      ledger: where the answers go.
      settings: whom to ask, and how.
      total: how many questions there are, to show the time left.

    Returns:
      Counts: "answered", "answered_before", "in_batches" (held by a batch that another run looks
      after, or that only mode "batch" collects), "failed" and "failed: REASON", and "stopped": 1
      after SIGTERM.

    Raises:
      UserError: for a key, model or server that cannot be used; where the money ends before the
        questions do; where the disk is full. Everything that was answered is in the ledger.
      KeyboardInterrupt: after Ctrl-C, likewise.
    """
    key = read_key(settings.key_variable, settings.base_url)
    with (
        stop_on(signal.SIGTERM, signal.SIGINT) as stop,
        Progress("ask", total=total, unit="answers") as progress,
    ):
        claiming = Claiming(questions, ledger, settings, progress)
        mode = BatchApi if settings.mode == BATCH else Online
        work = mode(claiming, settings, stop)
        asyncio.run(_run(work, settings, key))
    for name, count in sorted((+claiming.counts).items()):
        logger.info("ask: %s=%d", name, count)
    logger.info("ask: what the ledger holds cost %.4f USD", ledger.spent())
    if claiming.problem is not None:
        raise claiming.problem
    if stop.is_asked:
        name = "Ctrl-C" if stop.asked_by == signal.SIGINT else "SIGTERM"
        logger.info("stopped on %s; the same command goes on from there", name)
        claiming.counts["stopped"] = 1
    if stop.asked_by == signal.SIGINT:
        raise KeyboardInterrupt
    return claiming.counts


async def _run(work: Online | BatchApi, settings: ClientSettings, key: ApiKey) -> None:
    async with Server(settings.base_url, key, timeout_seconds=settings.timeout_seconds) as server:
        await work.run(server)
