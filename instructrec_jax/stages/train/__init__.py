"""`instructrec train`: artefact C -> checkpoints (artefact D) in MODEL_DIR."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints import ranking_config, store
from instructrec_jax.checkpoints.adapters import claim_base
from instructrec_jax.checkpoints.ranking_config import DEFAULT_NORMALISER, RankingConfig
from instructrec_jax.checkpoints.source import TOKENIZER_FILE, Source
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning, split
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import LogicalMesh, make_mesh
from instructrec_jax.parallel.placement import describe_placement, num_parameters
from instructrec_jax.pipeline import loader
from instructrec_jax.report import curves
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.dry_run import DryRun
from instructrec_jax.stages.evaluate import Metrics, ValidationSettings, make_evaluate
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.together import check_run
from instructrec_jax.stages.train.start import (
    Learning,
    TrainSettings,
    check_batch,
    check_mixture,
    data_position,
    initialise,
    open_batches,
    open_initial,
    placer,
    step_optimizer,
)
from instructrec_jax.tokenizer import SentencePieceModel
from instructrec_jax.training.guards import Guards
from instructrec_jax.training.loop import Actions, Periods, run_loop
from instructrec_jax.training.metrics_log import (
    EVENTS,
    FILE_NAME,
    MetricsLog,
    NoMetricsLog,
    read_metrics,
)
from instructrec_jax.training.optimizers import describe
from instructrec_jax.training.state import TrainState, abstract_state, shardings_of, stored_part
from instructrec_jax.training.step import (
    HARDWARE_RNG,
    SOFTWARE_RNG,
    TrainStep,
    make_train_step,
)

logger = logging.getLogger(__name__)


def train(
    *,
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    periods: Periods,
    validation: ValidationSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> DryRun | None:
    """Trains, or goes on training, until `periods.train_steps`.

    Args:
      learning: model, objective, optimizer and mesh.
      data: records, tasks and vocabulary.
      run: this run.
      periods: how long, and when to log, evaluate and save.
      validation: what is measured on the way.
      config_text: the resolved gin config, written to MODEL_DIR.
      dry_run: say what would be done, and stop before anything is written.

    Returns:
      What a dry run found.

    Raises:
      UserError: for a mistake in settings or data, or a loss that is not finite.
      KeyboardInterrupt: after Ctrl-C, when the step is saved.
    """
    mesh, tuning, objective = make_mesh(learning.mesh), learning.fine_tuning, learning.objective
    abstract = abstract_state(learning.model.init, learning.optimizer, mesh, fine_tuning=tuning)
    check_batch(run, mesh, data.feature_lengths)  # before MODEL_DIR is claimed
    if dry_run:
        return _dry_run(learning, data, run, periods, abstract=abstract)
    with processes.sharing_errors():
        initial = open_initial(learning, run)
        first_step, periods = _count_steps(run, periods, initial)
        logger.info(_describe(abstract, learning, run, periods, first_step=first_step))
        evaluate, texts = _evaluator(learning, data, run, validation, initial, mesh)
    _claim(learning, data, run, initial, config_text)
    _describe_model(data, run, validation, config_text)
    with contextlib.ExitStack() as opened:
        latest, best = _open_stores(run, validation, opened)
        state = initialise(learning, run, mesh, latest=latest, abstract=abstract, initial=initial)
        has_begun = (step := int(state.step)) > first_step
        log = _open_log(run, step, opened)
        is_due = has_begun and periods.is_evaluated(step) and not _is_evaluated(log, validation)
        if step >= periods.last_step and not is_due:
            logger.info("nothing left to do: %s is at step %d", run.model_dir, step)
            return None
        position = latest.data_position(step) if has_begun else None
        guards = _guards(log, run, latest, step=step if has_begun else None)
        batches = open_batches(objective, data, run, mesh=mesh, position=position)
        opened.callback(batches.close)
        run_loop(
            state,
            batches,
            train_step=_train_step(learning, run, mesh=mesh, abstract=abstract),
            periods=periods,
            actions=Actions(
                place=placer(objective, data, run, mesh),
                save=_saver(latest, batches, guards, tuning),
                evaluate=evaluate,
                keep_best=_keeper(best, tuning),
                texts=texts,
            ),
            log=log,
            guards=guards,
            is_evaluation_missing=is_due,
        )
    return None


def _dry_run(
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    periods: Periods,
    *,
    abstract: TrainState,
) -> DryRun:
    """Returns what the run would do, and what stops it."""
    dry, initial = DryRun(), None
    dry.look_at_memory(abstract.model, abstract.optimizer_state)
    with dry.row("checkpoint") as say:
        initial = open_initial(learning, run)
        say("none: random weights")
        if initial is not None:
            dry.open_checkpoint(initial)
        if steps := store.finished_steps(Path(run.model_dir) / store.LATEST):
            say(f"found: {run.model_dir}, step {max(steps)}, from which it goes on")
    first_step, periods = _count_steps(run, periods, initial)
    logger.info(_describe(abstract, learning, run, periods, first_step=first_step))
    number = periods.last_step - first_step
    dry.rows["work"] = f"{number:,} steps of {run.batch_size} rows, into {run.model_dir}"
    with dry.row("data") as say:
        _, num_examples = _open_data(learning, data, run, initial)
        say(f"found: {num_examples:,} examples of {run.mixture} in {data.data_dir}")
    if dry.would_start:
        dry.look_at_output(run.model_dir, _planned(learning, data, run, initial))
    return dry


def _show(model_dir: Path) -> None:
    """Draws the training curve, and says what there is to look at."""
    curve, lines = model_dir / curves.FILE_NAME, read_metrics(model_dir / FILE_NAME)
    if not any("loss" in line for line in lines):  # stopped before its first step
        return
    with files.atomic_file(curve) as temporary:
        curves.plot_training_curve(lines, temporary)
    logger.info(
        "look at %s; losses, metrics, times and ranked examples step by step: tensorboard "
        "--logdir=%s",
        *(curve, model_dir / EVENTS),
    )


def _open_data(
    learning: Learning, data: RunData, run: TrainSettings, initial: Source | None
) -> tuple[SentencePieceModel, int]:
    """Returns the vocabulary and the number of examples, having checked that they fit the model."""
    vocabulary = data.open(run.mixture, vocab_size=learning.model.vocab_size)
    data.check_tokenizer(run.mixture, None if initial is None else initial.tokenizer)
    return vocabulary, check_mixture(learning.objective, run)


def _evaluator(
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    validation: ValidationSettings,
    initial: Source | None,
    mesh: LogicalMesh,
) -> tuple[Callable[[T5], Metrics], dict[str, str]]:
    """Returns what measures a model, and where it leaves texts of ranked examples."""
    vocabulary, _ = _open_data(learning, data, run, initial)
    texts: dict[str, str] = {}
    scorer = Scorer(mesh)
    return make_evaluate(validation, data, scorer, vocabulary=vocabulary, texts=texts), texts


def _count_steps(
    run: TrainSettings, periods: Periods, initial: Source | None
) -> tuple[int, Periods]:
    """Returns the step the run begins with, and the periods with the step after which it ends."""
    first_step = 0 if initial is None else initial.step
    last_step = periods.train_steps
    if run.train_steps_relative is not None:
        last_step = first_step + run.train_steps_relative
    if last_step is None:
        raise UserError(
            "TRAIN_STEPS and TRAIN_STEPS_RELATIVE are both None; set the number of steps with "
            "--gin.TRAIN_STEPS_RELATIVE=N, or with --gin.TRAIN_STEPS=N, which counts the steps of "
            "INITIAL_CHECKPOINT_PATH too"
        )
    if last_step < first_step:
        raise UserError(
            f"TRAIN_STEPS is {last_step}, but the initial checkpoint {run.initial_checkpoint_path} "
            f"is at step {first_step} already, and its steps count; set TRAIN_STEPS to more than "
            "that, or TRAIN_STEPS_RELATIVE to the steps of this run alone"
        )
    return first_step, dataclasses.replace(periods, train_steps=last_step)


def _claim(
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    initial: Source | None,
    config_text: str,
) -> None:
    """Refuses a MODEL_DIR of a run of another model, mixture or seed, and processes that differ."""
    with processes.sharing_errors():
        planned = _planned(learning, data, run, initial)
    check_run(planned, config_text, run.model_dir)

    def claim() -> None:
        manifest.claim(run.model_dir, planned)
        if learning.fine_tuning.lora is not None and initial is not None:
            claim_base(run.model_dir, initial, learning.fine_tuning.lora)

    processes.on_main(claim)


def _is_evaluated(log: MetricsLog, validation: ValidationSettings) -> bool:
    """Whether the evaluation of the step that the run starts from has been logged."""
    return processes.on_main(lambda: log.began_with(validation.headline))


def _open_log(run: TrainSettings, step: int, opened: contextlib.ExitStack) -> MetricsLog:
    """Returns where metrics go, of process 0 alone; it is closed with the run."""
    if not processes.is_main():
        return NoMetricsLog()
    log = MetricsLog(run.model_dir, first_step=step, trackers=run.trackers)
    opened.callback(_show, Path(run.model_dir))  # however the run ends
    opened.callback(log.close)
    return log


def _planned(
    learning: Learning, data: RunData, run: TrainSettings, initial: Source | None
) -> manifest.Manifest:
    """Returns the manifest of the run, its counts still empty."""
    model = dataclasses.asdict(learning.model)
    for name in ("remat_policy", "key_block"):  # of memory alone: a run may go on with another
        del model[name]
    settings = {
        "model": model,
        "objective": repr(learning.objective),
        "optimizer": describe(learning.optimizer),
        "mixture": run.mixture,
        "batch_size": run.batch_size,
        "num_microbatches": run.num_microbatches or 1,
        "use_hardware_rng": run.use_hardware_rng,
        "seed": run.seed,
        "pack": run.pack,
        "num_candidates": run.num_candidates,
        "feature_lengths": dict(data.feature_lengths),
        "initial_checkpoint_path": run.initial_checkpoint_path,
        "initial_step": 0 if initial is None else initial.step,
        "warm_start": run.warm_start,
        "fine_tuning": dataclasses.asdict(learning.fine_tuning),
    }
    if run.warm_start_rank is not None:  # runs from before there was a choice go on
        settings["warm_start_rank"] = run.warm_start_rank
    inputs = data.fingerprint(run.mixture)
    return manifest.Manifest(stage="train", inputs=inputs, settings=settings)


def _describe_model(
    data: RunData, run: TrainSettings, validation: ValidationSettings, config_text: str
) -> None:
    """Leaves in MODEL_DIR what it takes to rank with the model: no other folder is needed.

    Says whose texts the model learns from.
    """
    folder = Path(run.model_dir)
    logger.info("%s", data.about_texts(run.mixture))

    def write() -> None:
        RankingConfig(
            normaliser=validation.normaliser or DEFAULT_NORMALISER,
            feature_lengths=data.feature_lengths,
            extra_ids=data.extra_ids,
        ).write(folder)
        data.copy_vocabulary(run.mixture, folder / TOKENIZER_FILE)
        if config_text:
            files.write_text(folder / "config.gin", config_text)
        claimed = manifest.read_manifest(folder)
        claimed.write_finished(folder, TOKENIZER_FILE, ranking_config.FILE_NAME)

    processes.on_main(write)
    processes.check_seen(folder / manifest.FILE_NAME)


def _open_stores(
    run: TrainSettings, validation: ValidationSettings, opened: contextlib.ExitStack
) -> tuple[store.CheckpointStore, store.CheckpointStore]:
    """Returns the latest checkpoints of a run, and the best."""
    folder, metric = Path(run.model_dir), validation.headline
    stores = (
        store.CheckpointStore(folder / store.LATEST, keep=run.keep_checkpoints, in_background=True),
        store.CheckpointStore(folder / store.BEST, keep=1, best_metric=metric, in_background=True),
    )
    for each in stores:
        opened.callback(each.close)
    return stores


def _guards(
    log: MetricsLog, run: TrainSettings, latest: store.CheckpointStore, *, step: int | None
) -> Guards:
    """Returns the guards of a run, which go on from a step where it is given."""
    seen = None if step is None else latest.seen(step)
    return Guards(log, max_skipped=run.max_skipped_updates, seen=seen)


def _train_step(
    learning: Learning, run: TrainSettings, *, mesh: LogicalMesh, abstract: TrainState
) -> TrainStep:
    return make_train_step(
        learning.objective,
        step_optimizer(learning, run),
        mesh=mesh,
        shardings=shardings_of(abstract),
        seed=run.seed,
        fine_tuning=learning.fine_tuning,
        num_microbatches=run.num_microbatches or 1,
        rng=HARDWARE_RNG if run.use_hardware_rng else SOFTWARE_RNG,
    )


def _saver(
    latest: store.CheckpointStore, batches: loader.Batches, guards: Guards, tuning: FineTuning
) -> Callable[[int, TrainState], None]:
    """Returns what keeps a state with the latest ones, and where the data go on after it."""

    def save(step: int, state: TrainState) -> None:
        latest.save(
            step,
            stored_part(state, tuning),
            data_position=data_position(batches),
            seen=dataclasses.asdict(guards.seen),
        )

    return save


def _keeper(
    best: store.CheckpointStore, tuning: FineTuning
) -> Callable[[int, TrainState, Mapping[str, float]], None]:
    """Returns what keeps an evaluated model if it is the best one so far."""

    def keep(step: int, state: TrainState, measured: Mapping[str, float]) -> None:
        best.save(step, stored_part(state, tuning)._replace(optimizer_state=None), measured)

    return keep


def _describe(
    abstract: TrainState,
    learning: Learning,
    run: TrainSettings,
    periods: Periods,
    *,
    first_step: int,
) -> str:
    """Returns one line on what is about to be trained, and how much memory its state takes."""
    settings = describe(learning.optimizer)
    name = settings["name"] if isinstance(settings, Mapping) else settings
    num_steps = periods.last_step - first_step
    after = f" after step {first_step}" if first_step else ""
    start = run.initial_checkpoint_path or "random weights"
    placement = describe_placement(abstract.model, abstract.optimizer_state)
    num_trained = num_parameters(split(abstract.model, learning.fine_tuning)[0])
    learns = "" if num_trained == num_parameters(abstract.model) else f", {num_trained:,} learn"
    return (
        f"{run.mixture}: {placement}; {name}{learns}, {num_steps} steps of "
        f"{run.batch_size} rows{after} from {start}, into {run.model_dir}"
    )
