"""Kills processes of runs that train together, and compares what is left with undisturbed runs.

    python benchmarks/hosts_storm.py --num_kills=10

Protocol: that of `kill_storm.py --verb=train`, each start with two or four processes, as chance has
it, on four devices in all, connected by Gloo on this host. SIGKILL to one of them ends the others;
the next start goes on from the last checkpoint. Every finished folder must hold the same arrays and
figures, bit for bit; and those of a single process with four devices, within 1e-5.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

import numpy as np
from kill_storm import ROOT, TrainStorm, make_toys

NUM_DEVICES = 4


class Together:
    """Processes of one run; to its storm they look like one."""

    def __init__(self, command: list[str], number: int, draw: random.Random) -> None:
        """Starts them."""
        self._draw = draw
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={NUM_DEVICES // number}",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(number),
            "INSTRUCTREC_HEARTBEAT_SECONDS": "20",
        }
        self._messages: list[IO[str]] = []
        self._processes = []
        for index in range(number):
            messages = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the run
            environment = os.environ | shared | {"JAX_PROCESS_ID": str(index)}
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=messages
            )
            self._messages.append(messages)
            self._processes.append(process)

    @property
    def returncode(self) -> int | None:
        """0 if all ended well, None while one runs."""
        codes = [process.poll() for process in self._processes]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        """Returns `returncode`."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Waits for the end of all."""
        end = time.monotonic() + timeout
        for process in self._processes:
            process.wait(max(end - time.monotonic(), 0.0))
        return self.returncode or 0

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it to one of them."""
        self._draw.choice(self._processes).send_signal(number)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Waits for the end of all; returns their messages."""
        for process in self._processes:
            process.wait()
        texts = []
        for messages in self._messages:
            messages.seek(0)
            texts.append(messages.read())
        return None, "\n".join(texts)


class HostsStorm(TrainStorm):
    """Starts each run with two or four processes."""

    number: int | None = None  # of the next run; None: by chance

    def _start(self, name: str) -> Together:
        command = [*self._command, f"--gin.MODEL_DIR={str(self._folder / name)!r}"]
        return Together(command, self.number or self._draw.choice([2, 4]), self._draw)


def largest_difference(one: dict[str, object], other: dict[str, object]) -> float:
    """Returns by how much arrays and figures of two runs differ."""
    if one.keys() != other.keys():
        raise SystemExit(f"not the same files: {one.keys() ^ other.keys()}")
    largest = 0.0
    for key, value in one.items():
        if isinstance(value, bytes):  # of float32, or of the step
            left, right = (np.frombuffer(v, np.float32) for v in (value, other[key]))
        else:
            left, right = (np.array(list(v.values()), float) for v in (value, other[key]))
        largest = max(largest, float(np.abs(left - right).max(initial=0.0)))
    return largest


def main() -> None:
    """Prints what was done, and ends with 1 where a run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_toys(folder)
        storm = HostsStorm(folder, options.seed, signal.SIGKILL)
        print(f"undisturbed: {storm.seconds}", flush=True)
        storm.run(options.num_kills)
        storm.number = 1
        storm.finish("alone")
        differ = largest_difference(storm.contents("alone"), storm.contents("undisturbed"))
        print(f"a single process differs by {differ:.2g}")
        if differ > 1e-5:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
