"""`instructrec sensitivity`: how rankings change where something changes that should not matter."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.task_modules import SHIPPED, find_variant
from instructrec_jax.manifest import RERUN, Manifest
from instructrec_jax.metrics.statistics import Difference
from instructrec_jax.report import tables
from instructrec_jax.report.tables import Document, Section, Table
from instructrec_jax.requests.perturbed import KINDS, PLANTED, perturbed, rank_changes
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, Seed, check_fields
from instructrec_jax.stages.score.ranked_file import RankedFile, rank_file

NAME = "sensitivity"
ORIGINAL, PARAPHRASE = "original", "paraphrase"
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensitivitySettings:
    """What is ranked, and what is changed.

    Attributes:
      model: a MODEL_DIR, or another model that `score --model` takes.
      prepared_dir: artefact A, whose test examples are asked.
      output_dir: for the requests, the rankings, and sensitivity.json, .md, .html and .txt.
      template: by which the model ranks.
      paraphrase: another template, which says the same in other words.
      num_requests: test examples, drawn by the seed, one of each user.
      seed: of all draws.
    """

    model: str
    prepared_dir: str
    output_dir: str
    template: str = "A7"
    paraphrase: str = "A8"
    num_requests: Count = 500
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


def sensitivity(asked: SensitivitySettings) -> dict[str, Any]:
    """Ranks test examples as they are and with one thing changed; returns the JSON.

    The changes: another template, typos, the history in another order, the candidates in another
    order, and an instruction planted in the title of a wrong candidate.

    Args:
      asked: what is ranked, and what is changed.

    Raises:
      UserError: if the model or the prepared data cannot be used, or the folder holds another run.
    """
    output, prepared = Path(asked.output_dir), Path(asked.prepared_dir)
    settings = dataclasses.asdict(asked)
    for name in ("output_dir", "prepared_dir"):
        del settings[name]
    inputs = {"prepared": files.sha256(prepared / manifest.FILE_NAME)}
    planned = Manifest(stage=NAME, inputs=inputs, settings=settings)
    if manifest.find_finished(output, planned):
        _logger.info("%s: %s is up to date", NAME, output)
        return files.read_json(output / f"{NAME}.json", dict[str, Any], remedy=RERUN)
    requests = requests_of(prepared, number=asked.num_requests, seed=asked.seed)
    if find_variant(SHIPPED, asked.template).query is None:  # it would show no intention
        requests = [{k: v for k, v in own.items() if k != "intention"} for own in requests]
    with files.atomic_directory(output) as folder:
        ranked = {
            name: _ranked(asked, folder, name, own, template)
            for name, (own, template) in _changed(asked, requests).items()
        }
        rows = [
            {"change": name, **rank_changes(requests, ranked[ORIGINAL], found, seed=asked.seed)}
            for name, found in ranked.items()
            if name != ORIGINAL
        ]
        tables.write(folder, NAME, document(rows, settings), {"settings": settings, "rows": rows})
        planned.write_finished(folder)
    return files.read_json(output / f"{NAME}.json", dict[str, Any], remedy=RERUN)


def requests_of(prepared_dir: Path | str, *, number: int, seed: int) -> list[dict[str, Any]]:
    """Returns leave-one-out test examples as requests, one of each user.

    Args:
      prepared_dir: artefact A.
      number: most requests, drawn by the seed.
      seed: of the draw.
    """
    data = read_prepared(prepared_dir)
    candidates = data.evaluation(LEAVE_ONE_OUT, TEST)
    firsts = np.flatnonzero(candidates.draws == 1)
    ids = candidates.example_ids()
    keys = [stable_seed(seed, NAME, ids[row]) for row in firsts.tolist()]
    chosen = np.sort(firsts[np.argsort(keys, kind="stable")[:number]]).tolist()
    if not chosen:
        raise UserError(f"{prepared_dir} holds no test example of a user")
    builder = RecordBuilder(data, RecordSettings(), None)
    return [
        {
            "id": record.example_id,
            "history": list(record.history),
            "intention": record.specific_intention,
            "candidates": list(record.candidates),
            "candidate_ids": list(record.candidate_ids),
            "target_index": record.candidate_ids.index(record.target_id),
        }
        for row in chosen
        for record in builder.records(LEAVE_ONE_OUT, TEST, range(row, row + 1))
    ]


def _changed(
    asked: SensitivitySettings, requests: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Sequence[Mapping[str, Any]], str]]:
    """Returns by name the requests to score and the template."""
    found: dict[str, tuple[Sequence[Mapping[str, Any]], str]] = {
        ORIGINAL: (requests, asked.template),
        PARAPHRASE: (requests, asked.paraphrase),
    }
    for kind in KINDS:
        found[kind] = (perturbed(requests, kind, seed=asked.seed), asked.template)
    return found


def _ranked(
    asked: SensitivitySettings,
    folder: Path,
    name: str,
    requests: Sequence[Mapping[str, Any]],
    template: str,
) -> dict[str, dict[int, int]]:
    """Scores requests by `score --model`; returns the rank of each candidate by request."""
    given, output = folder / f"{name}.requests.jsonl", folder / f"{name}.ranked.jsonl"
    lines = (json.dumps(own, ensure_ascii=False) + "\n" for own in requests)
    files.write_text(given, "".join(lines))
    run = RankedFile(model=asked.model, input=str(given), output=str(output), template=template)
    rank_file(run)
    found = (files.parse_json(line) for line in output.read_text(encoding="utf-8").splitlines())
    return {
        own["id"]: {row["candidate_id"]: row["rank"] for row in own["candidates"]} for own in found
    }


def document(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Document:
    """Returns the report of `sensitivity`.

    Args:
      rows: as `changes_table` takes them.
      settings: what they depend on.
    """
    section = Section(title=NAME, tables=[changes_table(rows)], facts=settings)
    return Document(title=NAME, sections=[section])


def changes_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the table of `sensitivity`, for its own report or another.

    Args:
      rows: "change" and what `rank_changes` returns, as it is or as JSON has it.
    """

    def difference(row: Mapping[str, Any], name: str) -> str:
        value = row["minus"][name]
        value = value if isinstance(value, Difference) else Difference(**value)
        return f"{value.estimate:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"

    return Table(
        note="What changes against the same requests without the change.",
        header=["change", "n", "other first", "correlation", "HR@1", "NDCG@5", "planted first"],
        rows=[
            [
                row["change"],
                str(row["num_requests"]),
                f"{row['first_changed']:.3f}",
                f"{row['correlation']:.3f}",
                difference(row, "hr@1"),
                difference(row, "ndcg@5"),
                "{before:.3f} -> {after:.3f}".format(**row["planted_first"])
                if row["change"] == PLANTED
                else "-",
            ]
            for row in rows
        ],
        footnotes=["differences with 95% bootstrap intervals, paired by request"],
    )
