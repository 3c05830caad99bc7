"""A scoring run of seconds on the invented data set, in this process or, to be killed, its own.

As a program: `python tests/score_toy.py DATA_DIR CHECKPOINT OUTPUT_DIR`; it rests after
each part.
"""

import dataclasses
import logging
import sys
import time

from tiny_model import tiny_model
from train_toy import LENGTHS, MODEL

from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.scores import parts
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.score import ScoreSettings, score

TASKS = ("toy.A7.grouped", "toy.C10.specific.grouped")


def save_toy_model(folder):
    """Writes a random model as the checkpoint of step 5; returns the folder."""
    store = CheckpointStore(folder / "checkpoints", keep=1)
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    store.save(5, {"model": tiny_model(**sizes)})
    store.close()
    return folder


def toy_data(data_dir, lengths=LENGTHS) -> RunData:
    return RunData(data_dir=str(data_dir), feature_lengths=lengths)


def score_toy(
    data_dir, checkpoint, output_dir, *, model=MODEL, lengths=LENGTHS, dry_run=False, **run
):
    settings = ScoreSettings(
        checkpoint_path=str(checkpoint),
        output_dir=str(output_dir),
        tasks=TASKS,
        shard_size=16,
    )
    return score(
        model=model,
        data=toy_data(data_dir, lengths),
        run=dataclasses.replace(settings, **run),
        mesh=MeshSettings(),
        config_text="A = 1\n",
        dry_run=dry_run,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, force=True)
    write_part = parts.write_part

    def write_and_rest(*arguments):
        write_part(*arguments)
        time.sleep(0.2)

    parts.write_part = write_and_rest
    score_toy(*sys.argv[1:])
