"""The stage `lint`: what is wrong with templates and with a dataset that `build` wrote."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec_jax import files, manifest, tokenizer
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.coverage import cover, coverage_findings
from instructrec_jax.instructions.lint import lint_templates
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.manifest import Manifest, find_finished, read_manifest
from instructrec_jax.report import lint_report, tables
from instructrec_jax.report.lint_report import LintReport
from instructrec_jax.settings import Count, Natural, check_arguments
from instructrec_jax.stages.run_data import VOCABULARY_FILE

if TYPE_CHECKING:
    from instructrec_jax.pipeline.registry import InstructionTask

logger = logging.getLogger(__name__)


def lint(
    *,
    dataset: str,
    data_dir: Path | str,
    task_module: str = SHIPPED,
    input_tokens: Count = 512,
    target_tokens: Count = 128,
    max_examples: Natural = 2000,
    output_dir: Path | str | None = None,
) -> LintReport:
    """Checks the templates of a module and a dataset's records.

    All records are read once for ids and leaks; tokens are counted on a sample of every task.

    Args:
      dataset: name of the dataset, such as ml_100k.
      data_dir: output folder of `build`.
      task_module: module that registers the tasks.
      input_tokens: most tokens of an instruction.
      target_tokens: most tokens of an answer.
      max_examples: examples of each task to measure; 0 for all.
      output_dir: folder for lint.json, .md, .html and .txt, new, empty or of the same work;
        nothing is written without it.

    Returns:
      The report, for `lint_report.document`.

    Raises:
      UserError: if the dataset or the module is missing, a number is impossible, or the output
        folder holds something else.
    """
    check_arguments(lint, locals())
    # Only now: the flags of `lint` do without TensorFlow and SeqIO.
    from instructrec_jax.pipeline import record_store, registry

    registry.import_task_module(task_module, dataset)
    record_store.use_data_dir(data_dir)
    record_store.check_dataset(dataset)
    folder = Path(data_dir) / dataset
    tasks = registry.instruction_tasks(dataset)
    if not tasks:
        raise UserError(
            f"task module {task_module!r} registers no template for dataset {dataset!r}; give it a "
            "function register(dataset), or register them at import"
        )
    protocol = {
        "dataset": dataset,
        "task_module": task_module,
        "input_tokens": input_tokens,
        "target_tokens": target_tokens,
        "max_examples": max_examples,
    }
    planned = _plan(folder, tasks, protocol)
    earlier = None if output_dir is None else find_finished(output_dir, planned)
    report = _inspect(dataset, tasks, read_manifest(folder), protocol)
    if output_dir is not None and earlier is None:
        _write(report, planned, Path(output_dir))
    return report


def _plan(folder: Path, tasks: list["InstructionTask"], protocol: Mapping[str, Any]) -> Manifest:
    """Returns the manifest of the work, without what it will count."""
    manifest.check_files(folder, VOCABULARY_FILE.as_posix())
    wordings = repr([(task.name, task.variant, task.config) for task in tasks])
    return Manifest(
        stage="lint",
        inputs={
            "records": files.sha256(folder / manifest.FILE_NAME),
            "vocabulary": files.sha256(folder / VOCABULARY_FILE),
            "templates": hashlib.sha256(wordings.encode()).hexdigest(),
        },
        settings=protocol,
    )


def _inspect(
    dataset: str, tasks: list["InstructionTask"], built: Manifest, protocol: Mapping[str, Any]
) -> LintReport:
    """Looks for everything; the order of the findings is that of the passes."""
    from instructrec_jax.pipeline.record_store import data_dir_in_use
    from instructrec_jax.stages.lint.leaks import check_records
    from instructrec_jax.stages.lint.shortcuts import find_shortcuts, shortcut_findings
    from instructrec_jax.stages.lint.tokens import summarise_tasks, token_findings

    words = tokenizer.check_vocabulary(data_dir_in_use() / dataset / VOCABULARY_FILE)
    templates = {task.variant.template.template_id: task.variant.template for task in tasks}
    findings = lint_templates(
        templates.values(), is_known=lambda text: tokenizer.UNK_ID not in words.encode(text)
    )
    coverage = cover((task.variant for task in tasks), built)
    records = check_records(dataset)
    shortcuts = find_shortcuts(dataset)
    logger.info("lint: read %d records, now samples of %d tasks", records.num_records, len(tasks))
    lengths = {"inputs": protocol["input_tokens"], "targets": protocol["target_tokens"]}
    max_examples = protocol["max_examples"]
    samples = summarise_tasks(tasks, words, feature_lengths=lengths, max_examples=max_examples)
    sample = f"the first {max_examples} examples" if max_examples else "all examples"
    return LintReport(
        dataset=dataset,
        protocol={**protocol, "teacher": built.text("teacher"), "sample": sample},
        coverage=coverage,
        samples=samples,
        records={"records": records.num_records, **records.counts},
        shortcuts=shortcuts,
        findings=[
            *findings,
            *coverage_findings(coverage),
            *records.findings,
            *shortcut_findings(shortcuts),
            *token_findings(samples),
        ],
    )


def _write(report: LintReport, planned: Manifest, output_dir: Path) -> None:
    """Writes the report and its manifest, whole or not at all."""
    with files.atomic_directory(output_dir) as folder:
        tables.write(folder, "lint", lint_report.document(report), lint_report.values(report))
        counts = {**report.records, "errors": report.num_errors, "warnings": report.num_warnings}
        Manifest(
            stage=planned.stage, inputs=planned.inputs, settings=planned.settings, counts=counts
        ).write_finished(folder)
    logger.info("lint: wrote %s", output_dir)
