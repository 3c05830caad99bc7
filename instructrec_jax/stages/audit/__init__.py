"""The stages `audit sample` and `audit publish`: from texts to people, and on to training."""

import dataclasses
import datetime
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.data.prepared import hashes_of
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import (
    FILE_NAME,
    Manifest,
    check_files,
    find_finished,
    read_manifest,
)
from instructrec_jax.report import page, tables
from instructrec_jax.settings import Count, Seed, check_arguments
from instructrec_jax.stages.annotate.export import open_prepared
from instructrec_jax.teacher import audit
from instructrec_jax.teacher.audit import QUESTIONS, REPORT, SAMPLE, SHEET, TEXTS, Example
from instructrec_jax.teacher.proxies import proxies
from instructrec_jax.teacher.texts import (
    INTENTIONS,
    PREFERENCES,
    PUBLISHED,
    read_texts_manifest,
)

logger = logging.getLogger(__name__)
_NUM_PROXY_TEXTS = 10_000  # of each kind that is measured without people


def sample(
    *,
    dataset: str,
    input_dir: Path | str,
    texts_dir: Path | str,
    output_dir: Path | str,
    num_texts: Count = 100,
    seed: Seed = 0,
) -> Manifest:
    """Writes a sheet of random texts for people to judge, as CSV and as a page to read.

    Args:
      dataset: name of the dataset, such as ml_100k.
      input_dir: output folder of `prepare`.
      texts_dir: output folder of `annotate` on it.
      output_dir: folder for the sheet.
      num_texts: preferences, and as many intentions; the paper took 100.
      seed: of the draw.

    Returns:
      The manifest.

    Raises:
      UserError: if an input is unusable, or the folder holds another run.
    """
    check_arguments(sample, locals())
    prepared = hashes_of(input_dir)
    about = read_texts_manifest(texts_dir, prepared=prepared)
    planned = Manifest(
        stage=SAMPLE,
        inputs={"prepared": prepared[0], "texts": files.sha256(Path(texts_dir) / FILE_NAME)},
        settings={
            "dataset": dataset,
            "teacher": about.text("teacher"),
            "num_texts": num_texts,
            "seed": seed,
        },
    )
    if (earlier := find_finished(output_dir, planned)) is not None:
        return earlier
    data = open_prepared(dataset, input_dir)
    drawn = {
        kind: audit.draw(data, texts_dir, kind, number=_NUM_PROXY_TEXTS, seed=seed)
        for kind in (PREFERENCES, INTENTIONS)
    }
    examples = [example for kind in drawn for example in drawn[kind][:num_texts]]
    if not examples:
        raise UserError(f"{texts_dir} holds no text at all; there is nothing to audit")
    measured = {kind: proxies(found, data.items) for kind, found in drawn.items() if found}
    manifest = dataclasses.replace(
        planned, counts={kind: len(found[:num_texts]) for kind, found in drawn.items()}
    )
    with files.atomic_directory(output_dir) as folder:
        (folder / SHEET).write_text(audit.as_csv(examples), encoding="utf-8")
        sheet = page.as_html(_page(manifest, examples))
        (folder / "sheet.html").write_text(sheet, encoding="utf-8")
        (folder / TEXTS).write_text(audit.as_json(examples, measured), encoding="utf-8")
        manifest.write_finished(folder, TEXTS, "sheet.html")  # people fill in the CSV
    logger.info(
        "audit: %d texts in %s; one or two people write yes or no into copies of it, reading %s",
        len(examples),
        Path(output_dir) / SHEET,
        Path(output_dir) / "sheet.html",
    )
    return manifest


def publish(*, texts_dir: Path | str, report_dir: Path | str, judge_alone: bool = False) -> str:
    """Marks texts as fit for training, by the report of an audit of just these texts.

    Args:
      texts_dir: output folder of `annotate`.
      report_dir: output folder of `audit report`.
      judge_alone: publish texts that no person has judged, but a language model; that is noted.

    Returns:
      The version that is published.

    Raises:
      UserError: if the report is on other texts, holds no answer of a person, or either is damaged.
    """
    check_arguments(publish, locals())
    audited, about = read_manifest(report_dir), read_manifest(texts_dir)
    if audited.stage != REPORT:
        raise UserError(f"{report_dir} holds no report of an audit; run `instructrec {REPORT}`")
    check_files(report_dir)
    check_files(texts_dir)
    if audited.inputs.get("texts") != files.sha256(Path(texts_dir) / FILE_NAME):
        raise UserError(
            f"the audit in {report_dir} is on other texts than those of {texts_dir}; run "
            f"`instructrec {SAMPLE}` on these"
        )
    num_people, judge = audited.counts["annotators"], audited.settings.get("judge")
    if not num_people and not judge_alone:
        raise UserError(
            f"no person has judged the texts of {report_dir}, only the language model {judge}; "
            f"have somebody fill in the sheet and name it to `instructrec {REPORT}`, or publish "
            "them on its word with --judge_alone"
        )
    version = about.text("teacher")
    note = {
        "teacher": version,
        "texts": audited.inputs["texts"],
        "audit": files.sha256(Path(report_dir) / FILE_NAME),
        "num_texts": audited.counts["texts"],
        "num_annotators": num_people,
        "judge": judge,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    files.write_text(Path(texts_dir) / PUBLISHED, json.dumps(note, indent=2) + "\n")
    logger.info("audit: %s is published: fit for training", version)
    return version


def _page(manifest: Manifest, examples: Sequence[Example]) -> tables.Document:
    """Returns the sheet as a page to read."""
    return tables.Document(
        title=f"Audit of {manifest.settings['teacher']} on {manifest.settings['dataset']}",
        summary=f"Answer these with yes or no in a copy of {SHEET}, row by row.",
        messages=list(QUESTIONS.items()),
        sections=[
            tables.Section(
                title=kind,
                tables=[
                    tables.Table(
                        header=("number", "text", "made from", "chosen next"),
                        rows=[(e.number, e.text, e.made_from, e.target) for e in found],
                    )
                ],
            )
            for kind in (PREFERENCES, INTENTIONS)
            if (found := [example for example in examples if example.kind == kind])
        ],
    )
