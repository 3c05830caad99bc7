"""Ranking metrics of a model on grouped tasks, while it trains."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.ranking import normalise
from instructrec_jax.models.t5 import T5
from instructrec_jax.pipeline import loader
from instructrec_jax.scoring.prefix_trees import requests_of
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.run_data import RunData

Batch = Mapping[str, np.ndarray]

_NORMALISERS = ("sum", "mean")  # those that need nothing but tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """What is measured, in training and by `eval`.

    Attributes:
      tasks: grouped ranking tasks, "<dataset>.<template>.grouped".
      split: where; the test split is for `score` and `report` alone.
      batch_size: examples read at once; `num_batches` counts in them.
      num_batches: batches of each task (EVAL_STEPS); None for the whole split.
      num_examples: examples of each task (EVALUATOR_NUM_EXAMPLES); None for all; where both are
        given, the smaller number counts. Fewer than all are drawn of the whole split, the same ones
        at every evaluation.
      use_memory_cache: read the batches once and keep them, instead of reading them again for each
        evaluation (EVALUATOR_USE_MEMORY_CACHE).
      normaliser: "sum" or "mean" of token log-likelihoods.
    """

    tasks: Sequence[str]
    split: str = "validation"
    batch_size: int = 64
    num_batches: int | None = None
    num_examples: int | None = None
    use_memory_cache: bool = True
    normaliser: str = "sum"

    def __post_init__(self) -> None:
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(
                f"EVALUATOR_NUM_EXAMPLES is {self.num_examples}; expected a number of examples "
                ">= 1, or None for all of the split"
            )
        if self.normaliser not in _NORMALISERS:  # now, not at the first evaluation
            raise unknown_name("normaliser of evaluation", self.normaliser, _NORMALISERS)

    @property
    def num_drawn(self) -> int | None:
        """Examples to draw of each task; None for all."""
        in_batches = None if self.num_batches is None else self.num_batches * self.batch_size
        limits = [limit for limit in (in_batches, self.num_examples) if limit is not None]
        return min(limits, default=None)

    @property
    def headline(self) -> str:
        """Name of the metric by which the best checkpoint is chosen."""
        return f"{self.split}/ndcg@5"


def make_evaluate(
    settings: ValidationSettings, data: RunData, scorer: Scorer
) -> Callable[[T5], dict[str, float]]:
    """Returns a function that measures a model.

    The function's result has "<split>/<task>/<metric>" for each task, and "<split>/<metric>" for
    the mean over tasks.
    """
    kept: dict[str, list[Batch]] = {}
    if settings.use_memory_cache:
        kept = {task: list(_read(task, settings, data)) for task in settings.tasks}

    def evaluate(model: T5) -> dict[str, float]:
        by_task = {}
        for task in settings.tasks:
            batches = kept[task] if kept else _read(task, settings, data)
            by_task[task] = ranking.evaluate(_ranks(model, batches, scorer, settings.normaliser))
        values = {
            f"{settings.split}/{name}": float(np.mean([found[name] for found in by_task.values()]))
            for name in ranking.METRIC_NAMES
        }
        for task, found in by_task.items():
            values |= {f"{settings.split}/{task}/{name}": value for name, value in found.items()}
        return values

    return evaluate


def _read(task: str, settings: ValidationSettings, data: RunData) -> Iterator[Batch]:
    return loader.ranking_batches(
        task,
        split=settings.split,
        feature_lengths=data.feature_lengths,
        batch_size=settings.batch_size,
        num_examples=settings.num_drawn,
    )


def _ranks(model: T5, batches: Iterable[Batch], scorer: Scorer, normaliser: str) -> np.ndarray:
    """Returns the target's rank of every real row."""
    requests, targets = [], []
    for batch in batches:
        requests += requests_of(batch)
        targets += batch["target_index"][batch["example_id"] != ""].tolist()
    width = max((len(request.candidates) for request in requests), default=0)
    log_likelihood = np.full((len(requests), width), -np.inf, np.float32)
    num_tokens = np.zeros((len(requests), width), np.int32)
    for row, (request, found) in enumerate(zip(requests, scorer(model, requests), strict=True)):
        log_likelihood[row, : len(found)] = found
        num_tokens[row, : len(found)] = [len(tokens) for tokens in request.candidates]
    is_known = np.asarray(targets) >= 0
    values = normalise(log_likelihood, num_tokens, normaliser)[is_known]
    return ranking.ranks(values, np.asarray(targets)[is_known])
