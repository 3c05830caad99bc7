"""`instructrec demo`: every stage, from raw logs to the report, with a small model."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.manifest import Manifest
from instructrec_jax.stages.annotate import annotate
from instructrec_jax.stages.baseline.scores import SEARCH, BaselineSettings
from instructrec_jax.stages.baseline.untrained import cooccurrence
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.data import fetch
from instructrec_jax.stages.prepare import prepare
from instructrec_jax.stages.report import report
from instructrec_jax.stages.report.choice import ChoiceSettings, chosen_templates
from instructrec_jax.training.metrics_log import FILE_NAME as METRICS_FILE

logger = logging.getLogger(__name__)

MODEL_FILE = "gin/models/t5_tiny.gin"
MIXTURE_FILE = "gin/mixtures/ml_100k.gin"
TRAIN_FILE = "gin/runs/from_scratch.gin"
SCORE_FILE = "gin/runs/score.gin"
TEST_DRAWS = 5  # of negatives: with one, luck hides what is less than .03
NUM_TRAIN_NEGATIVES = 49  # a pool to draw nine from, afresh each epoch
TITLE_PIECES = 2000  # the commonest titles are one token each: prompts are half as long
SMOKE_MACROS = {"TRAIN_STEPS": 20, "LOG_PERIOD": 5, "EVAL_PERIOD": 20, "EVAL_STEPS": 2}
SMOKE_REQUESTS = 128  # of each task
# A small model in few minutes: titles and categories, no teacher texts (measured on MovieLens: with
# preferences too, the same steps gave .516 instead of .644 in personalised search).
MIXTURE = "without_teacher"
MACROS = {"TASK_FEATURE_LENGTHS": {"inputs": 192, "targets": 40, "history": 6, "preference": 0}}
INPUT_BUCKETS = [64, 96, 128]
# Templates that show no candidates stand beside the paper's pool: a small model does better with
# them, and validation chooses.
WITHOUT_CANDIDATES = ("A1", "B2.specific", "C4.specific")
# The user's own logs may hold longer titles than MovieLens.
OWN_DATA_TITLE_CHARS = 60
OWN_DATA_MACROS = {
    "TASK_FEATURE_LENGTHS": {"inputs": 512, "targets": 40, "history": 6, "preference": 0}
}
OWN_DATA_BUCKETS = [*INPUT_BUCKETS, 192, 256, 384]  # scoring needs none: it pads nothing

ConfiguredStage = Callable[..., Any]


def demo(
    *,
    output_dir: Path | str = "runs/demo",
    data_dir: Path | str | None = None,
    dataset: str | None = None,
    is_smoke: bool = False,
    train: ConfiguredStage,
    score: ConfiguredStage,
) -> dict[str, Any]:
    """Runs all stages; what an earlier run of the same demo finished is reused.

    Args:
      output_dir: everything is written below it, in a folder for each stage.
      data_dir: folder with logs of interactions and items of your own; without it MovieLens-100K is
        fetched.
      dataset: name for your own data; without it my_data.
      is_smoke: a few steps and a slice of the evaluation, to see that everything runs.
      train: runs the train stage, given gin files and macros by name.
      score: runs the score stage likewise.

    Returns:
      The report, as `report.json` has it.

    Raises:
      UserError: for a mistake in the logs, or an output folder that holds something else.
    """
    began = time.monotonic()
    root = Path(output_dir)
    name = dataset or ("ml_100k" if data_dir is None else "my_data")
    built = _make_records(name, root, data_dir)
    macros = _macros(name, root, built)
    tasks = _without_candidates(name, built)
    training: dict[str, Any] = {
        "MODEL_DIR": str(root / "model"),
        "EVAL_TASKS": tasks,
        "INPUT_BUCKETS": INPUT_BUCKETS,
    }
    if data_dir is not None:
        macros |= OWN_DATA_MACROS
        training["INPUT_BUCKETS"] = OWN_DATA_BUCKETS
    if is_smoke:
        training |= SMOKE_MACROS
    with _stage("train", root / "model"):
        train([MODEL_FILE, MIXTURE_FILE, TRAIN_FILE], **{**macros, **training})
    scored = [macros["MIXTURE_OR_TASK_NAME"], *tasks]
    for split in ("validation", "test"):
        if split == "test":  # of all templates, those that the report takes
            chosen = chosen_templates(root / "prepared", root / "scores" / "validation")
            scored = [f"{name}.{template}" for template in chosen.values()]
        with _stage(f"score {split}", root / "scores" / split):
            run = {
                "CHECKPOINT_PATH": str(root / "model"),
                "INFER_OUTPUT_DIR": str(root / "scores" / split),
                "SCORE_TASKS": scored,
                "SPLIT": split,
                "DTYPE": "float32",
                "NUM_REQUESTS": SMOKE_REQUESTS if is_smoke else None,
            }
            score([MODEL_FILE, MIXTURE_FILE, SCORE_FILE], **{**macros, **run})
    scenarios = [scenario for scenario in chosen if not scenario.startswith(SEARCH)]
    with _stage("baseline cooccurrence", root / "cooccurrence"):
        asked = BaselineSettings(
            prepared_dir=str(root / "prepared"),
            output_dir=str(root / "cooccurrence"),
            scenarios=scenarios,
        )
        cooccurrence(asked=asked)
    # The table comes last, where a reader looks.
    logger.info("== report, after %.0f s, in %s", time.monotonic() - began, root / "report")
    return _reported(name, root)


def _reported(name: str, root: Path) -> dict[str, Any]:
    """Compares the model, what needs no training, and the two together."""
    return report(
        dataset=name,
        prepared_dir=root / "prepared",
        scores={
            "cooccurrence": [root / "cooccurrence"],
            "model": [root / "scores" / split for split in ("validation", "test")],
        },
        choice=ChoiceSettings(fuse=["fused=model+cooccurrence"]),
        output_dir=root / "report",
        metrics_file=root / "model" / METRICS_FILE,
        texts_dir=root / "texts",
    )


def _make_records(name: str, root: Path, data_dir: Path | str | None) -> Manifest:
    """Runs the stages before training; returns the manifest of the records."""
    logs = data_dir
    if logs is None:
        with _stage("fetch", root):
            logs = fetch(name="ml-100k")
    settings = PrepareSettings(test_draws=TEST_DRAWS)
    if data_dir is not None:
        settings = dataclasses.replace(settings, max_title_chars=OWN_DATA_TITLE_CHARS)
    with _stage("prepare", root / "prepared"):
        prepare(dataset=name, input_dir=logs, output_dir=root / "prepared", settings=settings)
    with _stage("annotate", root / "texts"):
        annotate(dataset=name, input_dir=root / "prepared", output_dir=root / "texts")
    with _stage("build", root / "records"):
        return build(
            dataset=name,
            input_dir=root / "prepared",
            texts_dir=root / "texts",
            output_dir=root / "records",
            settings=BuildSettings(
                num_train_negatives=NUM_TRAIN_NEGATIVES, title_pieces=TITLE_PIECES
            ),
        )


def _macros(name: str, root: Path, built: Manifest) -> dict[str, Any]:
    """Returns what training and scoring have in common."""
    return {
        "DATA_DIR": str(root / "records"),
        "MIXTURE_OR_TASK_NAME": f"{name}.{MIXTURE}",
        "VOCAB_SIZE": built.counts["vocabulary"],
        **MACROS,
    }


def _without_candidates(name: str, built: Manifest) -> list[str]:
    """Returns the tasks that show no candidates, one of each family the dataset has."""
    number = len(WITHOUT_CANDIDATES) if _has_search(built) else 1
    return [f"{name}.{task}" for task in WITHOUT_CANDIDATES[:number]]


def _has_search(built: Manifest) -> bool:
    """Returns whether items have categories, without which there is nothing to search for."""
    return built.counts.get("product_search/train", 0) > 0


@contextmanager
def _stage(title: str, folder: Path) -> Iterator[None]:
    """Says when a stage begins, and when it is over what it took and where it wrote."""
    logger.info("== %s", title)
    began = time.monotonic()
    yield
    logger.info("== %s: %.1f s, in %s", title, time.monotonic() - began, folder)
