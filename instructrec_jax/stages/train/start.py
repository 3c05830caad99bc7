"""What a training run is given and what it starts with: settings, state and data.

The state is this run's, another checkpoint's or random; the data begin with the first batch that
it has not seen.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import optax

from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.parameters import parameters
from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.checkpoints.t5x_layout import assemble_slots
from instructrec_jax.data.columnar import TRAIN
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning
from instructrec_jax.models.objectives import (
    Objective,
    pack_candidates,
    ranking_sizes,
    trim_instructions,
)
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import LogicalMesh, MeshSettings, abstract_model
from instructrec_jax.parallel.placement import check_rows, place_batch, process_rows
from instructrec_jax.pipeline import loader, registry
from instructrec_jax.settings import MAX_CANDIDATES, Count, Natural, Range, Rows, Seed, check_fields
from instructrec_jax.stages.run_data import RunData, dataset_of
from instructrec_jax.stages.train.warm_start import warm
from instructrec_jax.training.adafactor import AdafactorState, find_state, replace_state
from instructrec_jax.training.optimizers import skipping_non_finite
from instructrec_jax.training.state import (
    TrainState,
    initial_state,
    state_with_model,
    stored_part,
    with_stored_part,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run.

    Attributes:
      model_dir: where checkpoints, metrics and the resolved config go (MODEL_DIR).
      mixture: what to train on (MIXTURE_OR_TASK_NAME); a `.grouped` one for a listwise objective.
      batch_size: rows of a batch over all devices (BATCH_SIZE).
      num_microbatches: parts of a batch whose gradients are computed in turn and added up, to save
        memory (NUM_MICROBATCHES, T5X's num_microbatches); None, as 1: the whole batch at once. The
        step is the same but for dropout, of which each part draws its own.
      use_hardware_rng: draw dropout by the device's own generator (USE_HARDWARE_RNG), which is
        faster; as in T5X another number of devices, or another kind, then draws other numbers.
      seed: of initialisation, data order and dropout (RANDOM_SEED).
      pack: several examples in a row; not for grouped mixtures.
      num_candidates: candidates drawn for each training example, the target among them.
      initial_checkpoint_path: parameters to start from (INITIAL_CHECKPOINT_PATH): ours, or Flan-T5
        or T5 1.1 as Hugging Face or T5X keep it; see `checkpoints.source.open_source`. The
        optimizer's state comes along where it is Adafactor's there and here.
      train_steps_relative: steps of this run alone (TRAIN_STEPS_RELATIVE); None: `Periods` says
        where training ends, counting the initial checkpoint's own steps too (TRAIN_STEPS).
      warm_start: start from co-occurrence in the training histories, see `stages.train.warm_start`;
        for models without pretraining (WARM_START).
      warm_start_rank: directions in which that start tells whole titles apart; None: a quarter of
        the width (WARM_START_RANK).
      use_cached: read what SeqIO has cached of tasks from elsewhere (USE_CACHED_TASKS); ours render
        while they are read, whatever it says.
      keep_checkpoints: how many of the latest to keep, beside the best.
      max_skipped_updates: steps whose loss or gradient may be not finite (MAX_SKIPPED_UPDATES):
        they leave the model as it is; one more stops the run.
      trackers: who gets the metrics beside MODEL_DIR, "wandb", "mlflow" or both (the extras of
        these names); the settings of W&B and MLflow are their own environment variables.
    """

    model_dir: str
    mixture: str
    batch_size: Rows
    num_microbatches: Count | None = None
    use_hardware_rng: bool = False
    seed: Seed = 0  # never None, as T5X draws anew at every start: an interrupted run goes on
    pack: bool = True
    num_candidates: Annotated[int, Range(2, MAX_CANDIDATES)] = 10
    initial_checkpoint_path: str | None = None
    train_steps_relative: Count | None = None
    warm_start: bool = False
    warm_start_rank: Count | None = None
    use_cached: bool = False
    keep_checkpoints: Count = 2
    max_skipped_updates: Natural = 0
    trackers: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self)


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

    def __post_init__(self) -> None:
        check_fields(self)


def open_initial(learning: Learning, run: TrainSettings) -> Source | None:
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
    if source.is_int8:
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH is {source.path}, whose weights are int8, which scores and "
            "does not learn; name the checkpoint that it was converted from"
        )
    return source


