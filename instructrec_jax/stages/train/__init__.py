"""`instructrec train`: artefact C -> checkpoints (artefact D) in MODEL_DIR."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from instructrec_jax import files, manifest
from instructrec_jax.baselines.cooccurrence import cooccurrence_embeddings
from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.adapters import claim_base
from instructrec_jax.checkpoints.parameters import parameters
from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.checkpoints.t5x_layout import assemble_slots
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning, split
from instructrec_jax.models.objectives import Objective
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel.mesh import MeshSettings, check_rows, make_mesh, place_batch
from instructrec_jax.pipeline import loader, token_sequences
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.evaluation import EvaluationSettings, make_evaluate
from instructrec_jax.stages.run_data import RunData, dataset_of
from instructrec_jax.training.adafactor import AdafactorState, find_state, replace_state
from instructrec_jax.training.loop import Actions, Periods, run_loop
from instructrec_jax.training.metrics_log import MetricsLog
from instructrec_jax.training.optimizers import describe
from instructrec_jax.training.packing import pack_candidates
from instructrec_jax.training.state import (
    TrainState,
    abstract_model,
    abstract_state,
    describe_placement,
    initial_state,
    num_parameters,
    state_with_model,
    stored_part,
    with_stored_part,
)
from instructrec_jax.training.step import make_train_step
from instructrec_jax.training.warm_start import with_averaging_attention, with_token_embeddings

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run.

    Attributes:
      model_dir: where checkpoints, metrics and the resolved config go (MODEL_DIR).
      mixture: what to train on (MIXTURE_OR_TASK_NAME); a `.grouped` one for a listwise objective.
      batch_size: rows of a batch over all devices (BATCH_SIZE).
      seed: of initialisation, data order and dropout (RANDOM_SEED).
      pack: several examples in a row; not for grouped mixtures.
      num_candidates: candidates drawn for each training example, the target among them.
      initial_checkpoint_path: parameters to start from (INITIAL_CHECKPOINT_PATH): ours, or Flan-T5
        or T5 1.1 as Hugging Face or T5X keep it; see `checkpoints.source.open_source`. The
        optimizer's state comes along where it is Adafactor's there and here.
      train_steps_relative: steps of this run alone (TRAIN_STEPS_RELATIVE); None: `Periods` says
        where training ends, counting the initial checkpoint's own steps too (TRAIN_STEPS).
      warm_start: start from co-occurrence in the training histories, see `training.warm_start`; for
        models without pretraining.
      use_cached: read what SeqIO has cached of tasks from elsewhere (USE_CACHED_TASKS); ours render
        while they are read, whatever it says.
      keep_checkpoints: how many of the latest to keep, beside the best.
    """

    model_dir: str
    mixture: str
    batch_size: int
    seed: int = 0
    pack: bool = True
    num_candidates: int = 10
    initial_checkpoint_path: str | None = None
    train_steps_relative: int | None = None
    warm_start: bool = False
    use_cached: bool = False
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.seed is None:  # T5X's way to draw anew at every start
            raise UserError(
                "RANDOM_SEED is None; expected a whole number: an interrupted run goes on with the "
                "draws that it would have had"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learnt and how.

    Attributes:
      model: sizes (MODEL).
      objective: the loss (OBJECTIVE).
      optimizer: one of `training.optimizers`, or any optax transformation (OPTIMIZER).
      mesh: how devices are shared (NUM_PARTITIONS is its `tensor`).
      fine_tuning: which parameters learn: all, all but some, or adapters (gin/overlays).
    """

    model: T5Config
    objective: Objective
    optimizer: optax.GradientTransformation
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    fine_tuning: FineTuning = dataclasses.field(default_factory=FineTuning)


def train(
    *,
    learning: Learning,
    data: RunData,
    run: TrainSettings,
    periods: Periods,
    evaluation: EvaluationSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> None:
    """Trains, or goes on training, until `periods.train_steps`.

    Args:
      learning: model, objective, optimizer and mesh.
      data: records, tasks and vocabulary.
      run: this run.
      periods: how long, and when to log, evaluate and save.
      evaluation: what is measured on the way.
      config_text: the resolved gin config, written to MODEL_DIR.
      dry_run: say what would be done, and stop before anything is read or written.

    Raises:
      UserError: for a mistake in settings or data, or a loss that is not finite.
    """
    mesh = make_mesh(learning.mesh)
    tuning = learning.fine_tuning
    abstract = abstract_state(learning.model, learning.optimizer, mesh, fine_tuning=tuning)
    # Mistakes come out before MODEL_DIR is claimed, and long before the first evaluation.
    check_rows(run.batch_size, mesh, name="BATCH_SIZE")
    check_rows(evaluation.batch_size, mesh, name="evaluation batch size")
    initial = _open_initial(learning, run)
    first_step, periods = _count_steps(run, periods, initial)
    logger.info(_describe(abstract, learning, run, periods, first_step=first_step))
    if dry_run:
        return
    data.open(run.mixture, vocab_size=learning.model.vocab_size)
    data.check_tokenizer(run.mixture, None if initial is None else initial.tokenizer)
    _claim(learning, data, run, initial)
    folder = Path(run.model_dir)
    if config_text:
        files.write_text(folder / "config.gin", config_text)
    latest = store.CheckpointStore(folder / store.LATEST, keep=run.keep_checkpoints)
    best = store.CheckpointStore(folder / store.BEST, keep=1, best_metric=evaluation.headline)
    state = _initialise(learning, run, latest=latest, abstract=abstract, initial=initial)
    log = MetricsLog(folder, first_step=int(state.step))
    if int(state.step) < periods.last_step:
        run_loop(
            state,
            _batches(learning.objective, data, run, skip=int(state.step) - first_step),
            train_step=make_train_step(
                learning.objective,
                learning.optimizer,
                mesh=mesh,
                shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
                seed=run.seed,
                fine_tuning=tuning,
            ),
            periods=periods,
            actions=Actions(
                place=_placer(learning.objective, mesh),
                evaluate=make_evaluate(evaluation, data, Scorer(mesh)),
                save=_saver(latest, best, tuning),
            ),
            log=log,
        )
    else:
        logger.info("nothing left to do: %s is at step %d", run.model_dir, int(state.step))
    for closing in (log, latest, best):
        closing.close()


def _open_initial(learning: Learning, run: TrainSettings) -> Source | None:
    """Returns the checkpoint to start from, its names, shapes and sizes checked, or None."""
    if run.initial_checkpoint_path is None:
        if learning.fine_tuning.lora is not None:
            raise UserError(
                "LoRA without INITIAL_CHECKPOINT_PATH: checkpoints of such a run hold adapters "
                "alone; name the model that they adapt, or train all of a new one"
            )
        return None
    source = open_source(run.initial_checkpoint_path)
    source.check_fits(learning.model)
    return source


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


def _claim(learning: Learning, data: RunData, run: TrainSettings, initial: Source | None) -> None:
    """Refuses a MODEL_DIR that holds a run of another model, mixture or seed."""
    settings = {
        "model": dataclasses.asdict(learning.model),
        "objective": repr(learning.objective),
        "optimizer": describe(learning.optimizer),
        "mixture": run.mixture,
        "batch_size": run.batch_size,
        "seed": run.seed,
        "pack": run.pack,
        "num_candidates": run.num_candidates,
        "feature_lengths": dict(data.feature_lengths),
        "initial_checkpoint_path": run.initial_checkpoint_path,
        "initial_step": 0 if initial is None else initial.step,
        "warm_start": run.warm_start,
        "fine_tuning": dataclasses.asdict(learning.fine_tuning),
    }
    planned = manifest.Manifest(
        stage="train", inputs=data.fingerprint(run.mixture), settings=settings
    )
    manifest.claim(run.model_dir, planned)
    if learning.fine_tuning.lora is not None and initial is not None:
        claim_base(run.model_dir, initial, learning.fine_tuning.lora)


def _initialise(
    learning: Learning,
    run: TrainSettings,
    *,
    latest: store.CheckpointStore,
    abstract: TrainState,
    initial: Source | None,
) -> TrainState:
    """Returns the state to start from."""
    tuning, mesh = learning.fine_tuning, abstract.step.sharding.mesh
    state, step = None, latest.latest_step()
    # 1. The latest checkpoint in MODEL_DIR: an interrupted run goes on where it was.
    if step is not None:
        logger.info("resuming from step %d in %s", step, latest.folder)
        state = latest.restore(step, stored_part(abstract, tuning))
        if tuning.lora is None:
            return state
    # 2. INITIAL_CHECKPOINT_PATH: its parameters, its step and, as in T5X, Adafactor's state.
    if initial is not None:
        logger.info("starting from the parameters of %s (%s)", initial.path, initial.kind)
        base = load_model(initial, abstract_model(learning.model, mesh))
        started = state_with_model(
            base,
            learning.optimizer,
            abstract,
            step=initial.step,
            fine_tuning=tuning,
            seed=run.seed,
        )
        if state is not None:  # of LoRA, 1. is adapters and their optimizer alone
            return with_stored_part(started, state, tuning)
        return _with_saved_slots(started, abstract, initial, tuning)
    # 3. Random, or a start that the training histories suggest where that is asked for.
    fresh = initial_state(
        learning.model, learning.optimizer, mesh, seed=run.seed, fine_tuning=tuning
    )
    if run.warm_start:
        fresh = fresh._replace(model=_warm(fresh.model, learning.model, run))
    return fresh


def _with_saved_slots(
    state: TrainState, abstract: TrainState, initial: Source, tuning: FineTuning
) -> TrainState:
    """Returns the state with Adafactor's of the checkpoint, if it has one and the run a use."""
    wanted, afresh = find_state(abstract.optimizer_state), "the optimizer starts afresh: "
    if initial.slots is None:
        logger.info(afresh + "%s holds no state of Adafactor", initial.path)
    elif wanted is None or tuning.lora is not None:
        logger.info(afresh + "the state in %s is of Adafactor over all weights", initial.path)
    else:
        logger.info("Adafactor goes on with its state of step %d", initial.slots.step)
        slots = assemble_slots(parameters(abstract.model), wanted._asdict(), initial.slots)
        moments = replace_state(state.optimizer_state, AdafactorState(**slots))
        return state._replace(optimizer_state=moments)
    return state


def _warm(model: Any, config: T5Config, run: TrainSettings) -> Any:
    """Returns the model with a start that the training histories suggest."""
    sequences = token_sequences.training_token_sequences(dataset_of(run.mixture))
    vectors = cooccurrence_embeddings(sequences, config.vocab_size, config.emb_dim, run.seed)
    logger.info("token embeddings start from co-occurrence in %d histories", len(sequences))
    return with_averaging_attention(with_token_embeddings(model, vectors), seed=run.seed)


def _saver(
    latest: store.CheckpointStore, best: store.CheckpointStore, tuning: FineTuning
) -> Callable[[int, TrainState, Mapping[str, float] | None], None]:
    """Returns what keeps a state with the latest ones and, where measured, with the best."""

    def save(step: int, state: TrainState, measured: Mapping[str, float] | None) -> None:
        state = stored_part(state, tuning)
        # The best first: a run killed in between takes these steps again and misses nothing.
        if measured is not None:
            best.save(step, state._replace(optimizer_state=None), measured)
        latest.save(step, state)

    return save


def _batches(
    objective: Objective, data: RunData, run: TrainSettings, *, skip: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Returns the endless batches of this process without the first `skip`."""
    if objective.ranks_candidates:
        return loader.ranking_batches(
            run.mixture,
            split="train",
            feature_lengths=data.feature_lengths,
            batch_size=run.batch_size,
            num_candidates=run.num_candidates,
            seed=run.seed,
            skip_batches=skip,
            buckets=data.buckets,
        )
    return loader.training_batches(
        run.mixture,
        feature_lengths={**data.feature_lengths, "candidates": run.num_candidates},
        batch_size=run.batch_size,
        seed=run.seed,
        pack=run.pack,
        skip_batches=skip,
        use_cached=run.use_cached,
    )


def _placer(objective: Objective, mesh: Mesh) -> Callable[[Mapping], dict[str, jax.Array]]:
    """Returns what brings a numpy batch into the form the objective takes, on the devices."""
    if objective.ranks_candidates:
        return lambda batch: place_batch(pack_candidates(batch), mesh)
    return functools.partial(place_batch, mesh=mesh)


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
    placement = describe_placement(abstract.model, abstract.optimizer_state)
    num_trained = num_parameters(split(abstract.model, learning.fine_tuning)[0])
    learns = "" if num_trained == num_parameters(abstract.model) else f", {num_trained:,} learn"
    return (
        f"{run.mixture}: {placement}; {name}{learns}, {num_steps} steps of "
        f"{run.batch_size} rows{after}, into {run.model_dir}"
    )
