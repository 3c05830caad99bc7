"""Ranking metrics of a model on grouped tasks, while it trains."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from instructrec_jax.metrics import ranking
from instructrec_jax.models.t5 import T5
from instructrec_jax.pipeline import loader
from instructrec_jax.report.normalisers import normalise
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.run_data import RunData


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured during training.

    Attributes:
      tasks: grouped ranking tasks, "<dataset>.<template>.grouped".
      split: where; the test split is for `score` and `report` alone.
      batch_size: examples scored at once.
      num_batches: batches of each task (EVAL_STEPS); None for the whole split.
      normaliser: "sum" or "mean" of token log-likelihoods.
    """

    tasks: Sequence[str]
    split: str = "validation"
    batch_size: int = 64
    num_batches: int | None = None
    normaliser: str = "sum"

    @property
    def headline(self) -> str:
        """Name of the metric by which the best checkpoint is chosen."""
        return f"{self.split}/ndcg@5"


def make_evaluate(
    settings: EvaluationSettings, data: RunData, scorer: Scorer
) -> Callable[[T5], dict[str, float]]:
    """Returns a function that measures a model; the batches are read once and kept.

    The function's result has "<split>/<task>/<metric>" for each task, and "<split>/<metric>" for
    the mean over tasks.
    """
    batches = {task: _read(task, settings, data) for task in settings.tasks}

    def evaluate(model: T5) -> dict[str, float]:
        by_task = {
            task: ranking.evaluate(_ranks(model, rows, scorer, settings.normaliser))
            for task, rows in batches.items()
        }
        values = {
            f"{settings.split}/{name}": float(np.mean([found[name] for found in by_task.values()]))
            for name in ranking.METRIC_NAMES
        }
        for task, found in by_task.items():
            values |= {f"{settings.split}/{task}/{name}": value for name, value in found.items()}
        return values

    return evaluate


def _read(task: str, settings: EvaluationSettings, data: RunData) -> list[Mapping[str, np.ndarray]]:
    batches = loader.ranking_batches(
        task,
        split=settings.split,
        feature_lengths=data.feature_lengths,
        batch_size=settings.batch_size,
        buckets=data.buckets,
    )
    return list(itertools.islice(batches, settings.num_batches))


def _ranks(
    model: T5, batches: Sequence[Mapping[str, np.ndarray]], scorer: Scorer, normaliser: str
) -> np.ndarray:
    """Returns the target's rank of every real row."""
    found = []
    for batch in batches:
        real = (batch["example_id"] != "") & (batch["target_index"] >= 0)
        log_likelihood, num_tokens = scorer(model, batch)
        values = normalise(log_likelihood, num_tokens, normaliser)[real]
        found.append(ranking.ranks(values, batch["target_index"][real]))
    return np.concatenate(found)
