"""Reads logs as `prepare` does."""

from pathlib import Path

from instructrec_jax.damage import Damage
from instructrec_jax.data.readers import recognise
from instructrec_jax.data.readers.raw_log import RawLog


def read_logs(folder: Path | str, damage: Damage | None = None, **fields: str) -> RawLog:
    """Returns the logs in a folder, whatever their format; by default damage is an error."""
    form, paths = recognise(folder)
    return form.read(paths, damage or Damage(), fields)
