"""What the service works with: engines that rank, and their exchange for newer ones.

A request keeps the engine that it began with. An engine that was exchanged answers what it has
taken, and ends. Of several engines each user gets one, always the same.
"""

import asyncio
import dataclasses
import datetime
import logging
from collections.abc import Callable, Coroutine, Sequence

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.seeds import stable_seed
from instructrec_jax.serving.batching import Batcher
from instructrec_jax.serving.feedback import FeedbackStore
from instructrec_jax.serving.free_text import TextReader
from instructrec_jax.serving.intents import CHECKS
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
      reader: reads free text.
    """

    card: ModelCard
    fingerprint: str
    ranker: TextRanker
    scorer: WarmScorer
    batcher: Batcher
    retriever: Retriever | None
    reader: TextReader

    def warm_up(self) -> None:
        """Compiles what batches need, and measures how well the model reads free text."""
        self.scorer.warm_up()
        model = self.reader.model
        model.calibrate(self.scorer(model.requests([text for _, text in CHECKS])))
        logger.info("%s: %s", self.card.name, model.measured)


class Service:
    """The engines that answer, and what outlives them.

    Attributes:
      engines: of the model and of its challengers; none until everything is compiled.
      is_broken: whether an engine has failed, so that the process had better be started anew.
      figures: what is counted.
      feedback: what was shown, and what was said of it.
      cache: what was computed before, by any of its models.
      explored: with which probability a ranking that is kept has a random order.
      audits_texts: whether the audit log tells texts, without personal details.
    """

    def __init__(
        self,
        first: Sequence[Engine],
        *,
        open_engines: Callable[[], Sequence[Engine]],
        figures: Figures,
        feedback: FeedbackStore,
        cache: ScoreCache,
        explored: float,
        audits_texts: bool,
    ) -> None:
        """Makes a service that is not ready yet.

        Args:
          first: its engines, nothing of them compiled.
          open_engines: opens what the same settings name by now.
          figures: see the attributes, as the others.
        """
        self.engines: Sequence[Engine] = ()
        self.is_broken = False
        self.figures, self.feedback, self.cache = figures, feedback, cache
        figures.cached.set_function(lambda: len(cache))
        self.explored, self.audits_texts = explored, audits_texts
        self._first, self._open_engines = first, open_engines
        self._running: list[asyncio.Task[None]] = []
        self._exchanging = asyncio.Lock()

    def cached(self, keys: Keys) -> np.ndarray | None:
        """Returns the log-likelihoods of a request, float32 [c], None unless all are known."""
        found = self.cache.find(keys)
        self.figures.lookups.labels("miss" if found is None else "hit").inc()
        return found

    def engine_of(self, unit: str) -> Engine | None:
        """Returns the engine of a user, or of a request that names none; None until one is ready.

        Args:
          unit: whose it is; equal ones get the same of the same models.
        """
        if not self.engines:
            return None
        names = [engine.card.name for engine in self.engines]
        return self.engines[stable_seed("model", *names, unit) % len(names)]

    def start(self) -> None:
        """Compiles and runs the first engines."""
        self._run(self._put_in(self._first))

    def reload(self) -> None:
        """Exchanges the engines for what the settings name by now; the old ones serve meanwhile."""
        self._run(self._exchange())

    async def close(self) -> None:
        """Answers what was taken, and ends."""
        for engine in self.engines:
            engine.batcher.close()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _exchange(self) -> None:
        async with self._exchanging:
            try:
                engines = await asyncio.to_thread(self._open_engines)
            except UserError as error:
                logger.error("the engine stays as it was: %s", error)
                return
            await self._put_in(engines)

    async def _put_in(self, engines: Sequence[Engine]) -> None:
        """Compiles engines, and has them answer what comes from now on."""
        for engine in engines:
            await engine.batcher.in_scorer_thread(engine.warm_up)
        old, self.engines = self.engines, engines
        self.figures.compiled.set_function(lambda: sum(e.scorer.num_compiled for e in engines))
        for engine in engines:
            self._run(engine.batcher.run())
            made = datetime.datetime.fromtimestamp(engine.card.made, datetime.UTC)
            logger.info("ready: %s, saved %s", engine.card.name, made.isoformat())
        for engine in old:
            engine.batcher.close()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.is_broken = True
            logger.error("an engine failed", exc_info=error)
