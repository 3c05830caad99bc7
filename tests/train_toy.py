"""A training run of seconds on the invented data set, in this process or, to be killed, its own.

As a program: `python tests/train_toy.py DATA_DIR MODEL_DIR TRAIN_STEPS`.
"""

import contextlib
import dataclasses
import signal
import sys
from unittest import mock

import jax
import numpy as np
from tiny_model import tiny_config

from instructrec_jax.cli import main
from instructrec_jax.models.adapters import EVERYTHING
from instructrec_jax.models.objectives import Listwise, NegativeLogLikelihood
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.stages import train as stage
from instructrec_jax.stages.evaluate import ValidationSettings
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train import Learning, TrainSettings, train
from instructrec_jax.training import loop, optimizers, state
from instructrec_jax.training.step import make_train_step

LENGTHS = {"inputs": 256, "targets": 24, "history": 4}
MODEL = tiny_config(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
OBJECTIVES = {
    "packed text": (NegativeLogLikelihood(), "toy.A1"),
    "listwise": (Listwise(), "toy.A7.grouped"),
}

_shared = {}


def once_for(settings, make):
    """Returns what `make` gives, made once in a process for all runs of equal settings."""
    key = str((make.__name__, settings))
    if key not in _shared:
        _shared[key] = make()
    return _shared[key]


def shared_programs(model):
    """Lets the runs of a process share the compiled step and the random start.

    To trace, lower and load the two takes longer than the steps of a test.
    """

    def train_step(objective, optimizer, *, shardings, **settings):
        def step():
            return make_train_step(objective, optimizer, shardings=shardings, **settings)

        return once_for((model, objective, optimizers.describe(optimizer), settings), step)

    def initial_state(init, optimizer, mesh, **settings):
        def start():
            made = state.initial_state(init, optimizer, mesh, **settings)
            return jax.tree.map(np.asarray, made), state.shardings_of(made)

        key = (model, optimizers.describe(optimizer), mesh, settings)
        arrays, shardings = once_for(key, start)
        # Copies: a step gives the buffers of its state away.
        return jax.device_put(jax.tree.map(np.array, arrays), shardings)

    programs = contextlib.ExitStack()
    programs.enter_context(mock.patch.object(stage, "make_train_step", train_step))
    programs.enter_context(mock.patch.object(stage.start, "initial_state", initial_state))
    return programs


def train_toy(
    data_dir,
    model_dir,
    train_steps,
    *,
    objective="listwise",
    learning_rate=1e-3,
    optimizer=None,
    mesh=None,
    periods=None,
    model=MODEL,
    fine_tuning=EVERYTHING,
    config_text="",
    dry_run=False,
    evaluation_batch_size=8,
    normaliser=None,
    tasks=("toy.A7.grouped",),
    **run,
):
    """Trains on the eight fake devices, or as many as there are."""
    loss, mixture = OBJECTIVES[objective]
    rate = learning_rate
    if not callable(rate):
        rate = optimizers.constant(learning_rate=learning_rate)
    settings = TrainSettings(model_dir=str(model_dir), mixture=mixture, batch_size=8, seed=1)
    with shared_programs(model):
        return train(
            learning=Learning(
                model=model,
                objective=loss,
                optimizer=optimizer or optimizers.adamw(learning_rate=rate),
                mesh=mesh or MeshSettings(),
                fine_tuning=fine_tuning,
            ),
            data=RunData(data_dir=str(data_dir), feature_lengths=LENGTHS),
            run=dataclasses.replace(settings, **run),
            periods=loop.Periods(
                train_steps=train_steps, **(periods or {"log": 1, "evaluate": 3, "checkpoint": 2})
            ),
            validation=ValidationSettings(
                tasks=tasks,
                batch_size=evaluation_batch_size,
                num_batches=2,
                normaliser=normaliser,
            ),
            config_text=config_text,
            dry_run=dry_run,
        )


if __name__ == "__main__":  # as the command runs a stage: Ctrl-C is its own matter
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    main._run = lambda words: train_toy(*words[:2], int(words[2])) or 0
    sys.exit(main.main())
