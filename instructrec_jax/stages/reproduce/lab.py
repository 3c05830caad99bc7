"""What the tables of the paper are made of: data, models, scores and reports, each made once."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.data.columnar import HELD_OUT, TEST, VALIDATION
from instructrec_jax.data.settings import OTHER_CATEGORY
from instructrec_jax.errors import UserError
from instructrec_jax.report.paper_table import paper
from instructrec_jax.report.tables import Table
from instructrec_jax.stages import candidates
from instructrec_jax.stages.baseline.retrieval import FOLDER as RETRIEVED
from instructrec_jax.stages.baseline.scores import BaselineSettings, opened_data, scenario_of
from instructrec_jax.stages.report import report
from instructrec_jax.stages.report.choice import ChoiceSettings
from instructrec_jax.stages.report.exports import RANKS, ExportSettings
from instructrec_jax.stages.reproduce.steps import (
    TRAINED,
    UNTRAINED,
    WITHOUT_CANDIDATES,
    ConfiguredStage,
    Recipe,
    Records,
    evaluation_pool,
    make_records,
    prepare_logs,
    rank_baseline,
    records_of_other_candidates,
    score_model,
    train_model,
    with_vocabulary,
)
from instructrec_jax.stages.sensitivity import SensitivitySettings, changes_table, sensitivity

logger = logging.getLogger(__name__)
MAIN, OTHER, HUNDRED, OTHER_CATEGORIES, HARD = (
    "main",
    "other",
    "hundred",
    "other_categories",
    "hard",
)
# Titles that the vocabulary was not made of take several tokens each; scoring pads nothing.
_LENGTHS_OF_OTHER = {"inputs": 1024, "targets": 128}
Logs = Callable[[], Path | str]


class NotRunError(Exception):
    """Why a part of a table, or a system in it, was not run; no mistake of the user's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """A data set of a scale.

    Attributes:
      recipe: how its data and models are made.
      logs: makes or finds its raw logs.
    """

    recipe: Recipe
    logs: Logs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
    """The stages that gin files configure, given these and macros by name.

    Attributes:
      train: trains our model.
      score: scores candidates with it.
      baseline: trains a baseline and ranks with it.
    """

    train: ConfiguredStage
    score: ConfiguredStage
    baseline: ConfiguredStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reported:
    """A part of a table that was run.

    Attributes:
      values: of its report, as `report.json` has them, of the part's scenario.
      folder: of its report.
      missing: by system why it was not run.
      details: further tables.
    """

    values: Mapping[str, Any]
    folder: Path
    missing: Mapping[str, str]
    details: Sequence[Table] = ()


class Lab:
    """Makes what tables need below one folder, each thing once."""

    def __init__(self, root: Path, main: World, other: World | None, stages: Stages) -> None:
        """Opens a folder.

        Args:
          root: everything is written below it.
          main: the data set that models learn from.
          other: the data set that they are tried on without; None where nobody named one.
          stages: what gin configures.
        """
        self.root, self.name, self._stages = root, main.recipe.dataset, stages
        self._worlds = {MAIN: main, **({} if other is None else {OTHER: other})}
        self.records = functools.cache(self._make_records)
        self._model = functools.cache(self._train_model)

    def part(self, table: str, part: Mapping[str, Any]) -> Reported:
        """Runs a part of a table.

        Args:
          table: its name.
          part: as the paper's data has it.

        Raises:
          NotRunError: where this data set cannot give it.
        """
        records, scenario = self.records(part["data"]), part["scenario"]
        _check_has(records, scenario)
        scores: dict[str, list[Path | str]] = {}
        missing = {}
        for name in part["baselines"]:
            try:
                scores[name] = [self._ranked(part["data"], scenario, name)]
            except NotRunError as reason:
                missing[name] = str(reason)
        has_teacher = paper()["tables"][table].get("teacher", False)
        mixture = "all" if has_teacher else "without_teacher"
        for name in part["models"]:
            if "checkpoint" in paper()["models"][name]:
                missing[name] = "models start from nothing at this scale (--scale=full)"
                continue
            scores[name] = [self._scored(part["data"], scenario, name, mixture)]
        folder = self.root / table / part["name"].replace(" ", "_")
        fuse = [part["fuse"]] if "fuse" in part else []
        found = report(
            dataset=records.dataset,
            prepared_dir=records.prepared,
            scores=scores,
            output_dir=folder,
            choice=ChoiceSettings(fuse=fuse),
            export=ExportSettings(export=[RANKS]),
        )
        return Reported(
            values=found["scenarios"][scenario],
            folder=folder,
            missing=missing,
            details=self._changed(part, folder, mixture) if "wordings" in part else (),
        )

    def counts(self) -> dict[str, int]:
        """Returns how many users, items and interactions are left of MAIN."""
        world = self._worlds[MAIN]
        found = prepare_logs(world.recipe, world.logs(), self.root / MAIN).counts
        return {name: found[name] for name in ("users", "items", "interactions")}

    def _make_records(self, data: str) -> Records:
        """Makes artefacts A, B and C; all but those of MAIN with its vocabulary."""
        world = self._worlds[MAIN]
        if data == MAIN:
            return make_records(world.recipe, world.logs(), self.root / MAIN)
        main = self.records(MAIN)
        if data == OTHER:
            if OTHER not in self._worlds:
                raise NotRunError("no other data set was named (--other_dir)")
            other = self._worlds[OTHER]
            settings = with_vocabulary(other.recipe.build, main.vocabulary)
            recipe = dataclasses.replace(other.recipe, build=settings)
            return make_records(recipe, other.logs(), self.root / OTHER)
        return records_of_other_candidates(
            world.recipe, main, self.root / data, self._draw_of(data)
        )

    def _draw_of(self, data: str) -> Callable[..., Any]:
        """Returns what draws other candidates for the events of MAIN."""
        if data == HARD:
            found = self._ranked(MAIN, "sequential", "matcher") / RETRIEVED
            return functools.partial(
                candidates.lists,
                test_file=found / f"{TEST}.tsv.gz",
                validation_file=found / f"{VALIDATION}.tsv.gz",
            )
        if data == HUNDRED:
            more: dict[str, Any] = {"num_candidates": 100, "allow_fewer_candidates": True}
        else:
            draws = self._worlds[MAIN].recipe.prepare.test_draws
            more = {"search_negatives": OTHER_CATEGORY, "test_draws": draws}
        return functools.partial(candidates.uniform, **more)

    def _train_model(self, mixture: str) -> Path:
        """Trains a model on a mixture of MAIN."""
        world, records = self._worlds[MAIN], self.records(MAIN)
        folder = self.root / MAIN / "models" / mixture
        with_query = ["product_search.specific", "personalized_search.specific"]
        scenarios = ["sequential", *(with_query if records.has_search else [])]
        train_model(
            world.recipe,
            records,
            folder,
            mixture=mixture,
            eval_tasks=[WITHOUT_CANDIDATES[scenario] for scenario in scenarios],
            train=self._stages.train,
        )
        return folder

    def _scored(self, data: str, scenario: str, name: str, mixture: str) -> Path:
        """Scores candidates by a model of the paper's data; returns the folder."""
        model = paper()["models"][name]
        mixture = model.get("mixture", mixture)
        folder = self.root / data / "scores" / scenario / f"{name}_{mixture}"
        pool = [variant.name for variant in evaluation_pool(scenario)]
        hidden = [WITHOUT_CANDIDATES[scenario]]
        tasks = {"shown": pool, "hidden": hidden}.get(model.get("pool", ""), [*pool, *hidden])
        recipe = self._worlds[MAIN].recipe
        if data == OTHER:
            lengths = {**recipe.feature_lengths, **_LENGTHS_OF_OTHER}
            recipe = dataclasses.replace(recipe, feature_lengths=lengths)
        score_model(
            recipe,
            self.records(data),
            self._model(mixture),
            folder,
            tasks=tasks,
            score=self._stages.score,
            view=model.get("view"),
        )
        return folder

    def _changed(self, part: Mapping[str, Any], folder: Path, mixture: str) -> list[Table]:
        """Returns how the rankings of a model change where a request is said in another way."""
        template, paraphrase = part["wordings"]
        asked = SensitivitySettings(
            model=str(self._model(mixture)),
            prepared_dir=str(self.records(part["data"]).prepared),
            output_dir=str(folder.with_name(f"{folder.name}_sensitivity")),
            template=template,
            paraphrase=paraphrase,
        )
        return [changes_table(sensitivity(asked)["rows"])]

    def _ranked(self, data: str, scenario: str, name: str) -> Path:
        """Has a baseline rank candidates; returns the folder."""
        if name not in (*UNTRAINED, *TRAINED):
            raise NotRunError("this version has no such baseline")
        folder = self.root / data / "baselines" / scenario / name
        has_learnt = name in TRAINED and data not in (MAIN, OTHER)
        rank_baseline(
            self._worlds[MAIN].recipe,
            self.records(data),
            folder,
            name=name,
            scenarios=[scenario],
            train=self._stages.baseline,
            trained_dir=self._ranked(MAIN, scenario, name) if has_learnt else None,
        )
        return folder


def _check_has(records: Records, scenario: str) -> None:
    """Raises where a data set has no examples of a scenario."""
    asked = BaselineSettings(
        prepared_dir=str(records.prepared), output_dir="none", texts_dir=str(records.texts)
    )
    with opened_data(asked) as (data, texts):
        for split in HELD_OUT:
            try:
                scenario_of(scenario, split, data, texts)
            except UserError:
                raise NotRunError(
                    f"{records.dataset} has no {split} example of {scenario}: its logs lack "
                    "reviews or categories"
                ) from None
