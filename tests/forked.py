"""Programs of tests/ as processes of their own, forked from one that has imported the libraries.

To import TensorFlow and JAX takes each new process five processor seconds. The one that is forked
from has done nothing but import, so the others begin as new ones do.
"""

import atexit
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

HERE = Path(__file__).parent
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "seqio",
        "instructrec_jax.cli.main",
        "instructrec_jax.stages.score",
        "instructrec_jax.stages.train",
    ]
)


def start(
    program: str, *words: object, log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Starts `python tests/PROGRAM WORDS`, which adds what it prints to a file.

    Args:
      program: the file's name.
      *words: its arguments.
      log: what it writes to stdout and stderr is added here.
      environment: variables beside those of the tests.
    """
    arguments = (program, [str(word) for word in words], log, dict(environment or {}))
    process = _context.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return process


def _run(program: str, words: list[str], log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with log.open("ab") as stream:
        for of_process in (1, 2):
            os.dup2(stream.fileno(), of_process)
    os.chdir(HERE.parent)
    path = str(HERE / program)
    sys.argv = [path, *words]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a process of multiprocessing leaves them out
