"""The stages `baseline popularity`, `cooccurrence`, `ease` and `bm25`: nothing is trained."""

import logging
from pathlib import Path
from typing import Any

from instructrec_jax import manifest
from instructrec_jax.baselines import bm25 as bm25_scorer
from instructrec_jax.baselines import cooccurrence as cooccurrence_scorer
from instructrec_jax.baselines import ease as ease_scorer
from instructrec_jax.baselines import popularity as popularity_scorer
from instructrec_jax.data.columnar import HELD_OUT
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import ScoredRequest
from instructrec_jax.settings import Positive, check_arguments
from instructrec_jax.stages.baseline.scores import (
    BaselineSettings,
    Scenario,
    opened_data,
    planned_scores,
    scenario_of,
    scored_requests,
    write_scores,
)

logger = logging.getLogger(__name__)


def popularity(*, asked: BaselineSettings) -> None:
    """Ranks by how often an item was chosen in training.

    Args:
      asked: what is ranked, and where the scores go.
    """
    _rank(popularity_scorer.Popularity, asked)


def cooccurrence(*, asked: BaselineSettings) -> None:
    """Ranks by likeness to the last items of the history, by a truncated SVD, and by popularity.

    Args:
      asked: what is ranked, and where the scores go.
    """
    _rank(cooccurrence_scorer.Cooccurrence, asked)


def ease(*, asked: BaselineSettings, regularisation: Positive = ease_scorer.REGULARISATION) -> None:
    """Ranks by EASE, a linear model solved in closed form.

    Args:
      asked: what is ranked, and where the scores go.
      regularisation: the weight of small weights.
    """
    check_arguments(ease, locals())
    _rank(ease_scorer.Ease, asked, regularisation=regularisation)


def bm25(*, asked: BaselineSettings) -> None:
    """Ranks by BM25: the words of the query and of the titles of the last items.

    Candidates are read with brand and category, of which specific queries are made; a model reads
    titles alone.

    Args:
      asked: what is ranked, and where the scores go.
    """
    _rank(bm25_scorer.Bm25, asked)


def _rank(make: Any, asked: BaselineSettings, **settings: Any) -> None:
    """Writes the scores of both splits, but for those that are there."""
    folders = {split: Path(asked.output_dir) / split for split in HELD_OUT}
    planned = {split: planned_scores(make.name, split, asked, settings) for split in HELD_OUT}
    missing = [s for s in HELD_OUT if manifest.find_finished(folders[s], planned[s]) is None]
    if not missing:
        logger.info("baseline %s: %s is up to date", make.name, asked.output_dir)
        return
    with opened_data(asked) as (data, texts):
        system = make(data, seed=asked.seed, **settings)
        for split in missing:
            scenarios = [scenario_of(name, split, data, texts) for name in asked.scenarios]
            requests = {own.name: _scored(system, own) for own in scenarios}
            write_scores(folders[split], planned[split], requests, {"system": make.name})


def _scored(system: Any, scenario: Scenario) -> list[ScoredRequest]:
    """Returns the scored candidates of a scenario."""
    reads_queries = isinstance(system, bm25_scorer.Bm25)
    more = {"queries": scenario.queries} if reads_queries else {}
    found = scored_requests(scenario.examples, system.score, **more)
    if found is None:
        raise UserError(
            f"{system.name} ranks by histories, which the examples of {scenario.name} lack; "
            "leave that scenario out"
        )
    return found
