"""`instructrec eval`: a checkpoint -> ranking metrics of the evaluation pool, as training has them.

What `score` and `report` do with intervals and baselines, in one number a metric: for a look at a
checkpoint on validation.
"""

import dataclasses
import json
import logging
from pathlib import Path

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel.mesh import (
    MeshSettings,
    abstract_model,
    describe_placement,
    make_mesh,
)
from instructrec_jax.pipeline import registry
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.validation import ValidationSettings, make_evaluate

logger = logging.getLogger(__name__)
FILE_NAME = "metrics.json"
Metrics = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One evaluation.

    Attributes:
      checkpoint_path: any checkpoint that `score` takes (CHECKPOINT_PATH).
      output_dir: where metrics.json goes (EVAL_OUTPUT_DIR).
    """

    checkpoint_path: str
    output_dir: str


def evaluate(
    *,
    model: T5Config,
    data: RunData,
    run: EvaluateSettings,
    validation: ValidationSettings,
    mesh: MeshSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> Metrics | None:
    """Measures a checkpoint and writes metrics.json.

    Args:
      model: sizes of the checkpoint's model (MODEL).
      data: records, tasks and vocabulary.
      run: this run.
      validation: what is measured; a mixture stands for its tasks of the evaluation pool.
      mesh: how devices are shared.
      config_text: the resolved gin config, written to the output folder.
      dry_run: say what would be done, and stop before anything is read or written.

    Returns:
      HR@K and NDCG@K, the mean over tasks and of each; None after a dry run.

    Raises:
      UserError: for a mistake in settings, data or checkpoint.
    """
    checkpoint = open_source(run.checkpoint_path)
    device_mesh = make_mesh(mesh)
    shapes = abstract_model(model.init, device_mesh)
    tasks = ", ".join(validation.tasks)
    logger.info("%s, split %s, by %s", tasks, validation.split, checkpoint.path)
    logger.info("%s", describe_placement(shapes))
    if dry_run:
        checkpoint.check_fits(model)
        return None
    data.open(*validation.tasks, vocab_size=model.vocab_size)
    chosen = registry.evaluated_tasks(validation.tasks, split=validation.split)
    validation = dataclasses.replace(validation, tasks=chosen)
    planned = _plan(model, data, validation, checkpoint)
    output = Path(run.output_dir)
    if manifest.find_same_work(output, planned):
        logger.info("eval: %s is up to date", output)
        found = json.loads((output / FILE_NAME).read_text(encoding="utf-8"))
    else:
        data.check_tokenizer(chosen[0], checkpoint.tokenizer)
        restored = load_model(checkpoint, shapes)
        found = {"step": checkpoint.step}
        found |= make_evaluate(validation, data, Scorer(device_mesh))(restored)
        _write(found, output, planned, config_text)
    for name, value in found.items():
        logger.info("%s %s", name, value if name == "step" else f"{value:.4f}")
    return found


def _plan(
    model: T5Config, data: RunData, validation: ValidationSettings, checkpoint: Source
) -> manifest.Manifest:
    """Returns the manifest of the evaluation that was asked for."""
    inputs = {"checkpoint": checkpoint.fingerprint(), **data.fingerprint(validation.tasks[0])}
    settings = {
        "model": dataclasses.asdict(model),
        "validation": dataclasses.asdict(validation),
        "feature_lengths": dict(data.feature_lengths),
    }
    return manifest.Manifest(stage="eval", inputs=inputs, settings=settings)


def _write(found: Metrics, output: Path, planned: manifest.Manifest, config_text: str) -> None:
    """Writes the folder whole or not at all."""
    with files.atomic_directory(output) as folder:
        text = json.dumps(found, indent=2)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
        if config_text:
            (folder / "config.gin").write_text(config_text, encoding="utf-8")
        planned.write(folder)
