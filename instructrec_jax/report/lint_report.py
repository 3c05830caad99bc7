"""What `lint` found in a dataset, as the values and the tables of a report."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructrec_jax.instructions.coverage import CoverageRow
from instructrec_jax.instructions.language import Kind
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.instructions.render import NUM_ANSWER_TITLES
from instructrec_jax.report.tables import Document, Section, Table

_HISTORY = "history"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSummary:
    """What a sample of a task's examples holds.

    Attributes:
      task: the task's name without its dataset.
      is_grouped: whether it is the form that candidates are ranked in: they are its targets.
      split: split of the sample.
      slots: slots of its instruction.
      num_examples: examples of the sample.
      inputs: tokens of the instruction, EOS included: median, 95th percentile, longest.
      targets: tokens of the answer or of a candidate, likewise.
      num_truncated: examples of which something had to go.
      num_history: history items of the sample's records, as far as the template shows them.
      num_history_dropped: how many of them were left out. No other slot loses a whole item.
      num_titles_cut: titles of history and candidates that were cut, see
        `instructions.token_budget`.
      num_words_cut: words taken from the newest title, or in answers from a teacher's text.
      num_tokens: tokens of instructions and answers.
      num_unknown: how many of them stand for something the vocabulary does not know.
      num_whole_targets: examples whose answer reads back as it was rendered.
      num_duplicates: examples whose instruction and answer an earlier one has.
      misfit: what did not fit into the feature lengths, which ended the sample; "" if all did.
    """

    task: str
    is_grouped: bool = False
    split: str
    slots: tuple[str, ...] = ()
    num_examples: int = 0
    inputs: tuple[int, ...] = (0, 0, 0)
    targets: tuple[int, ...] = (0, 0, 0)
    num_truncated: int = 0
    num_history: int = 0
    num_history_dropped: int = 0
    num_titles_cut: int = 0
    num_words_cut: int = 0
    num_tokens: int = 0
    num_unknown: int = 0
    num_whole_targets: int = 0
    num_duplicates: int = 0
    misfit: str = ""

    @property
    def shares(self) -> dict[str, float]:
        """The counts as shares of what they could be at most, 0 of nothing."""
        return {
            "truncated": _share(self.num_truncated, self.num_examples),
            "history_dropped": _share(self.num_history_dropped, self.num_history),
            "unknown_tokens": _share(self.num_unknown, self.num_tokens),
            "whole_targets": _share(self.num_whole_targets, self.num_examples),
            "duplicates": _share(self.num_duplicates, self.num_examples),
        }

    @property
    def drop_rates(self) -> dict[str, float]:
        """The share of each slot's items that was left out: only a history is ever shortened."""
        dropped = self.shares["history_dropped"]
        return {slot: dropped if slot == _HISTORY else 0.0 for slot in self.slots}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut:
    """What a rule that reads no text gets of the test records.

    Attributes:
      config: of the records.
      rule: which candidate it prefers.
      num_examples: test records.
      hit_rate: HR@1 of the rule alone, in expectation over ties.
      chance: HR@1 of a random order.
    """

    config: str
    rule: str
    num_examples: int
    hit_rate: float
    chance: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LintReport:
    """Everything that was found.

    Attributes:
      dataset: its name.
      protocol: what decides the numbers: teacher, feature lengths, size of the samples.
      coverage: one row per variant.
      samples: one row per task and form.
      records: number of records by what was found in them, see `stages.lint.leaks`.
      shortcuts: one row per rule and config of records.
      findings: what is wrong.
    """

    dataset: str
    protocol: Mapping[str, Any]
    coverage: Sequence[CoverageRow]
    samples: Sequence[TokenSummary]
    records: Mapping[str, int]
    shortcuts: Sequence[Shortcut]
    findings: Sequence[Finding]

    @property
    def num_errors(self) -> int:
        """How many findings fail the check."""
        return sum(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def num_warnings(self) -> int:
        """How many findings do not."""
        return len(self.findings) - self.num_errors


def values(report: LintReport) -> dict[str, Any]:
    """Returns everything that was found, with shares and totals."""
    return {
        "dataset": report.dataset,
        "protocol": report.protocol,
        "coverage": report.coverage,
        "cells": [
            dict(zip(("cell", "kind", "tasks", "counts", "reason"), row, strict=True))
            for row in _cells(report.coverage)
        ],
        "samples": [
            {**dataclasses.asdict(row), "shares": row.shares, "drop_rates": row.drop_rates}
            for row in report.samples
        ],
        "records": report.records,
        "shortcuts": report.shortcuts,
        "findings": report.findings,
        "num_errors": report.num_errors,
        "num_warnings": report.num_warnings,
    }


def document(report: LintReport) -> Document:
    """Returns the tables of a report."""
    errors_first = sorted(report.findings, key=lambda found: found.severity is not Severity.ERROR)
    return Document(
        title=f"lint of {report.dataset}",
        summary=summary_line(report),
        messages=[(str(f.severity), f"{f.subject}: {f.message}") for f in errors_first],
        sections=list(_sections(report)),
        facts=report.protocol,
    )


def summary_line(report: LintReport) -> str:
    """Returns the verdict in one line: whether all is well, then what was counted."""
    templates = {row.template_id for row in report.coverage}
    errors = _number(report.num_errors, "error") if report.num_errors else "ok"
    return (
        f"{report.dataset}: {errors}, {_number(report.num_warnings, 'warning')} "
        f"({len(templates)} templates, {len(report.coverage)} tasks, "
        f"{report.records['records']} records)"
    )


def _sections(report: LintReport) -> Iterator[Section]:
    """Yields coverage, cells, samples and records."""
    splits = list(report.coverage[0].counts) if report.coverage else []
    yield _section(
        "Coverage",
        "Examples of every template, by query where it takes one.",
        ("task", "cell", "kind", "eval", *splits),
        [_coverage_row(row) for row in report.coverage],
    )
    yield _section(
        "Cells",
        "Examples of every cell of the paper, over all templates.",
        ("cell", "kind", "tasks", *splits),
        [
            (cell, kind, str(len(tasks)), *_texts(counts, reason))
            for cell, kind, tasks, counts, reason in _cells(report.coverage)
        ],
    )
    yield from _token_sections(report)
    yield _section(
        "Records",
        "How many there are, and in how many of them something was found.",
        ("found", "records"),
        [(name.replace("_", " "), str(number)) for name, number in report.records.items()],
    )
    yield _section(
        "Rules that read no text",
        "HR@1 of each alone on the test records, ties resolved in expectation. Training negatives "
        "are those of the same user, in product search those of all training records.",
        ("records", "rule", "n", "HR@1", "chance"),
        [
            (
                *(own.config, own.rule, str(own.num_examples)),
                *(f"{value:.3f}" for value in (own.hit_rate, own.chance)),
            )
            for own in report.shortcuts
        ],
    )


def _section(
    title: str, note: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> Section:
    """Returns a section of one table."""
    return Section(title=title, tables=[Table(note=note, header=header, rows=rows)])


def _token_sections(report: LintReport) -> Iterator[Section]:
    """Yields the samples, one section for each form and split."""
    lengths = "{input_tokens} input and {target_tokens} target tokens".format(**report.protocol)
    forms = dict.fromkeys((row.is_grouped, row.split) for row in report.samples)
    for is_grouped, split in forms:
        what = "candidates, as they are ranked" if is_grouped else "answers, as they are trained on"
        yield _section(
            f"Tokens of instructions and {what} ({split})",
            f"Of {report.protocol['sample']} a task, within {lengths}. Tokens: median/95th "
            "percentile/longest. cut: examples of which something had to go; dropped: history "
            "items left out; unknown: tokens that the vocabulary lacks; whole: answers that read "
            f"back as rendered (a history as an answer: its last {NUM_ANSWER_TITLES} titles); "
            "repeated: examples with the instruction and the answer of an earlier one.",
            (*("task", "examples", "inputs", "targets"), *_SHARES.values()),
            [
                _sample_row(row)
                for row in report.samples
                if (row.is_grouped, row.split) == (is_grouped, split)
            ],
        )


_SHARES = {
    "truncated": "cut",
    "history_dropped": "dropped",
    "unknown_tokens": "unknown",
    "whole_targets": "whole",
    "duplicates": "repeated",
}


def _coverage_row(row: CoverageRow) -> Sequence[str]:
    """Returns the texts of a row."""
    pool = "yes" if row.is_evaluated else ""
    return (row.task, row.cell, row.kind, pool, *_texts(row.counts, row.reason))


def _texts(counts: Mapping[str, int], reason: str) -> list[str]:
    """Returns counts, or why there can be none."""
    return [str(count) if count or not reason else reason for count in counts.values()]


def _sample_row(row: TokenSummary) -> Sequence[str]:
    """Returns the texts of a row."""
    lengths = ["/".join(map(str, values)) for values in (row.inputs, row.targets)]
    shares = [_percent(row.shares[name]) for name in _SHARES]
    return (row.task, str(row.num_examples), *lengths, *shares)


def _cells(
    rows: Sequence[CoverageRow],
) -> list[tuple[str, str, list[str], dict[str, int], str]]:
    """Returns (cell, kind, tasks, examples by split, why there can be none) of every cell."""
    kinds = [kind.value for kind in Kind]
    found: dict[tuple[int, str], list[CoverageRow]] = {}
    for row in rows:
        found.setdefault((kinds.index(row.kind), row.cell), []).append(row)
    return [
        (
            cell,
            kinds[kind],
            [row.task for row in members],
            {split: sum(row.counts[split] for row in members) for split in members[0].counts},
            members[0].reason if all(row.reason for row in members) else "",
        )
        for (kind, cell), members in sorted(found.items())
    ]


def _number(number: int, name: str) -> str:
    """Returns such as '1 error', '2 errors'."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _percent(share: float) -> str:
    """Returns a share such as '1.5%'; a share that is not 0 or 1 never looks so."""
    if 0 < share < 0.0005:
        return "<.1%"
    if 0.9995 <= share < 1:
        return ">99.9%"
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"


def _share(number: int, total: int) -> float:
    """Returns a share, 0 of nothing."""
    return number / total if total else 0.0
