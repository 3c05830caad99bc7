"""The stages `audit sample`, `audit report` and `audit publish`: how good a teacher's texts are."""

import dataclasses
import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import (
    FILE_NAME,
    Manifest,
    check_files,
    find_finished,
    read_manifest,
)
from instructrec_jax.metrics.agreement import cohen_kappa, wilson_interval
from instructrec_jax.report import tables
from instructrec_jax.settings import Count, Range, Seed, check_arguments
from instructrec_jax.stages.annotate.export import open_prepared
from instructrec_jax.teacher import audit
from instructrec_jax.teacher.audit import PAPER, QUESTIONS, Example
from instructrec_jax.teacher.texts import (
    INTENTIONS,
    PREFERENCES,
    PUBLISHED,
    read_texts_manifest,
)

logger = logging.getLogger(__name__)
SAMPLE, REPORT = "audit sample", "audit report"
SHEET = "sheet.csv"
_NUM_PROXY_TEXTS = 10_000  # of each kind that is measured without people
_Answers = Mapping[str, Mapping[str, bool | None]]


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
    prepared = files.sha256(Path(input_dir) / FILE_NAME)
    about = read_texts_manifest(texts_dir, prepared=prepared)
    planned = Manifest(
        stage=SAMPLE,
        inputs={"prepared": prepared, "texts": files.sha256(Path(texts_dir) / FILE_NAME)},
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
    measured = {kind: audit.proxies(found) for kind, found in drawn.items() if found}
    manifest = dataclasses.replace(
        planned, counts={kind: len(found[:num_texts]) for kind, found in drawn.items()}
    )
    with files.atomic_directory(output_dir) as folder:
        (folder / SHEET).write_text(audit.as_csv(examples), encoding="utf-8")
        page = tables.as_html(_page(manifest, examples))
        (folder / "sheet.html").write_text(page, encoding="utf-8")
        kinds = {example.number: example.kind for example in examples}
        text = json.dumps({"kinds": kinds, "proxies": measured}, indent=1)
        (folder / "sample.json").write_text(text + "\n", encoding="utf-8")
        manifest.write_finished(folder, "sample.json", "sheet.html")  # people fill in the CSV
    logger.info(
        "audit: %d texts in %s; one or two people write yes or no into copies of it, reading %s",
        len(examples),
        Path(output_dir) / SHEET,
        Path(output_dir) / "sheet.html",
    )
    return manifest


def report(
    *,
    sample_dir: Path | str,
    sheets: Annotated[Sequence[str], Range(1, 2)],
    output_dir: Path | str,
) -> tables.Document:
    """Counts the answers of one or two people, beside the paper's.

    Args:
      sample_dir: output folder of `audit sample`.
      sheets: the sheets as one or two people filled them in.
      output_dir: folder for the report.

    Returns:
      The report.

    Raises:
      UserError: if a sheet is not that of the sample or has no answer.
    """
    check_arguments(report, locals())
    sampled, kinds, measured = _read_sample(Path(sample_dir))
    answers = [audit.read_sheet(path, kinds) for path in sheets]
    for path, found in zip(sheets, answers, strict=True):
        if not any(said is not None for row in found.values() for said in row.values()):
            raise UserError(f"{path} has no answer yet; write yes or no into its last columns")
    planned = Manifest(
        stage=REPORT,
        inputs={
            "texts": sampled.inputs["texts"],
            "sample": files.sha256(Path(sample_dir) / FILE_NAME),
            **{f"sheet {n}": files.sha256(path) for n, path in enumerate(sheets, 1)},
        },
        settings={"dataset": sampled.text("dataset"), "teacher": sampled.text("teacher")},
        counts={"annotators": len(sheets), "texts": len(kinds)},
    )
    values = {kind: _shares(kind, kinds, answers) for kind in measured}
    document = _document(planned, values, measured)
    if find_finished(output_dir, planned) is None:
        with files.atomic_directory(output_dir) as folder:
            tables.write(folder, "audit", document, {"answers": values, "proxies": measured})
            planned.write_finished(folder)
    logger.info("audit: wrote %s", output_dir)
    return document


def publish(*, texts_dir: Path | str, report_dir: Path | str) -> str:
    """Marks texts as fit for training, by the report of an audit of just these texts.

    Args:
      texts_dir: output folder of `annotate`.
      report_dir: output folder of `audit report`.

    Returns:
      The version that is published.

    Raises:
      UserError: if the report is on other texts, or either is damaged.
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
    version = about.text("teacher")
    note = {
        "teacher": version,
        "texts": audited.inputs["texts"],
        "audit": files.sha256(Path(report_dir) / FILE_NAME),
        "num_texts": audited.counts["texts"],
        "num_annotators": audited.counts["annotators"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    files.write_text(Path(texts_dir) / PUBLISHED, json.dumps(note, indent=2) + "\n")
    logger.info("audit: %s is published: fit for training", version)
    return version


def _read_sample(folder: Path) -> tuple[Manifest, dict[str, str], dict[str, dict[str, float]]]:
    """Returns the manifest of a sample, the kinds of its rows and what was measured."""
    found = read_manifest(folder)
    if found.stage != SAMPLE:
        raise UserError(f"{folder} holds no sample of an audit; run `instructrec {SAMPLE}`")
    check_files(folder)
    path = folder / "sample.json"
    plain = files.read_json(path, dict, remedy=f"run `instructrec {SAMPLE}` again")
    return found, plain["kinds"], plain["proxies"]


def _shares(
    kind: str, kinds: Mapping[str, str], answers: Sequence[_Answers]
) -> dict[str, dict[str, Any]]:
    """Returns for each question the share of yes of each annotator, and their agreement."""
    found = {}
    for name in QUESTIONS:
        said = [[rows[n][name] for n in kinds if kinds[n] == kind] for rows in answers]
        both = [row for row in zip(*said, strict=True) if None not in row]
        per_person = []
        for given in ([each for each in person if each is not None] for person in said):
            share = wilson_interval(sum(given), len(given)) if given else None
            per_person.append({"number": len(given), "yes": share})
        first, second = zip(*both, strict=True) if len(answers) == 2 and both else ((), ())
        found[name] = {
            "annotators": per_person,
            "kappa": cohen_kappa(first, second) if first else None,
            "paper": PAPER[kind][name],
        }
    return found


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


def _document(
    planned: Manifest,
    values: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, float]],
) -> tables.Document:
    """Returns the report as people read it."""
    return tables.Document(
        title=f"Audit of {planned.settings['teacher']} on {planned.settings['dataset']}",
        summary=f"{planned.counts['texts']} texts, {planned.counts['annotators']} annotators.",
        sections=[
            tables.Section(
                title=kind,
                tables=[
                    _answer_table(found),
                    tables.Table(
                        note="Without people:",
                        header=("measure", "value"),
                        rows=[(name, f"{value:.2f}") for name, value in measured[kind].items()],
                    ),
                ],
            )
            for kind, found in values.items()
        ],
    )


def _answer_table(found: Mapping[str, Any]) -> tables.Table:
    """Returns the shares of yes of one kind of text."""
    rows = []
    for name, answer in found.items():
        cells = []
        for person in answer["annotators"]:
            yes = person["yes"]
            cells.append(
                "no answer"
                if yes is None
                else f"{yes.estimate:.0%} [{yes.low:.0%}, {yes.high:.0%}] n={person['number']}"
            )
        kappa = answer["kappa"]
        rows.append(
            (name, *cells, "" if kappa is None else f"{kappa:.2f}", f"{answer['paper']:.0%}")
        )
    people = [f"annotator {n + 1}" for n in range(len(rows[0]) - 3)]
    return tables.Table(
        note="Share of yes with Wilson's 95 % interval:",
        header=("question", *people, "kappa", "paper"),
        rows=rows,
        footnotes=("The paper: 100 texts, one annotator, teacher text-davinci-003.",),
    )
