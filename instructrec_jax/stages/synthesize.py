"""`instructrec data synthesize`: an invented log of any size, ready for `prepare`."""

import dataclasses
import logging
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.data.settings import SyntheticSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.manifest import Manifest, find_same_work

_LOGGER = logging.getLogger(__name__)
_STAGE = "synthesize"


def synthesize(*, output_dir: Path | str, settings: SyntheticSettings) -> Manifest:
    """Writes an invented log; one of the same settings that is there already is reused.

    Args:
      output_dir: folder for the log and its manifest, written whole or not at all.
      settings: what decides the log.

    Returns:
      The manifest, with counts of users, items and interactions.

    Raises:
      UserError: on impossible settings or an output folder of other work.
    """
    settings.check()
    plan = Manifest(stage=_STAGE, inputs={}, settings=dataclasses.asdict(settings))
    manifest = find_same_work(output_dir, plan)
    if manifest is not None:
        _LOGGER.info("%s already holds this log: reused", output_dir)
        return manifest
    with files.atomic_directory(output_dir) as folder:
        manifest = dataclasses.replace(plan, counts=write_log(folder, settings))
        manifest.write(folder)
    counts = ", ".join(f"{number} {name}" for name, number in manifest.counts.items())
    _LOGGER.info("wrote %s: %s", output_dir, counts)
    return manifest
