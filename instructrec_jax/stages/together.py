"""What the processes of a run agree on before it begins, and where each of them writes."""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import instructrec_jax
from instructrec_jax import files, manifest
from instructrec_jax.manifest import Manifest
from instructrec_jax.parallel import processes

logger = logging.getLogger(__name__)


def check_run(planned: Manifest, config_text: str, output_dir: Path | str) -> None:
    """Raises, in all processes, where one of them is about to do something else than process 0.

    Args:
      planned: the manifest of the run: its inputs, settings and versions.
      config_text: the resolved gin config.
      output_dir: where the run writes.

    Raises:
      UserError: naming what differs.
    """
    values = {"the verb": planned.stage, "the output folder": str(output_dir)}
    for part in ("inputs", "settings", "versions"):
        found = getattr(planned, part).items()
        values |= {f"{part}[{name!r}]": value for name, value in found}
    for number, line in enumerate(config_text.splitlines(), start=1):
        values[f"config.gin line {number}"] = line
    processes.check_alike({**values, "the code": _code()})


def _code() -> str:
    """Returns the sha256 of the package's source files."""
    folder = Path(instructrec_jax.__file__).parent
    hashes = [files.sha256(path) for path in sorted(folder.rglob("*.py"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def finished_json(path: Path, planned: Manifest) -> Any:
    """Returns, in all processes, what an earlier run of the same has written, None where none has.

    Args:
      path: a JSON file in the run's folder.
      planned: the manifest of the run.
    """

    def read() -> Any:
        if not manifest.find_finished(path.parent, planned):
            return None
        logger.info("%s: %s is up to date", planned.stage, path.parent)
        return files.read_json(path, dict[str, Any], remedy=manifest.RERUN)

    return processes.on_main(read)


@contextlib.contextmanager
def output_directory(path: Path) -> Iterator[Path]:
    """Yields where this process writes a folder: process 0 whole or not at all, others in vain."""
    if processes.is_main():
        with files.atomic_directory(path) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
