"""`instructrec data`: a public data set, fetched, or an invented log of any size, for `prepare`."""

import dataclasses
import logging
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.data import fetch as sources
from instructrec_jax.data.public import SOURCES, Download, Source
from instructrec_jax.data.settings import SyntheticSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.manifest import Manifest, find_finished
from instructrec_jax.report import tables

_LOGGER = logging.getLogger(__name__)
_STAGE = "synthesize"


def fetch(*, name: str, cache_dir: Path | str | None = None) -> Path:
    """Fetches a data set, or reuses it where it lies.

    Args:
      name: such as "ml-100k"; "ml_100k" is the same.
      cache_dir: the files go to its subfolder; without it ~/.cache/instructrec_jax.

    Returns:
      The folder to give to `prepare` as its input.

    Raises:
      UserError: on an unknown name, no network, or files that differ from the pinned ones, or from
        those that were downloaded first.
    """
    return sources.fetch(name, sources.DEFAULT_CACHE_DIR if cache_dir is None else cache_dir)


def show() -> Mapping[str, Source]:
    """Returns the public data sets that `fetch` knows, by name."""
    return SOURCES


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
    plan = Manifest(stage=_STAGE, inputs={}, settings=dataclasses.asdict(settings))
    manifest = find_finished(output_dir, plan)
    if manifest is not None:
        _LOGGER.info("%s already holds this log: reused", output_dir)
        return manifest
    with files.atomic_directory(output_dir) as folder:
        manifest = dataclasses.replace(plan, counts=write_log(folder, settings))
        manifest.write_finished(folder)
    counts = ", ".join(f"{number} {name}" for name, number in manifest.counts.items())
    _LOGGER.info("wrote %s: %s", output_dir, counts)
    return manifest


def as_text(sources: Mapping[str, Source]) -> str:
    """Returns the public data sets as a table, with their terms below."""
    rows = [
        [
            name,
            *(
                "?" if number is None else f"{number:,}"
                for number in (source.num_users, source.num_items, source.num_interactions)
            ),
            "pinned" if source.is_pinned else "first download",
            " ".join(sorted({_origin(download) for download in source.downloads})),
        ]
        for name, source in sources.items()
    ]
    header = ["name", "users", "items", "events", "checksum", "from"]
    section = tables.Section(
        title="",
        tables=[tables.Table(header=header, rows=rows)],
        lines=[f"{name}: {source.terms}" for name, source in sources.items()],
    )
    return tables.as_text(tables.Document(title="", sections=[section]))


def _origin(download: Download) -> str:
    """Returns who serves a download: a host, or a package."""
    return urllib.parse.urlsplit(download.address).hostname or f"pip: {download.address}"
