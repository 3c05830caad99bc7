"""What the handlers of the service work with."""

import dataclasses

from instructrec_jax.serving.batching import Batcher
from instructrec_jax.serving.feedback import FeedbackStore
from instructrec_jax.serving.monitoring import Figures
from instructrec_jax.serving.retrieval import Retriever
from instructrec_jax.serving.text_ranker import TextRanker


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
      feedback: what was shown, and what was said of it.
      retriever: finds candidates; None where there is no catalogue.
      explored: with which probability a ranking that is kept has a random order.
      audits_texts: whether the audit log tells texts, without personal details.
      is_ready: whether everything is compiled.
    """

    card: ModelCard
    ranker: TextRanker
    batcher: Batcher
    figures: Figures
    feedback: FeedbackStore
    retriever: Retriever | None = None
    explored: float = 0.0
    audits_texts: bool = False
    is_ready: bool = False
