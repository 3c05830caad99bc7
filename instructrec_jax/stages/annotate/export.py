"""The stage `annotate export`: answers of a language model in the ledger to artefact B."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import FILE_NAME, Manifest, find_same_work, read_manifest
from instructrec_jax.progress import Progress
from instructrec_jax.settings import check_arguments
from instructrec_jax.teacher import texts
from instructrec_jax.teacher.filters import NO_ROOM
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.outcomes import UNANSWERED, Collected, outcomes
from instructrec_jax.teacher.wanted import WantedSettings, WantedTexts

logger = logging.getLogger(__name__)
_EMPTY = Manifest(stage=texts.STAGE, inputs={}, settings={})


class _UpToDateError(Exception):
    """The folder holds the same work."""


def export(
    *,
    dataset: str,
    input_dir: Path | str,
    output_dir: Path | str,
    ledger_path: Path | str,
    settings: WantedSettings,
) -> Manifest:
    """Writes the texts that the ledger has answers for, whole or not at all.

    The same ledger and settings give the same files; nothing is sent.

    Args:
      dataset: name of the dataset, such as ml_100k.
      input_dir: output folder of `prepare`.
      output_dir: folder for artefact B, new, empty or of the same work.
      ledger_path: the ledger that `annotate run` fills.
      settings: what was asked.

    Returns:
      The manifest.

    Raises:
      UserError: if an input or a setting is unusable, the ledger has no answer to any of the
        questions, or the folder holds another run.
    """
    check_arguments(export, locals())
    data = open_prepared(dataset, input_dir)
    files.check_is_file(Path(ledger_path))
    if not Path(ledger_path).exists():
        raise UserError(f"there is no ledger {ledger_path}; `instructrec annotate run` makes it")
    with open_ledger(ledger_path, input_dir) as ledger:
        return write_texts(data, ledger, settings, input_dir=input_dir, output_dir=output_dir)


def open_prepared(dataset: str, input_dir: Path | str) -> PreparedData:
    """Returns prepared data, which must be of a dataset."""
    read_manifest(input_dir)
    data = read_prepared(input_dir)
    if data.dataset != dataset:
        raise UserError(f"{input_dir} holds dataset {data.dataset!r}, not {dataset!r}")
    return data


def open_ledger(path: Path | str, input_dir: Path | str) -> Ledger:
    """Opens the ledger of prepared data."""
    return Ledger(path, fingerprint=files.sha256(Path(input_dir) / FILE_NAME))


def write_texts(
    data: PreparedData,
    ledger: Ledger,
    settings: WantedSettings,
    *,
    input_dir: Path | str,
    output_dir: Path | str,
) -> Manifest:
    """Writes artefact B from a ledger; returns its manifest.

    An earlier export of the same questions is replaced where some were unanswered then.
    """
    earlier = check_output(data.dataset, settings, input_dir=input_dir, output_dir=output_dir)
    wanted, collected = WantedTexts(data, settings), Collected()
    manifest = None
    with contextlib.suppress(_UpToDateError), files.atomic_directory(output_dir) as folder:
        with texts.TextsWriter(folder) as writer:
            progress = Progress("export", total=wanted.num_blocks, unit="blocks of users")
            for block in progress.track(wanted):
                tables = collected.tables(outcomes(block, ledger))
                for name, table in tables.items():
                    writer.write(name, table)
        manifest = _manifest(data, settings, wanted, collected, Path(input_dir))
        if not collected.written_by:
            raise UserError(
                "the ledger answers no question of these settings; `instructrec annotate run` "
                "asks them"
            )
        if not _unanswered(earlier) and find_same_work(output_dir, manifest) is not None:
            raise _UpToDateError
        manifest.write_finished(folder)
    assert manifest is not None
    _report(manifest, output_dir)
    return manifest


def check_output(
    dataset: str, settings: WantedSettings, *, input_dir: Path | str, output_dir: Path | str
) -> Manifest | None:
    """Returns the manifest of an earlier export of the same questions, None for an empty folder.

    Raises:
      UserError: if the folder holds something else, which is never overwritten.
    """
    path = Path(output_dir) / FILE_NAME
    earlier = read_manifest(output_dir) if path.exists() else _EMPTY
    planned = dataclasses.replace(
        earlier,
        stage=texts.STAGE,
        inputs={**earlier.inputs, "prepared": files.sha256(Path(input_dir) / FILE_NAME)},
        settings={**earlier.settings, "dataset": dataset, **_plain(settings)},
    )
    return find_same_work(output_dir, planned)


def _plain(settings: WantedSettings) -> dict[str, Any]:
    """Returns settings for a manifest; those of texts that were written before max_tokens."""
    plain = dataclasses.asdict(settings)
    if settings.max_tokens is None:
        del plain["max_tokens"]
    return plain


def _unanswered(manifest: Manifest | None) -> int:
    """Returns how many texts of an export were unanswered; later answers may complete it."""
    drops = {} if manifest is None else manifest.drops
    return sum(n for name, n in drops.items() if name.endswith(UNANSWERED))


def _manifest(
    data: PreparedData,
    settings: WantedSettings,
    wanted: WantedTexts,
    collected: Collected,
    input_dir: Path,
) -> Manifest:
    """Returns the manifest of the texts."""
    versions = " ".join(prompt.version for prompt in settings.prompts)
    return Manifest(
        stage=texts.STAGE,
        inputs={"prepared": files.sha256(input_dir / FILE_NAME), "answers": collected.digest},
        settings={
            "dataset": data.dataset,
            **_plain(settings),
            "teacher": f"{settings.model} {versions}",
            "written_by": dict(sorted(collected.written_by.items())),
            "format": texts.FORMAT,
        },
        counts=dict(sorted((wanted.counts | collected.counts).items())),
        drops=dict(sorted(collected.drops.items())),
    )


def _report(manifest: Manifest, output_dir: Path | str) -> None:
    """Logs what was written and what is missing."""
    for name, count in {**manifest.counts, **manifest.drops}.items():
        logger.info("annotate: %s=%d", name, count)
    if missing := _unanswered(manifest):
        logger.warning(
            "annotate: %d texts are unanswered and not in %s; `instructrec annotate run` with the "
            "same settings asks for them",
            missing,
            output_dir,
        )
    if cut := sum(n for name, n in manifest.drops.items() if name.endswith(f"_{NO_ROOM}")):
        logger.warning(
            "annotate: %d answers ended at their most tokens before any text, as those of a model "
            "do that reasons first; `instructrec annotate run --max_tokens=2000` asks anew, with "
            "more room",
            cut,
        )
    logger.info("annotate: wrote %s, texts by %s", output_dir, manifest.settings["teacher"])
