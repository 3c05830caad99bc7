"""The steps from raw logs to scores, which `demo` and `reproduce` share.

Each step runs one stage, which reuses what an earlier run finished.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.instructions.language import Variant, variants
from instructrec_jax.instructions.task_modules import SHIPPED, templates_of, variant_order
from instructrec_jax.manifest import Manifest
from instructrec_jax.stages.annotate import annotate
from instructrec_jax.stages.baseline import untrained
from instructrec_jax.stages.baseline.scores import BaselineSettings
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.prepare import prepare
from instructrec_jax.stages.report.choice import chosen_templates
from instructrec_jax.stages.run_data import VOCABULARY_FILE

logger = logging.getLogger(__name__)
ConfiguredStage = Callable[..., Any]  # of gin files, and of macros by name
MODEL_FILE = "gin/models/t5_tiny.gin"
MIXTURE_FILE = "gin/mixtures/ml_100k.gin"
TRAIN_FILE = "gin/runs/from_scratch.gin"
SCORE_FILE = "gin/runs/score.gin"
PREPARED = "prepared"  # subfolder of artefact A
# Templates that show no candidates stand beside the paper's pool: a small model does better with
# them, and validation chooses.
WITHOUT_CANDIDATES = {
    "sequential": "A1",
    "product_search.vague": "B1.vague",
    "product_search.specific": "B2.specific",
    "personalized_search.preference": "C1",
    "personalized_search.vague": "C2.vague",
    "personalized_search.specific": "C4.specific",
}
UNTRAINED = {
    stage.__name__: stage
    for stage in (untrained.popularity, untrained.cooccurrence, untrained.ease, untrained.bm25)
}
TRAINED = (
    "sasrec",
    "sasrec_softmax",
    "bert4rec",
    "dssm",
    "tem",
    "matcher",
)  # by gin/baselines/NAME.gin


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides a small model that is trained from nothing, and the data that it reads.

    Attributes:
      dataset: its name.
      prepare: of artefact A.
      build: of artefact C.
      feature_lengths: TASK_FEATURE_LENGTHS of training and scoring.
      buckets: INPUT_BUCKETS of training.
      training: further macros of training.
      num_requests: most requests of a task that are scored; None for all.
      baselines: macros of the baselines that are trained.
    """

    dataset: str
    prepare: PrepareSettings
    build: BuildSettings
    feature_lengths: Mapping[str, int]
    buckets: Sequence[int] = ()
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_requests: int | None = None
    baselines: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """Artefacts A, B and C of one preparation of a log.

    Attributes:
      dataset: its name.
      folder: holds A and C.
      texts: folder of B, which serves all candidates of the same histories.
      counts: of the records.
    """

    dataset: str
    folder: Path
    texts: Path
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def prepared(self) -> Path:
        """The folder of artefact A."""
        return self.folder / PREPARED

    @property
    def data_dir(self) -> Path:
        """The folder of artefact C."""
        return self.folder / "records"

    @property
    def vocabulary(self) -> Path:
        """The vocabulary that was built with the records."""
        return self.data_dir / self.dataset / VOCABULARY_FILE

    @property
    def has_search(self) -> bool:
        """Whether items have categories, without which there is nothing to search for."""
        return self.counts.get("product_search/train", 0) > 0


@contextmanager
def step(title: str, folder: Path) -> Iterator[None]:
    """Says when a step begins, and when it is over what it took and where it wrote."""
    logger.info("== %s", title)
    began = time.monotonic()
    yield
    logger.info("== %s: %.1f s, in %s", title, time.monotonic() - began, folder)


def prepare_logs(recipe: Recipe, logs: Path | str, folder: Path) -> Manifest:
    """Prepares logs; returns the manifest.

    Args:
      recipe: says how.
      logs: folder with raw logs.
      folder: artefact A goes to a subfolder of it.
    """
    with step("prepare", folder / PREPARED):
        return prepare(
            dataset=recipe.dataset,
            input_dir=logs,
            output_dir=folder / PREPARED,
            settings=recipe.prepare,
        )


def make_records(recipe: Recipe, logs: Path | str, folder: Path) -> Records:
    """Prepares logs, has the extractive teacher annotate them, and builds the records.

    Args:
      recipe: says how.
      logs: folder with raw logs.
      folder: artefacts A, B and C go to subfolders of it.
    """
    found = Records(dataset=recipe.dataset, folder=folder, texts=folder / "texts")
    prepare_logs(recipe, logs, folder)
    with step("annotate", found.texts):
        annotate(dataset=recipe.dataset, input_dir=found.prepared, output_dir=found.texts)
    return _built(found, recipe.build)


def records_of_other_candidates(
    recipe: Recipe, records: Records, folder: Path, draw: Callable[..., Any]
) -> Records:
    """Draws other candidates for the same events, and builds their records.

    Args:
      recipe: says how records are built.
      records: of the first candidates; their texts and vocabulary serve the new ones too.
      folder: the new artefacts A and C go to subfolders of it.
      draw: writes the new artefact A, given `prepared_dir` and `output_dir`.
    """
    found = dataclasses.replace(records, folder=folder)
    with step("candidates", found.prepared):
        draw(prepared_dir=records.prepared, output_dir=found.prepared)
    return _built(found, with_vocabulary(recipe.build, records.vocabulary))


