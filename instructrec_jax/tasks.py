"""The shipped task modules, such as `instructrec_jax.tasks.mixtures`.

In a checkout they are the folder `tasks/` beside the package. Where the package is installed that
folder is `instructrec_jax/tasks/`, which Python takes before this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "tasks")]
