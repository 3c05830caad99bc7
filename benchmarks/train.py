"""Compares training steps: this package's, and the usual ones of Hugging Face and T5X.

    python benchmarks/train.py --json=/tmp/train.json
    python benchmarks/train.py --records=runs/records --task=amazon_games.A1

Ways: `ours`, packed rows; `hf_trimmed`: torch, one example a row, trimmed to the longest of about 8
at a time, as careful users do; `hf_padded`: the same padded to the length of our rows; `t5x_packed`
and `t5x_padded`, where T5X is installed (it is on no package registry): its own step, on our packed
rows, and on one example a row.

Protocol: T5-small shapes (512 wide, 6 heads of 64, 1024, 8 + 8 layers, 32128 words), float32, the
same random weights. Examples as in `score.py`: inputs normal(230, 60) clipped to [80, 512], targets
uniform 6..20, or those of `--task`. `--window` of them are packed as training packs them; the first
`--batches` x `--rows` rows are what is trained on, and every way sees exactly their examples, the
parameters changing once a batch (T5X padded: once in 8 examples, those of the last part left out).
All use Adafactor with T5's settings and a rate of 1e-3 (transformers' own with torch), dropout as
`--dropout` says; z-loss is ours and T5X's alone. Each way has a process of its own, with the cores
of the machine, and they take turns: one warm-up run each, then `--rounds` rounds, of which the
median counts. Useful tokens are those that are not padding, of inputs and targets together; a ratio
is the median over the rounds, each on the same machine. The peak is that of float32 matrix products
(2048 x 2048), measured before and after each run. All have large arrays in huge pages, as
`instructrec` has (GLIBC_TUNABLES= before the command takes them away). Seconds of the cores are
what the process used of all of them: where others share the machine, these say more. With
`--dropout=0` first losses agree.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import score_ways
import train_ways
import turns
from score import write_model

from instructrec_jax.pipeline.training_rows import packed_rows

INPUT_LENGTH = 512


class Training(turns.Worker):
    """A process that trains in one way."""

    def __init__(self, way: str, folder: Path, dropout: float, num_tokens: int) -> None:
        job = {"way": way, "folder": str(folder), "dropout": dropout}
        self.runs: list[dict] = []
        super().__init__(train_ways.__file__, job)
        self.num_tokens = int(self.first["costs"].pop("tokens", num_tokens))

    def rates(self, of: str = "seconds") -> list[float]:
        """Returns the useful tokens of each round by its seconds, or by those of the cores."""
        return [self.num_tokens / run[of] for run in self.runs]


def drawn_examples(number: int, target_length: int) -> dict[str, np.ndarray]:
    """Returns invented examples as rows, 0 = padding."""
    requests = score_ways.workload(number, 1)
    rows = [(inputs, titles[0]) for inputs, titles in requests]
    lengths = (INPUT_LENGTH, target_length)
    inputs, targets = (
        np.stack([np.pad(row[side], (0, length - len(row[side]))) for row in rows])
        for side, length in enumerate(lengths)
    )
    return {"inputs": inputs, "targets": targets}


def real_examples(records: str, task: str, number: int, target_length: int) -> dict:
    """Returns the first examples that training on a task reads."""
    from instructrec_jax.pipeline import loader, record_store, registry, vocabulary

    dataset = task.split(".")[0]
    registry.import_task_module("instructrec_jax.tasks.mixtures", dataset)
    record_store.use_data_dir(records)
    vocabulary.use_vocabulary(Path(records) / dataset / "vocabulary" / "sentencepiece.model")
    batches = loader.training_batches(
        task,
        feature_lengths={"inputs": INPUT_LENGTH, "targets": target_length},
        batch_size=number,
        seed=0,
        pack=False,
    )
    batch = next(batches)
    batches.close()
    return {"inputs": batch["encoder_input_tokens"], "targets": batch["decoder_target_tokens"]}


def write_batches(examples: dict[str, np.ndarray], folder: Path, shape: tuple[int, int]) -> dict:
    """Writes the batches of all ways; returns what they hold.

    Args:
      examples: a window of them.
      folder: where the ways find them.
      shape: batches, and rows of each.
    """
    number = len(examples["inputs"])
    ids = np.array([str(index) for index in range(number)], np.bytes_)
    lengths = {name: array.shape[1] for name, array in examples.items()}
    told = {"example_id": ids, "example_number": np.arange(number)}
    packed = packed_rows({**examples, **told}, lengths)
    kept = shape[0] * shape[1]
    if len(packed["example_id"]) < kept:
        raise SystemExit(f"{number} examples fill fewer than {kept} rows; take a larger --window")
    window_fill = float(
        (packed["encoder_input_tokens"][:-1] > 0).mean()
    )  # its last row may be short
    names = packed.pop("example_id")[:kept]
    del packed["example_number"]
    packed = {name: array[:kept].reshape(*shape, -1) for name, array in packed.items()}
    np.savez(folder / "packed.npz", **packed)
    owner = [(int(name), row // shape[1]) for row, own in enumerate(names) for name in own if name]
    index, batch = map(np.array, zip(*sorted(owner), strict=True))
    chosen = {name: array[index] for name, array in examples.items()}
    np.savez(folder / "examples.npz", **chosen, batch=batch)
    tokens = {name: int((array > 0).sum()) for name, array in chosen.items()}
    return {
        "examples": len(index),
        "useful_tokens": sum(tokens.values()),
        "input_fill_of_window": window_fill,
        "input_fill": tokens["inputs"] / packed["encoder_input_tokens"].size,
        "target_fill": tokens["targets"] / packed["decoder_target_tokens"].size,
        "longest": int((chosen["inputs"] > 0).sum(axis=1).max()),
    }


def compare(ways: list[str], folder: Path, *, rounds: int, dropout: float, tokens: int) -> dict:
    """Runs the ways in turn; returns the figures, "<figure>_<way>"."""
    workers = {way: Training(way, folder, dropout, tokens) for way in ways}
    for number in range(rounds):
        for way, worker in workers.items():
            worker.runs.append(worker.ask({}))
            rate, of_cores = worker.rates()[-1], worker.rates("cpu_seconds")[-1]
            print(f"round {number} {way} {rate:.1f} tokens/s, {of_cores:.1f} a core", flush=True)
    figures: dict[str, float] = {}
    for way, worker in workers.items():
        worker.close()
        figures[f"useful_tokens_per_second_{way}"] = statistics.median(worker.rates())
        peaks = [np.mean(run["peaks"]) for run in worker.runs]
        figures[f"peak_gflops_{way}"] = statistics.median(peaks) / 1e9
        figures[f"first_loss_{way}"] = worker.first["loss"]
        figures |= {f"{name}_{way}": value for name, value in worker.first["costs"].items()}
        figures[f"tokens_per_core_second_{way}"] = statistics.median(worker.rates("cpu_seconds"))
        if way == "ours" or "ours" not in workers:
            continue
        for name, of in (("ours_over", "seconds"), ("ours_over_by_core", "cpu_seconds")):
            pairs = zip(workers["ours"].rates(of), worker.rates(of), strict=True)
            figures[f"{name}_{way}"] = statistics.median(mine / other for mine, other in pairs)
    return figures


def show(ways: list[str], figures: dict[str, float]) -> None:
    """Prints the table."""
    print("\n| way | useful tokens/s | ours is | of a core's seconds | peak GFLOP/s | loss |")
    print("|---|---|---|---|---|---|")
    for way in ways:
        ratios = [figures.get(f"{name}_{way}") for name in ("ours_over", "ours_over_by_core")]
        shown = ["" if ratio is None else f"{ratio:.2f} x" for ratio in ratios]
        print(
            f"| {way} | {figures[f'useful_tokens_per_second_{way}']:.0f} | {shown[0]} | {shown[1]} "
            f"| {figures[f'peak_gflops_{way}']:.0f} | {figures[f'first_loss_{way}']:.5f} |"
        )


def _installed_ways() -> list[str]:
    has_t5x = importlib.util.find_spec("t5x") is not None
    return [way for way in train_ways.WAYS if has_t5x or not way.startswith("t5x")]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", default=_installed_ways())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--target_length", type=int, default=40)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--records", help="DATA_DIR of real examples")
    parser.add_argument("--task", help="the task that reads them")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    args = parser.parse_args()
    if args.records:
        examples = real_examples(args.records, args.task, args.window, args.target_length)
    else:
        examples = drawn_examples(args.window, args.target_length)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        figures = write_batches(examples, folder, (args.batches, args.rows))
        figures |= compare(
            args.ways,
            folder,
            rounds=args.rounds,
            dropout=args.dropout,
            tokens=figures["useful_tokens"],
        )
    show(args.ways, figures)
    print()
    for name, value in sorted(figures.items()):
        print(f"{name} {value:.5g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main()
