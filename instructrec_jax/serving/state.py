"""What the service works with: an engine that ranks, and its exchange for a newer one.

A request keeps the engine that it began with. An engine that was exchanged answers what it has
taken, and ends.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.serving.batching import Batcher
from instructrec_jax.serving.feedback import FeedbackStore
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.retrieval import Retriever
from instructrec_jax.serving.score_cache import Keys, ScoreCache
from instructrec_jax.serving.text_ranker import TextRanker
from instructrec_jax.serving.warm_scorer import WarmScorer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is told of the model.

    Attributes:
      name: of it in answers.
      made: when it was written, seconds since 1970.
      normaliser: what it ranks by unless asked otherwise.
      templates: what writes the instructions, one for each user; (): what suits each request.
      max_candidates: the most that a request may hold.
    """

    name: str
    made: int
    normaliser: str
    templates: tuple[str, ...]
    max_candidates: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A model that ranks, with all that belongs to it.

    Attributes:
      card: what is told of it.
      fingerprint: hash of the checkpoint, and how it computes.
      ranker: makes tokens of texts.
      scorer: scores tokens.
      batcher: the queue before the scorer.
      retriever: finds candidates; None where there is no catalogue.
    """

    card: ModelCard
    fingerprint: str
    ranker: TextRanker
    scorer: WarmScorer
    batcher: Batcher
    retriever: Retriever | None


class Service:
    """The engine that answers, and what outlives it.

    Attributes:
      engine: None until everything is compiled.
      is_broken: whether an engine has failed, so that the process had better be started anew.
      figures: what is counted.
      feedback: what was shown, and what was said of it.
      cache: what was computed before, by any of its models.
      explored: with which probability a ranking that is kept has a random order.
      audits_texts: whether the audit log tells texts, without personal details.
    """

    def __init__(
        self,
        first: Engine,
        *,
        open_engine: Callable[[], Engine],
        figures: Figures,
        feedback: FeedbackStore,
        cache: ScoreCache,
        explored: float,
        audits_texts: bool,
    ) -> None:
        """Makes a service that is not ready yet.

        Args:
          first: its engine, nothing of it compiled.
          open_engine: opens what the same settings name by now.
          figures: see the attributes, as the others.
        """
        self.engine: Engine | None = None
        self.is_broken = False
        self.figures, self.feedback, self.cache = figures, feedback, cache
        figures.cached.set_function(lambda: len(cache))
        self.explored, self.audits_texts = explored, audits_texts
        self._first, self._open_engine = first, open_engine
        self._running: list[asyncio.Task[None]] = []
        self._exchanging = asyncio.Lock()

    def cached(self, keys: Keys) -> np.ndarray | None:
        """Returns the log-likelihoods of a request, float32 [c], None unless all are known."""
        found = self.cache.find(keys)
        self.figures.lookups.labels("miss" if found is None else "hit").inc()
        return found

    def start(self) -> None:
        """Compiles and runs the first engine."""
        self._run(self._put_in(self._first))

    def reload(self) -> None:
        """Exchanges the engine for what the settings name by now; the old one serves meanwhile."""
        self._run(self._exchange())

    async def close(self) -> None:
        """Answers what was taken, and ends."""
        if self.engine is not None:
            self.engine.batcher.close()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _exchange(self) -> None:
        async with self._exchanging:
            try:
                engine = await asyncio.to_thread(self._open_engine)
            except UserError as error:
                logger.error("the engine stays as it was: %s", error)
                return
            await self._put_in(engine)

    async def _put_in(self, engine: Engine) -> None:
        """Compiles an engine, and has it answer what comes from now on."""
        await engine.batcher.in_scorer_thread(engine.scorer.warm_up)
        old, self.engine = self.engine, engine
        self.figures.compiled.set_function(lambda: engine.scorer.num_compiled)
        self._run(engine.batcher.run())
        if old is not None:
            old.batcher.close()
        logger.info("ready: %s of %d", engine.card.name, engine.card.made)

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.is_broken = True
            logger.error("an engine failed", exc_info=error)