def with_vocabulary(settings: BuildSettings, vocabulary: Path) -> BuildSettings:
    """Returns settings of records for a model that has a vocabulary already."""
    return dataclasses.replace(settings, vocabulary_path=str(vocabulary), title_pieces=0)


def _built(records: Records, settings: BuildSettings) -> Records:
    """Builds artefact C from A and B; returns all with its counts."""
    with step("build", records.data_dir):
        built = build(
            dataset=records.dataset,
            input_dir=records.prepared,
            texts_dir=records.texts,
            output_dir=records.data_dir,
            settings=settings,
        )
    return dataclasses.replace(records, counts=built.counts)


def train_model(
    recipe: Recipe,
    records: Records,
    model_dir: Path,
    *,
    mixture: str,
    eval_tasks: Sequence[str],
    train: ConfiguredStage,
) -> None:
    """Trains a model from nothing.

    Args:
      recipe: says how.
      records: to learn from.
      model_dir: where checkpoints and metrics go.
      mixture: name of the mixture, without the dataset's.
      eval_tasks: tasks that choose the checkpoint, without the dataset's name.
      train: the stage.
    """
    macros = _macros(recipe, records, mixture)
    training = {
        "MODEL_DIR": str(model_dir),
        "EVAL_TASKS": [f"{records.dataset}.{task}" for task in eval_tasks],
        "INPUT_BUCKETS": list(recipe.buckets),
        **recipe.training,
    }
    with step(f"train on {mixture}", model_dir):
        train([MODEL_FILE, MIXTURE_FILE, TRAIN_FILE], **{**macros, **training})


def score_model(
    recipe: Recipe,
    records: Records,
    model_dir: Path,
    folder: Path,
    *,
    tasks: Sequence[str],
    score: ConfiguredStage,
    view: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Scores the candidates of both splits; of test by the templates that validation chooses.

    Args:
      recipe: says how.
      records: whose candidates are scored.
      model_dir: of the model.
      folder: artefact E goes to its subfolders `validation` and `test`.
      tasks: to choose among, without the dataset's name.
      score: the stage.
      view: macros that say which candidates a prompt shows; by default all.

    Returns:
      By scenario the template that validation chose.
    """
    name, chosen = records.dataset, {}
    scored = [f"{name}.{task}" for task in tasks]
    for split in ("validation", "test"):
        if split == "test":
            chosen = chosen_templates(records.prepared, folder / "validation")
            scored = [f"{name}.{template}" for template in chosen.values()]
        with step(f"score {split}", folder / split):
            run = {
                "CHECKPOINT_PATH": str(model_dir),
                "INFER_OUTPUT_DIR": str(folder / split),
                "SCORE_TASKS": scored,
                "SPLIT": split,
                "DTYPE": "float32",
                "NUM_REQUESTS": recipe.num_requests,
                **(view or {}),
            }
            macros = _macros(recipe, records, scored[0].partition(".")[2])
            score([MODEL_FILE, MIXTURE_FILE, SCORE_FILE], **{**macros, **run})
    return chosen


def rank_baseline(
    recipe: Recipe,
    records: Records,
    folder: Path,
    *,
    name: str,
    scenarios: Sequence[str],
    train: ConfiguredStage | None = None,
    trained_dir: Path | None = None,
) -> None:
    """Has a baseline rank the candidates of both splits.

    Args:
      recipe: says how those that are trained are trained.
      records: whose candidates are ranked.
      folder: artefact E goes to its subfolders `validation` and `test`.
      name: of the baseline.
      scenarios: what is ranked.
      train: the stage of baselines that are trained.
      trained_dir: what an earlier run has learnt from the same histories, which then ranks.
    """
    asked = BaselineSettings(
        prepared_dir=str(records.prepared),
        output_dir=str(folder),
        texts_dir=str(records.texts),
        scenarios=list(scenarios),
    )
    with step(f"baseline {name}", folder):
        if name in UNTRAINED:
            UNTRAINED[name](asked=asked)
        else:
            assert train is not None
            train(
                [f"gin/baselines/{name}.gin"],
                PREPARED_DIR=asked.prepared_dir,
                OUTPUT_DIR=asked.output_dir,
                TEXTS_DIR=asked.texts_dir,
                TRAINED_DIR=None if trained_dir is None else str(trained_dir),
                SCENARIOS=asked.scenarios,
                **recipe.baselines,
            )


def evaluation_pool(scenario: str) -> list[Variant]:
    """Returns the variants of the paper's pool for a scenario, A9 before A10."""
    family, _, query = scenario.partition(".")
    return sorted(
        (
            variant
            for variant in variants(templates_of(SHIPPED))
            if variant.is_evaluated
            and variant.template.family == family
            and (variant.query or "") == query
        ),
        key=variant_order,
    )


def _macros(recipe: Recipe, records: Records, mixture: str) -> dict[str, Any]:
    """Returns what training and scoring have in common."""
    return {
        "DATA_DIR": str(records.data_dir),
        "MIXTURE_OR_TASK_NAME": f"{records.dataset}.{mixture}",
        "VOCAB_SIZE": records.counts["vocabulary"],
        "TASK_FEATURE_LENGTHS": dict(recipe.feature_lengths),
    }
