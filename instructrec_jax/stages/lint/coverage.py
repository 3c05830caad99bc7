"""Which cells of the paper a dataset fills, from the counts that `build` left in its manifest."""

import collections
from collections.abc import Iterable, Sequence

from instructrec_jax.data.columnar import TRAIN
from instructrec_jax.instructions.builder import HELD_OUT, SPLITS
from instructrec_jax.instructions.coverage import num_renderable
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.manifest import Manifest
from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.report.lint_report import CoverageRow

_INTENTIONS = frozenset({"vague_intention", "second_vague_intention"})
_CATEGORY = "specific_intention"
NO_TEACHER, NO_REVIEWS, NO_CATEGORIES = "no teacher", "no reviews", "no categories"


def cover(tasks: Iterable[InstructionTask], built: Manifest) -> list[CoverageRow]:
    """Returns how many examples a dataset has for every task.

    Args:
      tasks: of the dataset.
      built: the manifest of its `build`.
    """
    absent = absent_aspects(built)
    rows = []
    for task in tasks:
        needs = task.variant.needs
        counts = {
            split: num_renderable(built.counts, config=task.config, split=split, needs=needs)
            for split in SPLITS
        }
        reasons = [absent[need] for need in sorted(needs) if need in absent]
        if not any(built.counts.get(f"{task.config}/{split}") for split in SPLITS):
            reasons += [absent[_CATEGORY]] if _CATEGORY in absent else []  # nothing to search by
        rows.append(
            CoverageRow(
                task=task.variant.name,
                template_id=task.variant.template.template_id,
                cell=task.variant.cell,
                kind=task.variant.template.kind.value,
                family=task.family,
                is_evaluated=task.variant.is_evaluated,
                needs=sorted(needs),
                counts=counts,
                reason="" if any(counts.values()) else next(iter(reasons), ""),
            )
        )
    return rows


def absent_aspects(built: Manifest) -> dict[str, str]:
    """Returns the aspects that a dataset cannot have, each with what it lacks.

    Args:
      built: the manifest of its `build`.

    Example:
      a dataset without categories that no teacher has read gives {"specific_intention": "no
      categories", "preference": "no teacher", ...}.
    """
    present = {aspect for name in built.counts for aspect in name.split("/")[-1].split("+")}
    absent = {}
    if _CATEGORY not in present:
        absent[_CATEGORY] = NO_CATEGORIES
    if built.settings["teacher"] == "none":
        return absent | dict.fromkeys(sorted({"preference"} | _INTENTIONS), NO_TEACHER)
    if _INTENTIONS & present or built.counts.get("texts/intentions_asked"):
        return absent
    return absent | dict.fromkeys(sorted(_INTENTIONS), NO_REVIEWS)


def coverage_findings(rows: Sequence[CoverageRow]) -> list[Finding]:
    """Returns what is empty: an error where the dataset has all that would fill it."""
    unfilled = collections.defaultdict(list)
    for row in rows:
        if not row.counts[TRAIN] and not row.reason:
            unfilled[" and ".join(row.needs) or "target"].append(row.task)
    lacking = collections.defaultdict(list)
    for row in rows:
        if row.reason:
            lacking[row.reason].append(row.task)
    unranked = [
        row.task
        for row in rows
        if row.is_evaluated and row.counts[TRAIN] and not all(row.counts[s] for s in HELD_OUT)
    ]
    findings = [
        _finding(Severity.ERROR, tasks, f"empty: no training record for them has a {needs}")
        for needs, tasks in unfilled.items()
    ]
    findings += [
        _finding(Severity.WARNING, tasks, f"empty, since the dataset has {reason}")
        for reason, tasks in lacking.items()
    ]
    if unranked:
        message = "no validation or test record has what they need: they cannot be evaluated"
        findings.append(_finding(Severity.WARNING, unranked, message))
    return findings


def _finding(severity: Severity, tasks: Sequence[str], message: str) -> Finding:
    """Returns a finding on some tasks."""
    return Finding(
        severity=severity,
        subject="coverage",
        message=f"{len(tasks)} tasks ({', '.join(tasks)}): {message}",
    )
