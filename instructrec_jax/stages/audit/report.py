"""The stage `audit report`: answers of people and of a language model, beside the paper's."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import FILE_NAME, Manifest, check_files, find_finished, read_manifest
from instructrec_jax.metrics.agreement import cohen_kappa, wilson_interval
from instructrec_jax.report import tables
from instructrec_jax.settings import Range, check_arguments
from instructrec_jax.teacher import audit
from instructrec_jax.teacher.audit import JUDGE, PAPER, QUESTIONS, REPORT, Answers, Sample

logger = logging.getLogger(__name__)
_JUDGE_NAME = "language model"  # in place of "annotator 1"


def report(
    *,
    sample_dir: Path | str,
    sheets: Annotated[Sequence[str], Range(0, 2)] = (),
    judge_dir: Path | str | None = None,
    output_dir: Path | str,
) -> tables.Document:
    """Counts the answers of one or two people, and of a language model, beside the paper's.

    Args:
      sample_dir: output folder of `audit sample`.
      sheets: the sheets as one or two people filled them in.
      judge_dir: output folder of `audit judge` on this sample; never counted as a person.
      output_dir: folder for the report.

    Returns:
      The report.

    Raises:
      UserError: if there is no answer at all, or a sheet is not that of the sample or has none.
    """
    check_arguments(report, locals())
    sampled = audit.read_sample(sample_dir)
    sample_hash = files.sha256(Path(sample_dir) / FILE_NAME)
    said = _said_by_people(sheets, sampled)
    inputs = {f"sheet {n}": files.sha256(path) for n, path in enumerate(sheets, 1)}
    settings = {name: sampled.manifest.text(name) for name in ("dataset", "teacher")}
    if judge_dir is not None:
        judged, said[_JUDGE_NAME] = _said_by_model(judge_dir, sample_hash)
        inputs["judge"] = files.sha256(Path(judge_dir) / FILE_NAME)
        settings["judge"] = f"{judged.text('model')} {judged.text('prompt_version')}"
    if not said:
        raise UserError("nobody's answers were given; name filled-in sheets, --judge_dir, or both")
    planned = Manifest(
        stage=REPORT,
        inputs={"texts": sampled.manifest.inputs["texts"], "sample": sample_hash, **inputs},
        settings=settings,
        counts={"annotators": len(sheets), "texts": len(sampled.examples)},
    )
    values = {kind: _shares(kind, sampled.kinds, said) for kind in sampled.proxies}
    document = _document(planned, values, sampled.proxies)
    if find_finished(output_dir, planned) is None:
        with files.atomic_directory(output_dir) as folder:
            tables.write(folder, "audit", document, {"answers": values, "proxies": sampled.proxies})
            planned.write_finished(folder)
    logger.info("audit: wrote %s", output_dir)
    return document


def _said_by_people(sheets: Sequence[str], sampled: Sample) -> dict[str, Answers]:
    """Returns the answers of each sheet, by the name of the annotator."""
    found = {}
    for number, path in enumerate(sheets, 1):
        found[f"annotator {number}"] = answers = audit.read_sheet(path, sampled.kinds)
        if not any(said is not None for row in answers.values() for said in row.values()):
            raise UserError(f"{path} has no answer yet; write yes or no into its last columns")
    return found


def _said_by_model(folder: Path | str, sample_hash: str) -> tuple[Manifest, Answers]:
    """Returns who judged, and the answers."""
    found = read_manifest(folder)
    if found.stage != JUDGE:
        raise UserError(f"{folder} holds no answers of a language model; run `instructrec {JUDGE}`")
    check_files(folder)
    if found.inputs.get("sample") != sample_hash:
        raise UserError(
            f"{folder} holds answers on another sample; run `instructrec {JUDGE}` on this one"
        )
    plain = files.read_json(
        Path(folder) / audit.JUDGED, dict, remedy=f"run `instructrec {JUDGE}` again"
    )
    return found, plain["answers"]


def _shares(
    kind: str, kinds: Mapping[str, str], answers: Mapping[str, Answers]
) -> dict[str, dict[str, Any]]:
    """Returns for each question the share of yes of each annotator, and the kappa of each pair."""
    found = {}
    for name in QUESTIONS:
        said = {
            who: [rows[n][name] for n in kinds if kinds[n] == kind] for who, rows in answers.items()
        }
        annotators = []
        for who, all_given in said.items():
            given = [each for each in all_given if each is not None]
            share = wilson_interval(sum(given), len(given)) if given else None
            is_person = who != _JUDGE_NAME
            annotators.append(
                {"name": who, "is_person": is_person, "number": len(given), "yes": share}
            )
        found[name] = {
            "annotators": annotators,
            "kappa": {
                f"{first}, {second}": _kappa(said[first], said[second])
                for first, second in itertools.combinations(said, 2)
            },
            "paper": PAPER[kind][name],
        }
    return found


def _kappa(first: Sequence[bool | None], second: Sequence[bool | None]) -> float | None:
    """Returns how far two agree on what both answered; None where that says nothing."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return cohen_kappa(*zip(*both, strict=True)) if both else None


def _document(
    planned: Manifest,
    values: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, float]],
) -> tables.Document:
    """Returns the report as people read it."""
    settings, num_people = planned.settings, planned.counts["annotators"]
    judge = settings.get("judge")
    people = f"{num_people} annotator{'s' * (num_people != 1)}"
    return tables.Document(
        title=f"Audit of {settings['teacher']} on {settings['dataset']}",
        summary=f"{planned.counts['texts']} texts, {people}"
        + (f", and the language model {judge}, which counts as none." if judge else "."),
        messages=_warnings(settings["teacher"], judge, num_people),
        sections=[
            tables.Section(
                title=kind,
                tables=[
                    _answer_table(found),
                    *_agreement_tables(found),
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


def _warnings(teacher: str, judge: str | None, num_people: int) -> list[tuple[str, str]]:
    """Returns what to know of answers that a language model gave."""
    found = []
    if judge and not num_people:
        found.append("no person has judged these texts: a language model alone did.")
    if judge and judge.split()[0] == teacher.split()[0]:
        found.append("the language model judges texts that it wrote itself, which favours them.")
    return [("warning", message) for message in found]


def _answer_table(found: Mapping[str, Any]) -> tables.Table:
    """Returns the shares of yes of one kind of text."""
    rows = []
    for name, answer in found.items():
        cells = []
        for annotator in answer["annotators"]:
            yes = annotator["yes"]
            cells.append(
                "no answer"
                if yes is None
                else f"{yes.estimate:.0%} [{yes.low:.0%}, {yes.high:.0%}] n={annotator['number']}"
            )
        rows.append((name, *cells, f"{answer['paper']:.0%}"))
    (first, *_) = found.values()
    return tables.Table(
        note="Share of yes with Wilson's 95 % interval:",
        header=("question", *(who["name"] for who in first["annotators"]), "paper"),
        rows=rows,
        footnotes=("The paper: 100 texts, one annotator, teacher text-davinci-003.",),
    )


def _agreement_tables(found: Mapping[str, Any]) -> list[tables.Table]:
    """Returns the kappa of each pair of annotators, where there is a pair."""
    (first, *_) = found.values()
    if not first["kappa"]:
        return []
    rows = [
        (name, *("" if kappa is None else f"{kappa:.2f}" for kappa in answer["kappa"].values()))
        for name, answer in found.items()
    ]
    return [
        tables.Table(
            note="Agreement beyond chance (Cohen's kappa: 1 fully, 0 as by chance):",
            header=("question", *(pair.replace("annotator ", "") for pair in first["kappa"])),
            rows=rows,
        )
    ]
