"""Processes that take turns, so that what they measure saw the same machine.

One that waits holds its memory and no core. A job is a line of JSON, and so is the answer to it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Worker:
    """A process that answers jobs, here at the one end."""

    def __init__(self, script: str, job: dict[str, Any]) -> None:
        """Starts a script and waits until it has answered the first job, `first`."""
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("SHOW_WORKERS") else subprocess.DEVNULL,
            text=True,
            # Huge pages, as `instructrec` starts with, for all ways alike.
            env={
                "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
        )
        self.first = self.ask(job)

    def ask(self, job: dict[str, Any]) -> Any:
        """Returns the answer to a job."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a worker ended on {job}; SHOW_WORKERS=1 shows why")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def jobs() -> Iterator[dict[str, Any]]:
    """Yields the jobs that come, at the other end."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(found: Any) -> None:
    """Answers the last job."""
    print(json.dumps(found), flush=True)


def seconds(run: Callable[[], object]) -> float:
    """Returns how long a function takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