def initialise(
    learning: Learning,
    run: TrainSettings,
    mesh: LogicalMesh,
    *,
    latest: store.CheckpointStore,
    abstract: TrainState,
    initial: Source | None,
) -> TrainState:
    """Returns the state to start from."""
    tuning, state, step = learning.fine_tuning, None, latest.latest_step()
    processes.check_alike({f"the latest checkpoint in {latest.folder}": step})
    # 1. The latest checkpoint in MODEL_DIR: an interrupted run goes on where it was.
    if step is not None:
        logger.info("resuming from step %d in %s", step, latest.folder)
        state = latest.restore(step, stored_part(abstract, tuning))
        if tuning.lora is None:
            return state
    # 2. INITIAL_CHECKPOINT_PATH: its parameters, its step and, as in T5X, Adafactor's state.
    if initial is not None:
        logger.info("starting from the parameters of %s (%s)", initial.path, initial.kind)
        base = load_model(initial, abstract_model(learning.model.init, mesh))
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
        learning.model.init, learning.optimizer, mesh, seed=run.seed, fine_tuning=tuning
    )
    if run.warm_start:
        dataset, rank = dataset_of(run.mixture), run.warm_start_rank
        fresh = fresh._replace(model=warm(fresh.model, dataset, seed=run.seed, rank=rank))
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


def open_batches(
    objective: Objective,
    data: RunData,
    run: TrainSettings,
    *,
    mesh: LogicalMesh,
    position: loader.Position | None,
) -> loader.Batches:
    """Returns the endless batches of this process.

    Args:
      objective: decides whether a row is a whole ranking.
      data: records and tasks.
      run: this run.
      mesh: the device mesh, which says what rows are on devices of this process.
      position: where they begin, as `data_position` gave it; None for the first one.
    """
    shared: dict[str, Any] = {
        "batch_size": run.batch_size,
        "seed": run.seed,
        "rows": process_rows(run.batch_size, mesh),
        "position": position,
    }
    if objective.ranks_candidates:
        return loader.ranking_training_batches(
            run.mixture,
            feature_lengths=data.feature_lengths,
            num_candidates=run.num_candidates,
            **shared,
        )
    return loader.training_batches(
        run.mixture,
        feature_lengths={**data.feature_lengths, "candidates": run.num_candidates},
        pack=run.pack,
        use_cached=run.use_cached,
        **shared,
    )


def step_optimizer(learning: Learning, run: TrainSettings) -> optax.GradientTransformation:
    """Returns the optimizer as the step takes it."""
    is_skipping = run.max_skipped_updates > 0
    return skipping_non_finite(learning.optimizer) if is_skipping else learning.optimizer


def data_position(batches: loader.Batches) -> loader.Position:
    """Returns where the batches of all processes go on, for any number of processes."""
    # Groups without a row in a process are at [0, 0] there.
    of_groups = zip(*processes.gathered(batches.position), strict=True)
    return [list(max(positions)) for positions in of_groups]


def placer(
    objective: Objective, data: RunData, run: TrainSettings, mesh: LogicalMesh
) -> Callable[[Mapping], dict[str, jax.Array]]:
    """Returns what brings a numpy batch into the form the objective takes, on the devices."""
    place = functools.partial(place_batch, mesh=mesh, num_rows=run.batch_size)
    if not objective.ranks_candidates:
        return place

    def place_ranking(batch: Mapping) -> dict[str, jax.Array]:
        # The shapes of all processes are one: by the largest among the rows of all.
        largest = map(max, zip(*processes.gathered(ranking_sizes(batch)), strict=True))
        longest, *_ = sizes = tuple(largest)
        return place(pack_candidates(trim_instructions(batch, data.buckets, longest), sizes=sizes))

    return place_ranking


def check_mixture(objective: Objective, run: TrainSettings) -> int:
    """Returns the number of examples; raises UserError if there is nothing of that name."""
    name = run.mixture
    name = registry.grouped_name(name) if objective.ranks_candidates else name
    return loader.check_records(name, TRAIN)


def check_batch(run: TrainSettings, mesh: LogicalMesh, lengths: Mapping[str, int]) -> None:
    """Raises UserError if a batch cannot be shared by the devices.

    Args:
      run: this run.
      mesh: the device mesh.
      lengths: TASK_FEATURE_LENGTHS.
    """
    shares = mesh.num_shares("length")
    for name in ("inputs", "targets"):
        if lengths.get(name, 0) % shares:
            raise UserError(
                f"TASK_FEATURE_LENGTHS has {lengths[name]} {name}; expected a multiple of the "
                f"{shares} devices that logical_axis_rules split length over"
            )
    check_rows(run.batch_size, mesh, name="BATCH_SIZE")
    if number := run.num_microbatches:
        if run.batch_size % number:
            raise UserError(
                f"BATCH_SIZE is {run.batch_size}; expected a multiple of NUM_MICROBATCHES, which "
                f"is {number}"
            )
        check_rows(run.batch_size // number, mesh, name="BATCH_SIZE / NUM_MICROBATCHES")
