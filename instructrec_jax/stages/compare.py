"""`instructrec compare RUN_A RUN_B`: two runs' scores and A -> who got better or worse, and why."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.manifest import RERUN, Manifest
from instructrec_jax.report import tables
from instructrec_jax.report.comparison import Comparison, Ranks, compare_ranks, document
from instructrec_jax.report.ranking_report import provenance
from instructrec_jax.stages.report.choice import Entry, entries_by_scenario, shared_examples
from instructrec_jax.stages.report.details import events_of
from instructrec_jax.stages.report.exports import Ranked
from instructrec_jax.stages.report.given import Beside, Given, input_hashes, opened
from instructrec_jax.stages.report.systems import (
    both_splits,
    known_lists,
    read_system,
)
from instructrec_jax.stages.report.users import users_of

NAME = "compare"
_NAMES = ("A", "B")
_logger = logging.getLogger(__name__)


def compare(
    run_a: str,
    run_b: str,
    *,
    prepared_dir: Path | str,
    output_dir: Path | str,
    texts_dir: str | None = None,
    task_module: str = SHIPPED,
) -> dict[str, Any]:
    """Writes compare.json, .md, .html and .txt; returns the JSON.

    Each run chooses its template and normaliser on its validation scores, as in a report; what is
    compared is the target's rank in the test examples that both scored.

    Args:
      run_a: a run's scores, [NAME=][VALIDATION:]TEST, or one folder that holds both splits; the
        name is A by default.
      run_b: another run's, likewise; B by default.
      prepared_dir: artefact A.
      output_dir: folder to write; one that holds the same comparison is kept.
      texts_dir: artefact B that the records were built with, for the prompts on the page.
      task_module: module whose templates were scored.

    Raises:
      UserError: if scores are missing, do not belong to the candidates of A, or share no scenario.
    """
    runs = dict(map(_run, (run_a, run_b), _NAMES))
    if len(runs) < 2:
        raise UserError(f"both runs have the name {next(iter(runs))!r}; give each its own")
    inputs = {
        "prepared": files.sha256(Path(prepared_dir) / manifest.FILE_NAME),
        **input_hashes(runs),
        **Beside(texts_dir=texts_dir).inputs(Path(prepared_dir)),
    }
    settings = {"runs": list(runs), "task_module": task_module}
    planned = Manifest(stage=NAME, inputs=inputs, settings=settings)
    output = Path(output_dir)
    if manifest.find_finished(output, planned):
        _logger.info("%s: %s is up to date", NAME, output)
        return files.read_json(output / f"{NAME}.json", dict[str, Any], remedy=RERUN)
    with opened(prepared_dir, texts_dir, task_module=task_module) as given:
        known = known_lists(given.data)
        systems = [read_system(name, paths, known) for name, paths in runs.items()]
        both = {
            scenario: entries
            for scenario, entries in entries_by_scenario(systems, None).items()
            if len(entries) == 2
        }
        if not both:
            raise UserError(f"{' and '.join(runs)} scored no scenario in common")
        found = [_compared(scenario, entries, given) for scenario, entries in both.items()]
        users = users_of(
            [ranked for _, ranked, _ in found],
            given.checks,
            first={own.scenario: rows for own, _, rows in found},
        )
        dataset = given.data.dataset
    comparisons = [own for own, _, _ in found]
    made = document(dataset, comparisons, users=users, facts=provenance(planned))
    with files.atomic_directory(output) as folder:
        tables.write(folder, NAME, made, {"dataset": dataset, "scenarios": comparisons})
        planned.write_finished(folder)
    return files.read_json(output / f"{NAME}.json", dict[str, Any], remedy=RERUN)


def _run(given: str, default: str) -> tuple[str, list[Path]]:
    """Returns the name and the paths of a run."""
    name, equals, rest = given.partition("=")
    if not equals or "/" in name:  # a folder may be called runs/rate=0.1
        name, rest = default, given
    paths = rest.split(":")
    if not all(paths) or len(paths) > 2 or not name:
        raise UserError(
            f"run {given!r} is none; expected [NAME=][VALIDATION:]TEST, such as "
            "new=runs/scores/validation:runs/scores/test, or a folder that holds both splits"
        )
    return name, both_splits(paths)


def _compared(
    scenario: str, entries: Sequence[Entry], given: Given
) -> tuple[Comparison, Ranked, list[int]]:
    """Returns two runs in a scenario: compared, as ranked, and the rows that changed most."""
    examples, rows = shared_examples(scenario, entries)
    runs = [entry.run(entry.system.test, own) for entry, own in zip(entries, rows, strict=True)]
    events = events_of(examples)
    firsts = [examples[row] for row in events.firsts.tolist()]
    first, second = (run.ranks_and_ties()[0] for run in runs)
    own = compare_ranks(
        scenario,
        (runs[0].name, runs[1].name),
        Ranks(
            ranks=(first, second),
            event=np.arange(len(examples)) if events.event is None else events.event,
            example_ids=[example.example_id for example in firsts],
            targets=[given.data.items[example.target_id].title for example in firsts],
        ),
        given.items.groups(events),
        facts={
            "dataset": given.data.dataset,
            "split": "test",
            **{f"{run.name}: template": run.template for run in runs},
            **{f"{run.name}: normaliser": run.normaliser for run in runs},
        },
    )
    row_of = {example.example_id: row for row, example in enumerate(examples)}
    changed = [row_of[event.example_id] for event in (*own.gained, *own.lost)]
    return own, Ranked(scenario, [], runs, num_baselines=0), changed
