"""Artefact C -> numpy batches: the only home of tensorflow, tfds and seqio."""

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
    """Keeps start-up notes of TensorFlow's C++ code, which no setting turns off, out of stderr.

    What is written to stderr in the block is held back, and passed on afterwards but for the notes.
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


# Before anything here imports tensorflow: its start-up notices are no message to a user, and oneDNN
# complains on standard error about integers that it leaves to others.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
with quiet_imports():
    import tensorflow  # noqa: F401
