"""A training run of seconds on the invented data set, in this process or, to be killed, its own.

As a program: `python tests/train_toy.py DATA_DIR MODEL_DIR TRAIN_STEPS`.
"""

import dataclasses
import sys

from tiny_model import tiny_config

from instructrec_jax.models.adapters import EVERYTHING
from instructrec_jax.models.objectives import Listwise, NegativeLogLikelihood
from instructrec_jax.stages.evaluate import ValidationSettings
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train import Learning, TrainSettings, train
from instructrec_jax.training import optimizers
from instructrec_jax.training.loop import Periods

LENGTHS = {"inputs": 256, "targets": 24, "history": 4}
MODEL = tiny_config(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
LONG_PERIODS = {"log": 1, "evaluate": 12, "checkpoint": 4}
OBJECTIVES = {
    "packed text": (NegativeLogLikelihood(), "toy.A1"),
    "listwise": (Listwise(), "toy.A7.grouped"),
}


def train_toy(
    data_dir,
    model_dir,
    train_steps,
    *,
    objective="listwise",
    learning_rate=1e-3,
    periods=None,
    model=MODEL,
    fine_tuning=EVERYTHING,
    config_text="",
    dry_run=False,
    evaluation_batch_size=8,
    **run,
):
    """Trains on the eight fake devices, or as many as there are."""
    loss, mixture = OBJECTIVES[objective]
    rate = learning_rate
    if not callable(rate):
        rate = optimizers.constant(learning_rate=learning_rate)
    settings = TrainSettings(model_dir=str(model_dir), mixture=mixture, batch_size=8, seed=1)
    train(
        learning=Learning(
            model=model,
            objective=loss,
            optimizer=optimizers.adamw(learning_rate=rate),
            fine_tuning=fine_tuning,
        ),
        data=RunData(data_dir=str(data_dir), feature_lengths=LENGTHS),
        run=dataclasses.replace(settings, **run),
        periods=Periods(
            train_steps=train_steps, **(periods or {"log": 1, "evaluate": 3, "checkpoint": 2})
        ),
        validation=ValidationSettings(
            tasks=["toy.A7.grouped"], batch_size=evaluation_batch_size, num_batches=2
        ),
        config_text=config_text,
        dry_run=dry_run,
    )


if __name__ == "__main__":
    train_toy(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        periods=LONG_PERIODS,
    )
