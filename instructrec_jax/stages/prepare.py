"""`instructrec prepare`: raw logs -> artefact A (catalogue, histories, splits, candidates)."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.damage import Damage
from instructrec_jax.data import prepared
from instructrec_jax.data.preparation import write_preparation
from instructrec_jax.data.readers import recognise
from instructrec_jax.data.readers.raw_log import Format, LogBuilder, count_log
from instructrec_jax.data.readers.tables import files_of
from instructrec_jax.data.settings import ANY_ITEM, FIELDS, FILE_TIES, PrepareSettings
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, find_finished
from instructrec_jax.settings import SettingError

_LOGGER = logging.getLogger(__name__)
_MAX_LOSS = 0.05  # share of events left out, or of users with a tie, without a warning
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Choices that a later change must not alter silently: they are compared when output is reused.
_PROTOCOL = {
    "order": "by time, ties as tie_order says; by file order without times",
    "repeats": "same user, item and time; the first in the file stays; none without times",
    "split": "last item test, last but one validation, earlier ones training",
    "product_search_split": "80/10/10 by hash of the title, items with a category",
    "negatives": "uniform from the catalogue minus the user's whole sequence, titles distinct",
    "equal_titles": "as a model reads them: NFKC, no layout characters, no case",
}


def prepare(
    *,
    dataset: str,
    input_dir: Path | str,
    output_dir: Path | str,
    settings: PrepareSettings | None = None,
) -> Manifest:
    """Prepares the logs of a folder; output of the same work that is there already is reused.

    Args:
      dataset: name of the dataset, such as ml_100k; it becomes part of task names and seeds.
      input_dir: folder with the logs: RecBole atomic files, TSV, JSONL, Parquet or Amazon reviews.
      output_dir: folder for artefact A, new, empty or of the same work.
      settings: everything else that decides the output.

    Returns:
      The manifest of the output, with all counts and drops.

    Raises:
      UserError: on damaged logs, impossible settings or an output folder of other work.
    """
    settings = settings or PrepareSettings()
    if not _NAME.fullmatch(dataset):
        raise UserError(
            f"dataset name {dataset!r} has other characters than lower-case letters, digits and "
            "_, or begins with no letter; choose one such as 'my_shop'"
        )
    form, paths = recognise(input_dir)
    if settings.k_core is None:
        settings = dataclasses.replace(settings, k_core=form.default_k_core)
    _check_fields(settings, form)
    plan = Manifest(
        stage=prepared.STAGE,
        inputs={
            part.relative_to(path.parent).as_posix(): files.sha256(part)
            for path in paths
            for part in files_of(path)
        },
        settings={
            "dataset": dataset,
            "format": form.name,
            **_decisions(settings),
            "protocol": _PROTOCOL,
            "prepared_format": prepared.FORMAT,
        },
    )
    manifest = find_finished(output_dir, plan)
    if manifest is not None:
        _LOGGER.info("%s already holds this preparation: reused", output_dir)
    else:
        damage = Damage(on_damage=settings.on_damage, max_damaged=settings.max_damaged)
        with files.atomic_directory(output_dir) as folder:
            log = form.read(paths, LogBuilder(folder), damage, settings.fields)
            read = count_log(log)
            result = write_preparation(folder, log, dataset, settings)
            manifest = dataclasses.replace(
                plan,
                counts={**read, **result.counts},
                drops={
                    **{f"damaged_lines_{reason}": n for reason, n in damage.counts.items()},
                    "item_details_of_unknown_items": log.num_details_of_unknown_items,
                    **result.drops,
                },
                damage=damage.examples,
                examples=result.examples,
            )
            manifest.write_finished(folder)
        _LOGGER.info("wrote %s", output_dir)
    _report(manifest)
    return manifest


def _check_fields(settings: PrepareSettings, form: Format) -> None:
    """Raises where the user names a column that the format has not."""
    for name in sorted(settings.fields.keys() - set(form.fields)):
        flags = ", ".join(f"--{FIELDS[name]}" for name in form.fields) or "none"
        raise SettingError(
            type(settings).__qualname__,
            FIELDS[name],
            f"is given, and the log is in the format {form.name!r}, which takes {flags} of the "
            "flags that name columns",
        )


def _decisions(settings: PrepareSettings) -> dict[str, Any]:
    """Returns the settings for the manifest; of the columns those that the user named.

    Older manifests have no `search_negatives`: the paper's stay unsaid.
    """
    found = dataclasses.asdict(settings)
    if settings.search_negatives == ANY_ITEM:
        del found["search_negatives"]
    return {k: v for k, v in found.items() if v is not None or k not in FIELDS.values()}


def _report(manifest: Manifest) -> None:
    """Logs the counts; other programs read the line `users=... items=... interactions=...`."""
    counts = manifest.counts
    read = [f"{name}={n}" for name, n in counts.items() if name.startswith("log_")]
    _LOGGER.info("read: %s", " ".join(read))
    for reason, places in manifest.damage.items():
        number = manifest.drops[f"damaged_lines_{reason}"]
        more = " ..." if number > len(places) else ""
        _LOGGER.warning("damaged, left out: %s %d (%s%s)", reason, number, ", ".join(places), more)
    _LOGGER.info(
        "users=%d items=%d interactions=%d",
        counts["users"],
        counts["items"],
        counts["interactions"],
    )
    if counts["titles_from_category"]:
        _LOGGER.info("items named by category and id: %d", counts["titles_from_category"])
    drops = ", ".join(f"{name}={number}" for name, number in manifest.drops.items() if number)
    _LOGGER.info("left out: %s", drops or "nothing")
    if counts["users_with_time_ties"]:
        by = "file" if manifest.settings["tie_order"] == FILE_TIES else "a seeded hash"
        _LOGGER.info(
            "%d users have events of equal time, in %s", counts["users_with_time_ties"], by
        )
    num_at_last = counts["users_with_time_tie_at_last_item"]
    if num_at_last > _MAX_LOSS * counts["users"]:
        _LOGGER.warning(
            "the test item of %d of %d users is one of several of equal time",
            num_at_last,
            counts["users"],
        )
    num_read = counts["log_interactions"]
    num_left_out = num_read - counts["interactions"]
    if num_left_out > _MAX_LOSS * num_read:
        reasons = sorted(manifest.examples, key=lambda reason: -manifest.drops[reason])
        _LOGGER.warning(
            "%d of the log's %d events (%.0f %%) were left out: %s",
            num_left_out,
            num_read,
            100 * num_left_out / num_read,
            "; ".join(
                f"{reason}={manifest.drops[reason]}, such as {manifest.examples[reason]}"
                for reason in reasons
            ),
        )
