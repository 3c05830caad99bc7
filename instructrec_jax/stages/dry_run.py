"""`--dry_run`: what a run would do, what it lacks, and whether it would start."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from instructrec_jax import manifest
from instructrec_jax.checkpoints.source import Source, open_source
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5Config
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.parallel.placement import bytes_per_device, num_parameters

ROWS = ("model", "work", "data", "checkpoint")


class DryRun:
    """What is said of a run, and what would stop it.

    Attributes:
      rows: a text for each of `ROWS`.
      stops: the rows whose text is a mistake.
      checkpoint: the one that the run reads, None where there is none or it does not fit.
    """

    def __init__(self) -> None:
        """Begins with nothing said."""
        self.rows: dict[str, str] = {}
        self.stops: list[str] = []
        self.checkpoint: Source | None = None

    @contextmanager
    def row(self, name: str) -> Iterator[Callable[[str], None]]:
        """Gives the block what sets a row; a UserError of the block becomes the row, and a stop."""
        try:
            yield lambda text: self.rows.update({name: text})
        except UserError as error:
            self.rows[name] = str(error)
            self.stops.append(name)

    @property
    def tokenizer(self) -> Path | None:
        """The SentencePiece model beside the checkpoint, if there is one."""
        return None if self.checkpoint is None else self.checkpoint.tokenizer

    @property
    def would_start(self) -> bool:
        """Whether nothing was found that stops the run."""
        return not self.stops

    def as_text(self) -> str:
        """Returns five lines, which gin takes for comments; the verdict is the last."""
        reasons = " and ".join(name for name in ROWS if name in self.stops)
        verdict = f"would stop because of {reasons}" if reasons else "would start"
        rows = [*((name, self.rows.get(name, "not known")) for name in ROWS), ("verdict", verdict)]
        return "\n".join(f"# {name:<10}  {' '.join(text.split())}" for name, text in rows)

    def look_at_memory(self, *placed: Any) -> None:
        """Says how many parameters there are, and what they take of each device.

        Args:
          *placed: shapes with shardings: the model, and its optimizer's state if there is one.
        """
        mesh = jax.tree.leaves(placed[0])[0].sharding.mesh
        axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
        needed, there = bytes_per_device(placed), _device_bytes(mesh.devices.flat[0], mesh.size)
        known = f" of {there / 2**20:,.0f}" if there else ""
        with self.row("model") as say:
            devices = f"each of {mesh.size} devices ({axes})" if axes else "one device"
            text = (
                f"{num_parameters(placed[0]):,} parameters, {needed / 2**20:,.1f}{known} MiB on "
                f"{devices}"
            )
            if there and needed > there:
                raise UserError(f"{text}: too much; share it among more devices (NUM_PARTITIONS)")
            say(text)

    def open_checkpoint(self, source: Source) -> None:
        """Says which checkpoint was found."""
        self.checkpoint = source
        kind = f"{source.kind}, int8" if source.is_int8 else source.kind
        self.rows["checkpoint"] = f"found: {source.path} ({kind}), step {source.step}"

    def look_at_output(self, folder: str, planned: manifest.Manifest) -> None:
        """Finds out whether the output folder is free, or holds an earlier part of the same run."""
        with self.row("work"):
            manifest.find_same_work(Path(folder), planned)


def open_dry(
    path: str, config: T5Config, mesh: MeshSettings, *, work: str, output_dir: str
) -> DryRun:
    """Returns the rows of model, work and checkpoint: what `open_for_run` does for a real run.

    Raises:
      UserError: if the devices cannot be shared so.
    """
    dry = DryRun()
    shapes = abstract_model(config.init, make_mesh(mesh))
    dry.rows["work"] = f"{work}, into {output_dir}"
    with dry.row("checkpoint"):
        source = open_source(path)
        source.check_fits(config)
        dry.open_checkpoint(source)
    dry.look_at_memory(dry.checkpoint.shapes(shapes) if dry.checkpoint else shapes)
    return dry


def _device_bytes(device: jax.Device, number: int) -> int | None:
    """Returns the memory of a device, None where several stand for those of another machine."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if number == 1 else None
