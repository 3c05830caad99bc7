# PYTHON_ARGCOMPLETE_OK
"""The `instructrec` command, also as `python -m instructrec_jax`."""

import os
import sys

MALLOC_SETTINGS = "GLIBC_TUNABLES"  # glibc reads it when a process starts, and not again


def main() -> int:
    """Runs the command in a process whose large arrays lie in huge pages.

    A training step takes gigabytes from the system and gives them back. In pages of 4 KiB, that is
    a million page faults: a fifth of the processor time of a step on a CPU. Settings of the user's
    own are left alone.

    Returns:
      The exit code.
    """
    if sys.platform == "linux" and MALLOC_SETTINGS not in os.environ:
        os.environ[MALLOC_SETTINGS] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    from instructrec_jax.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
