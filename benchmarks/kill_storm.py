"""Kills runs at random moments and compares what is left with an undisturbed run.

    python benchmarks/kill_storm.py --num_kills=30 --num_processes=3
    python benchmarks/kill_storm.py --verb=train --num_kills=10 [--signal=INT]

Protocol: an invented file of requests is scored with a random T5 (t5_tiny) by `instructrec score`,
once undisturbed. Then the same command runs in another folder; it gets SIGKILL at a random moment
(one in four before it has claimed anything) and is started again, until it was killed so many
times; then it may finish. Where it finishes earlier, the storm goes on in a new folder. At last
several processes share one set, and one of them is killed. Every finished folder must hold the same
files, byte for byte. The moments are drawn from a seed, what is going on then is up to the machine.

With --verb=train a small model is trained on invented toys by `instructrec train`; every array of
its checkpoints and every figure it logged must be the same. With --signal=INT the runs get what
Ctrl-C sends, and have to end with one line and exit code 130.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
VOCAB_SIZE = 600
_NUM_STEPS, _MOST_STEPS = 40, 4  # of a training run, and until it is killed


def make_inputs(folder: Path, num_requests: int) -> None:
    """Writes requests, a vocabulary and a checkpoint."""
    import jax

    from instructrec_jax.checkpoints.store import CheckpointStore
    from instructrec_jax.models.t5 import T5, T5Config
    from instructrec_jax.tokenizer import train_vocabulary

    draw = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(400)]
    titles = [" ".join(draw.choices(words, k=draw.randint(1, 6))) for _ in range(3000)]
    titles = sorted(set(titles))
    with (folder / "requests.jsonl").open("w") as out:
        for number in range(num_requests):
            row = {
                "id": number,
                "history": draw.sample(titles, draw.randint(1, 20)),
                "candidates": draw.sample(titles, 10),
                "target_index": draw.randrange(10),
            }
            out.write(json.dumps(row) + "\n")
    size = train_vocabulary(titles, folder / "vocabulary.model", vocab_size=VOCAB_SIZE)
    config = T5Config(  # as gin/models/t5_tiny.gin has it
        vocab_size=size,
        emb_dim=64,
        num_heads=4,
        head_dim=16,
        mlp_dim=128,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    store = CheckpointStore(folder / "model" / "checkpoints", keep=1)
    store.save(0, {"model": T5(config, jax.random.key(0))})
    store.close()
    (folder / "vocab_size").write_text(str(size))


def make_toys(folder: Path) -> None:
    """Writes an invented log, and the records of it."""
    logs, prepared, records = (str(folder / name) for name in ("logs", "prepared", "records"))
    sizes = ("--num_users=200", "--num_items=120", "--num_interactions=2400")
    for arguments in (
        ("data", "synthesize", f"--output_dir={logs}", *sizes),
        ("prepare", "--dataset=toys", f"--input_dir={logs}", f"--output_dir={prepared}"),
        ("build", "--dataset=toys", f"--input_dir={prepared}", f"--output_dir={records}"),
    ):
        command = [sys.executable, "-m", "instructrec_jax", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


class TrainStorm:
    """Starts, kills and compares training runs on the toys."""

    def __init__(self, folder: Path, seed: int, sent: signal.Signals) -> None:
        self._folder, self._draw, self._sent = folder, random.Random(seed), sent
        counts = json.loads((folder / "records" / "toys" / "manifest.json").read_text())["counts"]
        macros = {
            "VOCAB_SIZE": counts["vocabulary"],
            "DATA_DIR": str(folder / "records"),
            "MIXTURE_OR_TASK_NAME": "toys.A7.grouped",
            "EVAL_TASKS": ["toys.A7"],
            **{
                "TRAIN_STEPS": _NUM_STEPS,
                "BATCH_SIZE": 8,
                "LOG_PERIOD": 1,
                "loop.Periods.checkpoint": 2,
            },
            **{"EVAL_PERIOD": 10, "EVAL_STEPS": 1, "EVALUATOR_NUM_EXAMPLES": 16},
        }
        names = ("models/t5_tiny", "mixtures/ml_100k", "runs/from_scratch")
        self._command = [
            *(sys.executable, "-m", "instructrec_jax", "train"),
            *(f"--gin_file=gin/{name}.gin" for name in names),
            *(f"--gin.{name}={value!r}" for name, value in macros.items()),
        ]
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        self.finish("undisturbed")  # compiles
        began, process = time.monotonic(), self._start("again")
        self._wait_for_steps(process, "again", 1)
        started = time.monotonic()
        process.communicate()
        self.seconds = {"start": started - began, "training": time.monotonic() - started}
        self._expected = self.contents("undisturbed")
        self.check("again")

    def run(self, number: int) -> None:
        """Kills runs over one folder after another so many times, and compares each folder."""
        killed, folders = 0, 0
        while killed < number:
            process = self._start(f"storm {folders}")
            longest = self.seconds["start"]
            if self._draw.random() > 0.25:
                self._wait_for_steps(
                    process, f"storm {folders}", self._draw.randint(0, _MOST_STEPS)
                )
                longest = self.seconds["training"] / _NUM_STEPS
            try:
                process.wait(self._draw.uniform(0.0, longest))
            except subprocess.TimeoutExpired:
                process.send_signal(self._sent)
                self._check_end(process)
                killed += 1
                saved = self._folder.glob(f"storm {folders}/checkpoints/*")
                print(f"kill {killed}: saved {sorted(step.name for step in saved)}", flush=True)
                continue
            if process.returncode:
                raise SystemExit(f"a run failed: {process.communicate()[1]}")
            self.check(f"storm {folders}")
            folders += 1
        self.finish(f"storm {folders}")
        self.check(f"storm {folders}")
        print(f"{killed} kills over {folders + 1} folders: the same arrays and figures")

    def _wait_for_steps(self, process: subprocess.Popen, name: str, number: int) -> None:
        """Waits until a run has logged so many steps of its own, or has ended."""
        path = self._folder / name / "metrics.jsonl"
        before = path.stat().st_mtime_ns if path.exists() else 0
        kept: int | None = None
        while process.poll() is None:
            # Its start writes the file anew, without the steps after its checkpoint.
            if path.exists() and path.stat().st_mtime_ns > before:
                lines = path.read_text().count("\n")
                kept = lines if kept is None else kept
                if lines >= kept + number:
                    return
            time.sleep(0.01)

    def finish(self, name: str) -> None:
        """Runs to the end."""
        process = self._start(name)
        _, messages = process.communicate()
        if process.returncode:
            raise SystemExit(f"a run failed: {messages}")

    def check(self, name: str) -> None:
        """Raises where a finished run holds other numbers than the undisturbed one."""
        found = self.contents(name)
        keys = found.keys() | self._expected.keys()
        if wrong := sorted(key for key in keys if found.get(key) != self._expected.get(key)):
            raise SystemExit(f"{name} differs from an undisturbed run, as in {wrong[:5]}")

    def contents(self, name: str) -> dict[str, object]:
        """Returns the bytes of all arrays, and the figures of every step without their times."""
        from instructrec_jax.checkpoints.store import stored_arrays

        found: dict[str, object] = {}
        for step in self._folder.glob(f"{name}/*/*/default"):
            place = step.parent.relative_to(self._folder / name)
            for key, array in stored_arrays(step.parent).items():
                found[f"{place} {key}"] = array.read().tobytes()
        lines = (self._folder / name / "metrics.jsonl").read_text().splitlines()
        for number, line in enumerate(json.loads(line) for line in lines):
            found[f"line {number}"] = {
                name: value
                for name, value in line.items()
                if name != "time" and not name.startswith("timing/")
            }
        return found

    def _start(self, name: str) -> subprocess.Popen:
        command = [*self._command, f"--gin.MODEL_DIR={str(self._folder / name)!r}"]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def _check_end(self, process: subprocess.Popen) -> None:
        """Raises where a run did not end as the signal asks for."""
        _, messages = process.communicate(timeout=60)
        if self._sent is not signal.SIGINT:
            return
        last = messages.splitlines()[-1:]
        is_right = process.returncode == 130 and last and last[0].startswith("interrupted; ")
        if not is_right or "Traceback" in messages:
            raise SystemExit(f"Ctrl-C ended a run with {process.returncode}:\n{messages}")


class Storm:
    """Starts, kills and compares scoring runs over the same inputs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._draw = random.Random(seed)
        macros = {
            "VOCAB_SIZE": int((folder / "vocab_size").read_text()),
            "VOCABULARY": str(folder / "vocabulary.model"),
            "REQUESTS": str(folder / "requests.jsonl"),
            "REQUEST_TEMPLATES": ["A7"],
            "CHECKPOINT_PATH": str(folder / "model"),
            "COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "SHARD_SIZE": 32,
        }
        names = ("models/t5_tiny", "mixtures/ml_100k", "runs/score_requests")
        self._command = [
            *(sys.executable, "-m", "instructrec_jax", "score"),
            *(f"--gin_file=gin/{name}.gin" for name in names),
            *(f"--gin.{name}={value!r}" for name, value in macros.items()),
        ]
        self.seconds = self._undisturbed()
        self._expected = self._contents("undisturbed")
        self.num_kills = 0

    def start(self, name: str) -> subprocess.Popen:
        """Starts a process on a folder."""
        output = f"--gin.INFER_OUTPUT_DIR={str(self._folder / name)!r}"
        return subprocess.Popen(
            [*self._command, output], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def check(self, name: str) -> None:
        """Raises where a finished folder does not hold the same bytes."""
        found = self._contents(name)
        if found != self._expected:
            wrong = sorted(
                part
                for part in found.keys() | self._expected.keys()
                if found.get(part) != self._expected.get(part)
            )
            raise SystemExit(f"{name} differs from an undisturbed run in {wrong}")

    def kill_at_random(self, process: subprocess.Popen, name: str, longest: float) -> bool:
        """Kills a process; returns False where it has finished before."""
        if self._draw.random() < 0.25:
            time.sleep(self._draw.uniform(0, self.seconds["start"]))
        else:
            while not self._has_claim(name, process.pid) and process.poll() is None:
                time.sleep(0.005)
            time.sleep(self._draw.uniform(0, longest))
        is_running = process.poll() is None
        process.kill()
        process.wait()
        self.num_kills += is_running
        return is_running

    def finish(self, process: subprocess.Popen) -> None:
        """Waits for the end of a process, which has to be a good one."""
        if process.wait():
            raise SystemExit("a run failed")

    def num_parts(self, name: str) -> int:
        """Returns how many parts a folder holds."""
        return len(list((self._folder / name).glob("*.parquet")))

    def _undisturbed(self) -> dict[str, float]:
        """Runs once, and returns how long the start and the scoring took."""
        began = time.monotonic()
        process = self.start("undisturbed")
        while not self._has_claim("undisturbed", process.pid) and process.poll() is None:
            time.sleep(0.01)
        started = time.monotonic()
        self.finish(process)
        return {"start": started - began, "scoring": time.monotonic() - started}

    def _has_claim(self, name: str, pid: int) -> bool:
        for claim in (self._folder / name / "claims").glob("*.claim"):
            try:
                if json.loads(claim.read_text())["pid"] == pid:
                    return True
            except (OSError, ValueError):
                continue
        return False

    def _contents(self, name: str) -> dict[str, bytes]:
        """Returns the files of a folder; the manifest and the config name the folder itself."""
        folder = self._folder / name
        return {
            path.relative_to(folder).as_posix(): b""
            if path.suffix != ".parquet"
            else path.read_bytes()
            for path in folder.rglob("*")
        }


def main() -> None:
    """Prints what was done, and ends with 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--verb", choices=["score", "train"], default="score")
    parser.add_argument("--signal", choices=["KILL", "INT"], default="KILL", help="with train")
    parser.add_argument("--num_kills", type=int, default=30)
    parser.add_argument("--num_processes", type=int, default=3)
    parser.add_argument("--num_requests", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.verb == "train":
            make_toys(folder)
            train_storm = TrainStorm(folder, options.seed, signal.Signals[f"SIG{options.signal}"])
            print(f"undisturbed: {train_storm.seconds}", flush=True)
            train_storm.run(options.num_kills)
            return
        make_inputs(folder, options.num_requests)
        storm = Storm(folder, options.seed)
        num_parts = storm.num_parts("undisturbed")
        print(f"undisturbed: {num_parts} parts; seconds {storm.seconds}", flush=True)
        number, longest = 0, 4 * storm.seconds["scoring"] / options.num_kills
        while storm.num_kills < options.num_kills:
            run = f"storm {number}"
            if storm.kill_at_random(storm.start(run), run, longest):
                print(f"kill {storm.num_kills}: {storm.num_parts(run)} parts", flush=True)
            else:
                storm.finish(storm.start(run))  # it had just ended, or was ending
                storm.check(run)
                number += 1
        storm.finish(storm.start(run))
        storm.check(run)
        print(f"{storm.num_kills} kills over {number + 1} folders: the same bytes", flush=True)
        processes = [storm.start("shared") for _ in range(options.num_processes + 1)]
        storm.kill_at_random(processes[0], "shared", storm.seconds["scoring"] / 4)
        for process in processes[1:]:
            storm.finish(process)
        storm.check("shared")
        print(f"{options.num_processes} processes, and one more that was killed: the same bytes")


if __name__ == "__main__":
    main()
