"""Which cells of the paper a dataset fills, from counts that `build` leaves in its manifest.

Records are counted by the aspects they have texts for, so the number of examples of any template,
one of tomorrow included, is a sum of counts and needs no pass over the records.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from instructrec_jax.data.columnar import HELD_OUT, SPLITS, TRAIN
from instructrec_jax.instructions.language import Variant
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.manifest import Manifest
from instructrec_jax.records import InstructionRecord

ASPECTS = (
    "history",
    "preference",
    "vague_intention",
    "second_vague_intention",
    "specific_intention",
    "context",
)
_NONE = "none"
_INTENTIONS = frozenset({"vague_intention", "second_vague_intention"})
_CATEGORY = "specific_intention"
NO_TEACHER, NO_REVIEWS, NO_CATEGORIES = "no teacher", "no reviews", "no categories"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageRow:
    """How many examples a dataset has for one variant of a template.

    Attributes:
      task: name of the variant, such as "B7.specific".
      template_id: its template.
      cell: the paper's cell.
      kind: how input and output relate.
      family: the family it was registered with.
      is_evaluated: whether it belongs to the evaluation pool.
      needs: fields of a record without whose text it cannot be rendered.
      counts: examples by split.
      reason: what the dataset has none of, so that there can be no example; else "".
    """

    task: str
    template_id: str
    cell: str
    kind: str
    family: str
    is_evaluated: bool
    needs: Sequence[str]
    counts: Mapping[str, int]
    reason: str = ""


def aspects_of(record: InstructionRecord) -> str:
    """Returns the aspects that a record has texts for.

    Example:
      "history+preference"; "none" for a record of a title alone.
    """
    return "+".join(name for name in ASPECTS if getattr(record, name)) or _NONE


def count_name(config: str, split: str, aspects: str) -> str:
    """Returns the name under which records with exactly these aspects are counted."""
    return f"{config}/{split}/{aspects}"


def num_renderable(
    counts: Mapping[str, int], *, config: str, split: str, needs: Collection[str]
) -> int:
    """Returns how many records have a text for every needed aspect.

    Args:
      counts: of the manifest of `build`.
      config: "leave_one_out" or "product_search".
      split: "train", "validation" or "test".
      needs: names of ASPECTS, such as `language.Variant.needs`.
    """
    start = count_name(config, split, "")
    return sum(
        number
        for name, number in counts.items()
        if name.startswith(start) and set(needs) <= set(name.removeprefix(start).split("+"))
    )


def cover(rendered: Iterable[Variant], built: Manifest) -> list[CoverageRow]:
    """Returns how many examples a dataset has for every variant of a template.

    Args:
      rendered: variants of the templates of its task module.
      built: the manifest of its `build`.
    """
    absent = absent_aspects(built)
    rows = []
    for variant in rendered:
        template, needs = variant.template, variant.needs
        counts = {
            split: num_renderable(built.counts, config=template.records, split=split, needs=needs)
            for split in SPLITS
        }
        reasons = [absent[need] for need in sorted(needs) if need in absent]
        if not any(built.counts.get(f"{template.records}/{split}") for split in SPLITS):
            reasons += [absent[_CATEGORY]] if _CATEGORY in absent else []  # nothing to search by
        rows.append(
            CoverageRow(
                task=variant.name,
                template_id=template.template_id,
                cell=variant.cell,
                kind=template.kind.value,
                family=template.family,
                is_evaluated=variant.is_evaluated,
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
    if built.text("teacher") == "none":
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
