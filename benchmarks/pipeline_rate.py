"""Measures the input pipeline: examples a second and a core, padding, and the start at any step.

    python benchmarks/pipeline_rate.py --data_dir=runs/records --task=amazon_games.all

Protocol: one process, no model. For packed and for single rows a stream of
`loader.training_batches` is opened at step 0 and at a late step, each until its first batch; what
the first of them pays for the graphs of templates is paid before. Then batches are read for a
number of seconds of processor time, after those that were made ahead. Reading, rendering,
tokenisation, the token budget and packing are part of it. An example is a pair of instruction and
answer; padding is the share of positions that hold no token. Wall time is noisy on a busy machine:
the figure to compare is processor seconds per 1,000 examples.

How many cores feed an accelerator: rows a second of its step x examples a row x processor seconds
an example. A step of B packed rows (512 input and 64 target tokens) of Flan-T5-XL, 1.2e9 parameters
of the encoder and 1.6e9 of the decoder, takes 6 x (512 x 1.2e9 + 64 x 1.6e9) x B = 4.3e12 B FLOPs;
a v5e-8 (8 x 197e12 bf16 FLOP/s) at 40 % of its peak then takes 146 rows a second, at 4/3 of the
FLOPs (full remat) 110. `--rows_per_second` is that number.
"""

import argparse
import time

import numpy as np

from instructrec_jax.pipeline import loader
from instructrec_jax.stages.run_data import RunData


def open_at(step: int, make, num_rows: float) -> tuple[loader.Batches, float]:
    """Returns a stream of batches from a step on, and the seconds until its first batch."""
    number = int(step * num_rows)  # windows that a row group has had by then
    began = time.monotonic()
    batches = make(None if step == 0 else number)
    next(batches)
    return batches, time.monotonic() - began


def measure(batches: loader.Batches, *, pack: bool, seconds: float) -> tuple[float, ...]:
    """Returns examples, those of a row, seconds, processor seconds, padding of both sides."""
    for _ in range(20):
        next(batches)
    num_examples, num_rows, paddings = 0, 0, []
    began, used = time.monotonic(), time.process_time()
    while (spent := time.process_time() - used) < seconds:
        batch = next(batches)
        segments = batch.get("decoder_segment_ids")
        num_examples += int(segments.max(axis=1).sum()) if pack else len(batch["example_id"])
        num_rows += len(batch["example_id"])
        paddings.append(
            [np.mean(batch[f"{side}_tokens"] == 0) for side in ("encoder_input", "decoder_target")]
        )
    each = num_examples / num_rows
    return num_examples, each, time.monotonic() - began, spent, *np.mean(paddings, axis=0)


def main() -> None:
    """Prints some lines for packed and for single rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder that `instructrec build` wrote")
    parser.add_argument("--task", required=True, help="task or mixture")
    parser.add_argument("--module", default="instructrec_jax.tasks.mixtures")
    parser.add_argument("--input_tokens", type=int, default=512)
    parser.add_argument("--target_tokens", type=int, default=64)
    parser.add_argument("--history", type=int, default=10, help="most recent titles to show")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=30.0, help="of processor time")
    parser.add_argument("--late_step", type=int, default=20_000)
    parser.add_argument("--rows_per_second", type=float, default=110.0)
    options = parser.parse_args()
    lengths = {"inputs": options.input_tokens, "targets": options.target_tokens}
    lengths["history"] = options.history
    data = RunData(data_dir=options.data_dir, feature_lengths=lengths, module=options.module)
    data.open(options.task, vocab_size=1 << 20)
    num_groups = options.batch_size // loader.row_group_size(options.batch_size)
    for pack in (False, True):

        def make(window: int | None, pack: bool = pack) -> loader.Batches:
            position = None if window is None else [[window, 0]] * num_groups
            settings = {"batch_size": options.batch_size, "seed": 0, "pack": pack}
            return loader.training_batches(
                options.task, feature_lengths=lengths, position=position, **settings
            )

        warm, _ = open_at(0, make, 1.0)
        warm.close()
        starts = []
        for step in (0, options.late_step):
            batches, passed = open_at(step, make, 0.1 if pack else 1.0)
            starts.append(f"{passed:.1f} s at step {step:,}")
            if step:
                number, examples_a_row, wall, spent, *padding = measure(
                    batches, pack=pack, seconds=options.seconds
                )
            batches.close()
        seconds_each = spent / number
        cores = options.rows_per_second * examples_a_row * seconds_each
        print(
            f"{'packed' if pack else 'single'} rows: {1 / seconds_each:.0f} examples/s of a core "
            f"({1000 * seconds_each:.2f} processor seconds per 1,000), {number / wall:.0f} of the "
            f"machine; {examples_a_row:.2f} examples a row, padding {padding[0]:.1%} of inputs, "
            f"{padding[1]:.1%} of targets; first batch after {' and '.join(starts)}; "
            f"{options.rows_per_second:.0f} rows a second take {cores:.2f} cores"
        )


if __name__ == "__main__":
    main()
