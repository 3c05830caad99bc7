"""Keeps start-up notes of TensorFlow's C++ code, which no setting turns off, out of the output."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_NOTE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog|I\d{4} |To enable the following instr"
)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Holds back what is written to stderr in the block, then passes on all but the notes.

    The file descriptor is redirected, since C++ code does not write through `sys.stderr`.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines(keepends=True):
                if not _NOTE.match(line):
                    os.write(2, line.encode())
