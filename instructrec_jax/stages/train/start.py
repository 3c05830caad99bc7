"""The state that training starts from: the run's latest, another checkpoint's or a random one."""

import logging

from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.parameters import parameters
from instructrec_jax.checkpoints.source import Source, load_model, open_source
from instructrec_jax.checkpoints.t5x_layout import assemble_slots
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning
from instructrec_jax.parallel.mesh import abstract_model
from instructrec_jax.stages.run_data import dataset_of
from instructrec_jax.stages.train.settings import Learning, TrainSettings
from instructrec_jax.stages.train.warm_start import warm
from instructrec_jax.training.adafactor import AdafactorState, find_state, replace_state
from instructrec_jax.training.state import (
    TrainState,
    initial_state,
    state_with_model,
    stored_part,
    with_stored_part,
)

logger = logging.getLogger(__name__)


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
    return source


def initialise(
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
        fresh = fresh._replace(model=warm(fresh.model, dataset_of(run.mixture), seed=run.seed))
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
