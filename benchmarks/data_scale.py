"""Seconds and peak memory of `instructrec prepare`, `annotate` and `build` at growing sizes.

Protocol: for each size an invented log is written (plain TSV, 12 interactions a user, one item in
100 interactions, Zipf exponent 1, seed 0; with --reviews in the Amazon 2018 format, with texts).
Then the three verbs run on it once, with their default settings (all positions, the extractive
teacher) but for --num_workers, each in a fresh process. Seconds are wall time of the
whole process, imports and the training of the vocabulary included; the peak is the resident set
(ru_maxrss) of the largest process. Everything is written to a temporary folder below --work_dir and
removed at the end; 10^7 interactions need about 15 GB there. Nothing else should run beside it.

    python benchmarks/data_scale.py --sizes 100000 1000000 10000000
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from instructrec_jax.data.columnar import CONFIGS, SPLITS
from instructrec_jax.data.settings import SyntheticSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.manifest import read_manifest


def measure(command: list[str]) -> tuple[float, float]:
    """Runs a command in a fresh process; returns its seconds and its peak memory in MB.

    Raises:
      SystemExit: if it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def measure_size(
    num_interactions: int, folder: Path, *, has_reviews: bool, num_workers: int
) -> dict[str, float]:
    """Measures one size.

    Args:
      num_interactions: of the log.
      folder: to write to; it exists.
      has_reviews: whether the log has texts.
      num_workers: processes of `annotate` and `build`.

    Returns:
      The row of the table, by column.
    """
    settings = SyntheticSettings(
        num_users=max(1, num_interactions // 12),
        num_interactions=num_interactions,
        format="amazon_2018" if has_reviews else "plain",
        has_reviews=has_reviews,
    )
    write_log(folder / "log", settings)
    prepared, texts, records = folder / "prepared", folder / "texts", folder / "records"
    instructrec = [sys.executable, "-m", "instructrec_jax"]
    prepare = ["prepare", f"--input_dir={folder / 'log'}", f"--output_dir={prepared}"]
    workers = f"--num_workers={num_workers}"
    annotate = ["annotate", f"--input_dir={prepared}", f"--output_dir={texts}", workers]
    build = ["build", f"--input_dir={prepared}", f"--texts_dir={texts}", workers]
    build.append(f"--output_dir={records}")
    row = {"interactions": float(num_interactions), "users": 0.0, "records": 0.0}
    for command in (prepare, annotate, build):
        seconds, megabytes = measure([*instructrec, *command, "--dataset=invented"])
        row[f"{command[0]} s"] = seconds
        row["s/million"] = row.get("s/million", 0.0) + seconds / (num_interactions / 1e6)
        row[f"{command[0]} MB"] = megabytes
    counts = [read_manifest(path).counts for path in (prepared, records / "invented")]
    row["users"] = counts[0]["users"]
    row["records"] = sum(
        counts[1].get(f"{config}/{split}", 0) for config in CONFIGS for split in SPLITS
    )
    row["disk MB"] = sum(path.stat().st_size for path in records.rglob("*")) / 2**20
    return row


def main() -> None:
    """Prints one row a size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = (100_000, 1_000_000, 10_000_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="interactions")
    parser.add_argument("--reviews", action="store_true", help="logs with review texts")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="processes of `annotate` and `build`"
    )
    parser.add_argument("--work_dir", default=None, help="where to write (default: temporary)")
    options = parser.parse_args()
    for number, size in enumerate(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
            row = measure_size(
                size,
                Path(folder),
                has_reviews=options.reviews,
                num_workers=options.num_workers,
            )
        if number == 0:
            print("  ".join(f"{name:>12}" for name in row))
        print("  ".join(f"{value:12,.1f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
