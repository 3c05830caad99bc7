"""Measures the input pipeline: examples a second, and how much of a batch is padding.

    python benchmarks/pipeline_rate.py --data_dir=runs/records --task=amazon_games.all

Protocol: one process, no model. The stream of `loader.training_batches` is read once with packing
and once without: the first batches (which build the graph and fill the buffers) are left out, then
batches are read for a number of seconds. Tokenisation, rendering and the token budget are part of
it. An example is a pair of instruction and answer; padding is the share of positions of the encoder
and of the decoder that hold no token. The machine is noisy: compare figures of one run.
"""

import argparse
import time

import numpy as np

from instructrec_jax.pipeline import loader
from instructrec_jax.stages.run_data import RunData

NUM_WARM_UP = 3


def measure(task: str, *, lengths: dict[str, int], batch_size: int, pack: bool, seconds: float):
    """Returns (examples a second, padding share of inputs, padding share of targets)."""
    batches = loader.training_batches(
        task, feature_lengths=lengths, batch_size=batch_size, seed=0, pack=pack
    )
    for _ in range(NUM_WARM_UP):
        next(batches)
    num_examples, paddings = 0, []
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        batch = next(batches)
        num_examples += int(batch["decoder_segment_ids"].max(axis=1).sum()) if pack else batch_size
        paddings.append(
            [np.mean(batch[f"{side}_tokens"] == 0) for side in ("encoder_input", "decoder_target")]
        )
    return num_examples / passed, *np.mean(paddings, axis=0)


def main() -> None:
    """Prints one line for packed and one for single rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder that `instructrec build` wrote")
    parser.add_argument("--task", required=True, help="task or mixture")
    parser.add_argument("--module", default="instructrec_jax.tasks.mixtures")
    parser.add_argument("--input_tokens", type=int, default=512)
    parser.add_argument("--target_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    lengths = {"inputs": options.input_tokens, "targets": options.target_tokens}
    data = RunData(data_dir=options.data_dir, feature_lengths=lengths, module=options.module)
    data.open(options.task, vocab_size=1 << 20)
    for pack in (False, True):
        rate, inputs, targets = measure(
            options.task,
            lengths=lengths,
            batch_size=options.batch_size,
            pack=pack,
            seconds=options.seconds,
        )
        name = "packed" if pack else "single"
        print(
            f"{name} rows: {rate:.0f} examples/s, padding {inputs:.1%} of inputs, "
            f"{targets:.1%} of targets"
        )


if __name__ == "__main__":
    main()
