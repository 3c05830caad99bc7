"""`instructrec score`: a checkpoint and grouped tasks -> log-likelihoods (artefact E)."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.parameters import Source
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.parallel.sharding import check_rows
from instructrec_jax.pipeline import loader, registry
from instructrec_jax.scoring import scores
from instructrec_jax.scoring.scorer import Scorer, make_scorer
from instructrec_jax.stages.run_data import RunData, dataset_of
from instructrec_jax.training.state import TrainState, abstract_model, describe_placement

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """One scoring run.

    Attributes:
      checkpoint_path: a step folder, or a MODEL_DIR for its best (CHECKPOINT_PATH); or Flan-T5 or
        T5 1.1 as Hugging Face or T5X keep it, see `checkpoints.source.open_source`.
      output_dir: where the parts go (INFER_OUTPUT_DIR).
      tasks: ranking tasks, or mixtures, which stand for all they hold of the evaluation pool.
      split: "validation" or "test".
      batch_size: examples scored at once.
      num_batches: batches of each task; None for the whole split.
      batches_per_part: batches in one output file; a killed run loses less than one part.
    """

    checkpoint_path: str
    output_dir: str
    tasks: Sequence[str]
    split: str = "test"
    batch_size: int = 64
    num_batches: int | None = None
    batches_per_part: int = 10


def score(
    *,
    model: T5Config,
    data: RunData,
    run: ScoreSettings,
    mesh: MeshSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> None:
    """Scores every candidate of every example, going on after the last part that is there.

    Args:
      model: sizes of the checkpoint's model (MODEL).
      data: records, tasks and vocabulary.
      run: this run.
      mesh: how devices are shared.
      config_text: the resolved gin config, written to the output folder.
      dry_run: say what would be done, and stop before anything is written.

    Raises:
      UserError: for a mistake in settings, data or checkpoint.
    """
    checkpoint = open_source(run.checkpoint_path)
    tasks = ", ".join(run.tasks)
    logger.info("%s, split %s, by %s, into %s", tasks, run.split, checkpoint.path, run.output_dir)
    device_mesh = make_mesh(mesh)
    check_rows(run.batch_size, device_mesh, name="BATCH_SIZE")
    shapes = TrainState(None, abstract_model(model, device_mesh), None)
    logger.info("%s, %d rows a batch", describe_placement(shapes), run.batch_size)
    if dry_run:
        checkpoint.check_fits(model)
        return
    run = _open(data, run, vocab_size=model.vocab_size)
    planned = _plan(model, data, run, checkpoint)
    earlier = manifest.find_same_work(run.output_dir, planned)
    if earlier is not None and _is_finished(earlier, run):
        logger.info("nothing left to do: %s holds all of it", run.output_dir)
        return
    data.check_tokenizer(run.tasks[0], checkpoint.tokenizer)
    restored = load_model(checkpoint, abstract_model(model, device_mesh))
    manifest.claim(run.output_dir, planned)  # only now: a mistake leaves no folder behind
    if config_text:
        files.write_text(Path(run.output_dir) / "config.gin", config_text)
    scorer = make_scorer(device_mesh)
    metadata = {
        **planned.inputs,
        "split": run.split,
        "teacher": data.teacher(run.tasks[0]),
        "checkpoint_step": checkpoint.step,
        "versions": planned.versions,
        "command": planned.command,
    }
    counts = {
        task: _score_task(task, restored, scorer, data, run, metadata=metadata)
        for task in run.tasks
    }
    dataclasses.replace(planned, counts=counts).write(run.output_dir)


def _open(data: RunData, run: ScoreSettings, *, vocab_size: int) -> ScoreSettings:
    """Opens the data; returns the run with the evaluated tasks that its mixtures stand for."""
    if len({dataset_of(task) for task in run.tasks}) != 1:
        raise UserError(f"tasks to score are {list(run.tasks)}; expected some of one dataset")
    data.open(run.tasks[0], vocab_size=vocab_size)
    return dataclasses.replace(run, tasks=registry.evaluated_tasks(run.tasks, split=run.split))


def _is_finished(earlier: manifest.Manifest, run: ScoreSettings) -> bool:
    """Whether all rows that an earlier run counted are there still."""
    rows = {task: scores.num_rows(run.output_dir, template_of(task)) for task in run.tasks}
    return rows == earlier.counts


def template_of(task: str) -> str:
    """Returns the template of a task: "B7.specific" of "ml_100k.B7.specific.grouped"."""
    return task.split(".", 1)[1].removesuffix(".grouped")


def _plan(
    model: T5Config, data: RunData, run: ScoreSettings, checkpoint: Source
) -> manifest.Manifest:
    """Returns the manifest of the run, its counts still empty."""
    inputs = {"checkpoint": checkpoint.fingerprint()}
    for task in run.tasks:
        inputs |= data.fingerprint(task)
    settings = {
        "model": dataclasses.asdict(model),
        "tasks": list(run.tasks),
        "split": run.split,
        "feature_lengths": dict(data.feature_lengths),
        "batch_size": run.batch_size,
        "num_batches": run.num_batches,
        "batches_per_part": run.batches_per_part,
    }
    return manifest.Manifest(stage="score", inputs=inputs, settings=settings)


def _score_task(
    task: str,
    model: T5,
    scorer: Scorer,
    data: RunData,
    run: ScoreSettings,
    *,
    metadata: dict[str, Any],
) -> int:
    """Writes the parts of one task that are not there yet; returns the number of its rows."""
    template = template_of(task)
    first_part = scores.num_finished_parts(run.output_dir, template)
    if first_part:
        logger.info("%s: %d parts are there already", task, first_part)
    skipped = first_part * run.batches_per_part
    batches = loader.ranking_batches(
        task,
        split=run.split,
        feature_lengths=data.feature_lengths,
        batch_size=run.batch_size,
        skip_batches=skipped,
        buckets=data.buckets,
    )
    limit = None if run.num_batches is None else max(run.num_batches - skipped, 0)
    batches = itertools.islice(batches, limit)
    for index in itertools.count(first_part):
        rows: list[dict[str, Any]] = []
        began = time.monotonic()
        for batch in itertools.islice(batches, run.batches_per_part):
            rows += scores.batch_rows(template, batch, *scorer(model, batch))
        if not rows:
            break
        scores.write_part(Path(run.output_dir) / scores.part_name(template, index), rows, metadata)
        num_candidates = sum(len(row["candidate_ids"]) for row in rows)
        rate = num_candidates / (time.monotonic() - began)
        logger.info("%s: part %d, %d rows, %.0f candidates/s", task, index, len(rows), rate)
    return scores.num_rows(run.output_dir, template)
