"""Seconds and peak memory of `instructrec prepare` at growing sizes.

Protocol: for each size an invented log is written (plain TSV, 12 interactions a user, one item in
100 interactions, Zipf exponent 1, seed 0; with --reviews in the Amazon 2018 format, with texts).
Then `prepare` runs on it once, with its default settings, in a fresh process, and then another
fresh process opens the result and walks through its validation examples. Seconds are wall time of
the whole process, imports included; the peak is the largest resident set (ru_maxrss) of that
process. Everything is written to a temporary folder below --work_dir and removed at the end; 10^7
interactions need about 1 GB there, 4 GB with reviews. Nothing else should run beside it.

    python benchmarks/prepare_scale.py --sizes 100000 1000000 10000000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from instructrec_jax.data.synthetic import SyntheticSettings, write_log

_OPEN = """
import sys
from instructrec_jax.data.prepared import read_prepared
data = read_prepared(sys.argv[1])
print(sum(len(row.candidate_ids) for row in data.evaluation("leave_one_out", "validation")))
"""


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


def measure_size(num_interactions: int, folder: Path, *, has_reviews: bool) -> dict[str, float]:
    """Measures one size.

    Args:
      num_interactions: of the log.
      folder: to write to; it exists.
      has_reviews: whether the log has texts.

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
    flags = ["--dataset=invented", f"--input_dir={folder / 'log'}"]
    flags.append(f"--output_dir={folder / 'prepared'}")
    command = [sys.executable, "-m", "instructrec_jax", "prepare", *flags]
    seconds, megabytes = measure(command)
    open_seconds, open_megabytes = measure([sys.executable, "-c", _OPEN, f"{folder / 'prepared'}"])
    written = sum(path.stat().st_size for path in (folder / "prepared").iterdir())
    counts = json.loads((folder / "prepared/manifest.json").read_text())["counts"]
    millions = num_interactions / 1e6
    return {
        "interactions": num_interactions,
        "users": counts["users"],
        "seconds": seconds,
        "s/million": seconds / millions,
        "peak MB": megabytes,
        "MB/million": megabytes / millions,
        "open s": open_seconds,
        "open MB": open_megabytes,
        "disk MB": written / 2**20,
    }


def main() -> None:
    """Prints one row a size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = (100_000, 1_000_000, 10_000_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="interactions")
    parser.add_argument("--reviews", action="store_true", help="logs with review texts")
    parser.add_argument("--work_dir", default=None, help="where to write (default: temporary)")
    options = parser.parse_args()
    for number, size in enumerate(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
            row = measure_size(size, Path(folder), has_reviews=options.reviews)
        if number == 0:
            print("  ".join(f"{name:>12}" for name in row))
        print("  ".join(f"{value:12,.1f}" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
