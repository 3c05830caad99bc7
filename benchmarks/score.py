"""Compares ways of scoring candidates: this package's, and the usual ones with Hugging Face.

    python benchmarks/score.py --json=/tmp/score.json

Ways: `ours`; `hf_once`: torch, the encoder once a user and its output repeated for each candidate;
`hf_repeat`: torch, one (instruction, candidate) pair a row, 32 rows a batch; `t5x`: the score mode
of T5X where that is installed (it is on no package registry), likewise one pair a row, padded to
512 and 24 tokens. The last two run on the first users alone (4 or 3 of rerank10, 1 of rerank100):
they take minutes, and their rate does not depend on how many there are.

Protocol: T5-small shapes (512 wide, 6 heads of 64, 1024, 8 + 8 layers, 32128 words), float32, the
same random weights and requests for all. Instruction lengths normal(230, 60) clipped to [80, 512],
candidate lengths uniform 6..20, EOS included; rerank10 is 32 users x 10 candidates, rerank100 is
8 x 100. Each way has a process of its own that stays alive, and they take turns: one warm-up run
each, then `--rounds` rounds, of which the median counts. Before and after each run the same process
measures the float32 matrix-product peak (2048 x 2048), so that a share of the peak compares what
happened within seconds. Useful FLOPs are those of real tokens, with the encoder and the keys and
values of cross-attention once a user; what prefixes share is not taken off. `agreement` is the
largest relative difference of a log-likelihood to ours. Memory is the process's peak less what it
used before it had a model; it is compared with the bytes of the parameters. `--growth` also
measures the cost of a user with 1, 10, 100 and 1000 candidates.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import score_ways
import turns

from instructrec_jax.checkpoints.huggingface import write_huggingface
from instructrec_jax.checkpoints.parameters import neutral_shapes

FEWER_USERS = {
    ("hf_repeat", "rerank10"): 4,
    ("hf_repeat", "rerank100"): 1,
    ("t5x", "rerank10"): 3,
    ("t5x", "rerank100"): 1,
}
GROWTH = (1, 10, 100, 1000)


class Scoring(turns.Worker):
    """A process that scores one workload in one way."""

    def __init__(self, way: str, shape: tuple[int, int], users: int, folder: Path) -> None:
        self.num_candidates = users * shape[1]
        self.flops = score_ways.useful_flops(score_ways.workload(*shape)[:users])
        self.runs: list[dict] = []
        job = {"way": way, "shape": shape, "users": users, "folder": str(folder)}
        super().__init__(score_ways.__file__, job)

    def figures(self) -> dict[str, float]:
        """Returns the medians over the runs."""
        shares = [self.flops / run["seconds"] / np.mean(run["peaks"]) for run in self.runs]
        seconds = statistics.median(run["seconds"] for run in self.runs)
        return {
            "candidates_per_second": self.num_candidates / seconds,
            "seconds": seconds,
            "useful_gflops": self.flops / seconds / 1e9,
            "useful_share_of_peak": statistics.median(shares),
            "peak_gflops": statistics.median(np.mean(run["peaks"]) for run in self.runs) / 1e9,
            "warm_up_seconds": self.first["first_seconds"] - seconds,
            "memory_mib": self.first["memory"] / 2**20,
        }


def _installed_ways() -> list[str]:
    has_t5x = importlib.util.find_spec("t5x") is not None
    return [way for way in score_ways.WAYS if way != "t5x" or has_t5x]


def write_model(folder: Path) -> int:
    """Writes random weights as Hugging Face keeps them; returns their bytes."""
    config = score_ways.config_of()
    shapes, rng = neutral_shapes(config), np.random.default_rng(0)

    def weights(name: str) -> np.ndarray:
        shape = shapes[name]
        if name.endswith("scale"):
            return rng.normal(1.0, 0.1, shape).astype(np.float32)
        # As T5 starts: the query's kernel holds the 1/sqrt(head_dim) that attention leaves out.
        spread = 1.0 if "embedding" in name else shape[0] ** -0.5
        spread *= score_ways.HEAD_DIM**-0.5 if "query" in name else 1.0
        return rng.normal(0.0, spread, shape).astype(np.float32)

    folder.mkdir()
    write_huggingface(folder, config=config, step=0, read=weights)
    return sum(4 * int(np.prod(shape)) for shape in shapes.values())


def compare(
    name: str, ways: list[str], *, rounds: int, folder: Path, num_bytes: int
) -> dict[str, float]:
    """Runs the ways on a workload in turn; returns its figures, "<figure>_<way>_<workload>"."""
    shape = score_ways.USERS[name]
    workers = {
        way: Scoring(way, shape, FEWER_USERS.get((way, name), shape[0]), folder) for way in ways
    }
    for _ in range(rounds):
        for worker in workers.values():
            worker.runs.append(worker.ask({}))
    figures = {}
    own = workers.get("ours")
    for way, worker in workers.items():
        worker.close()
        found = worker.figures()
        figures |= {f"{figure}_{way}_{name}": value for figure, value in found.items()}
        if way == "ours" or own is None:
            continue
        pairs = zip(own.first["found"], worker.first["found"], strict=False)
        figures[f"agreement_{way}_{name}"] = max(
            float(np.max(np.abs(np.divide(theirs, mine) - 1))) for mine, theirs in pairs
        )
        # Within a round, so that both saw the same machine.
        figures[f"ratio_vs_{way}_{name}"] = statistics.median(
            own.num_candidates / mine["seconds"] / (worker.num_candidates / theirs["seconds"])
            for mine, theirs in zip(own.runs, worker.runs, strict=True)
        )
    if own is not None:
        figures[f"useful_share_of_peak_{name}"] = own.figures()["useful_share_of_peak"]
        figures[f"memory_over_parameters_{name}"] = own.figures()["memory_mib"] * 2**20 / num_bytes
    return figures


def growth(rounds: int, folder: Path) -> dict[str, float]:
    """Returns the seconds that a user costs with more and more candidates."""
    figures = {}
    for num_candidates in GROWTH:
        users = 8 if num_candidates < 1000 else 2
        worker = Scoring("ours", (users, num_candidates), users, folder)
        runs = [worker.ask({}) for _ in range(rounds)]
        worker.close()
        seconds = statistics.median(run["seconds"] for run in runs) / users
        figures[f"seconds_per_user_{num_candidates}"] = seconds
    return figures


def show(name: str, ways: list[str], figures: dict[str, float]) -> None:
    """Prints a workload's table."""
    users, candidates = score_ways.USERS[name]
    print(f"\n{name}: {users} users x {candidates} candidates\n")
    print("| way | candidates/s | ours is | useful GFLOP/s | of the peak | peak GFLOP/s |")
    print("|---|---|---|---|---|---|")
    for way in ways:
        value = lambda figure: figures[f"{figure}_{way}_{name}"]  # noqa: B023, E731
        ratio = figures.get(f"ratio_vs_{way}_{name}")
        print(
            f"| {way} | {value('candidates_per_second'):.1f} | "
            f"{'' if ratio is None else f'{ratio:.1f} x'} | {value('useful_gflops'):.1f} | "
            f"{value('useful_share_of_peak'):.0%} | {value('peak_gflops'):.0f} |"
        )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list(score_ways.USERS))
    parser.add_argument("--ways", nargs="+", default=_installed_ways())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        num_bytes = write_model(model)
        figures["parameters_mib"] = num_bytes / 2**20
        for name in args.workloads:
            figures |= compare(
                name, args.ways, rounds=args.rounds, folder=model, num_bytes=num_bytes
            )
            show(name, args.ways, figures)
        if args.growth:
            figures |= growth(args.rounds, model)
    print()
    for name, value in sorted(figures.items()):
        print(f"{name} {value:.4g}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1, sort_keys=True), encoding="utf-8")


if __name__ == "__main__":
    main()
