"""`instructrec report`: scores and A -> F, tables with intervals: text, JSON, Markdown, HTML."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax import files, manifest, seeds
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import RERUN, Manifest
from instructrec_jax.metrics import statistics
from instructrec_jax.report import (
    caveats,
    curves,
    ranking_report,
    results,
    slices,
    tables,
    validity,
)
from instructrec_jax.report.interval_picture import plot_intervals
from instructrec_jax.report.results import Report, ScenarioResult, SystemResult
from instructrec_jax.stages.report.baselines import BASELINES, Baselines
from instructrec_jax.stages.report.choice import (
    ChoiceSettings,
    Entry,
    entries_by_scenario,
    shared_examples,
)
from instructrec_jax.stages.report.details import Events, details_of, events_of
from instructrec_jax.stages.report.exports import ExportSettings, Ranked, write_exports
from instructrec_jax.stages.report.fusion import SIGN, FusedName, fused_entry, parts_of
from instructrec_jax.stages.report.given import Beside, Given, input_hashes, opened
from instructrec_jax.stages.report.systems import (
    Known,
    Run,
    both_splits,
    known_lists,
    read_system,
)
from instructrec_jax.stages.report.users import read_explanations, users_of
from instructrec_jax.training.metrics_log import read_metrics

SEED = 0  # of the bootstrap and of the random scorer; results of different runs stay comparable
NAME = "report"

_logger = logging.getLogger(__name__)


def report(
    *,
    dataset: str,
    prepared_dir: Path | str,
    scores: Mapping[str, Sequence[Path | str]],
    output_dir: Path | str,
    beside: Beside | None = None,
    choice: ChoiceSettings | None = None,
    export: ExportSettings | None = None,
) -> dict[str, Any]:
    """Writes report.json, .md, .html and .txt and pictures; returns the JSON.

    All systems are compared on the same candidates of the same examples. Each chooses its template
    and normaliser on the validation split; one without validation scores has nothing to choose: one
    template a scenario, and its own normaliser, or the first that was asked for.

    Args:
      dataset: name of the dataset; must be the one that was prepared.
      prepared_dir: artefact A.
      scores: by the name of each system where its scores of the validation split and of the test
        split are, or those of the test split alone, see `scores.importers`; or one folder that
        holds both, in `validation` and `test`, as `baseline` writes it. "NAME#2", "NAME#3" ... are
        further runs of NAME, such as seeds: one row, with intervals over runs and events; all but
        metrics and differences is that of the first run.
      output_dir: folder to write; one that holds the same report is kept.
      beside: what it shows beside the scores.
      choice: what each system chooses among on validation, and which systems are fused.
      export: what to write for other programs beside the report.

    Raises:
      UserError: if scores are missing or do not belong to the candidates of A.
    """
    beside, choice = beside or Beside(), choice or ChoiceSettings()
    paths = {name: both_splits(own) for name, own in scores.items()}
    planned = _plan(dataset, Path(prepared_dir), paths, beside, choice)
    fused = [parts_of(given, list(paths), choice.fuse_by) for given in choice.fuse]
    export = export or ExportSettings()
    planned = export.added_to(planned, dataset)
    output = Path(output_dir)
    if manifest.find_finished(output, planned):
        _logger.info("report: %s is up to date", output)
        return _read(output)
    with opened(prepared_dir, beside.texts_dir, task_module=export.task_module) as given:
        data = given.data
        if data.dataset != dataset:
            raise UserError(f"{prepared_dir} holds dataset {data.dataset!r}, not {dataset!r}")
        made, ranked = _make_report(given, paths, choice.normalisers, planned, fused)
        explanations = beside.explanations and read_explanations(beside.explanations)
        users = users_of(ranked, given.checks, explanations=explanations or None)
    lines = None if beside.metrics_file is None else list(read_metrics(beside.metrics_file))
    training = None if lines is None else (curves.FILE_NAME, curves.section(lines))
    facts = ranking_report.provenance(planned)
    forest = ranking_report.forest(made)
    document = ranking_report.document(made, training=training, users=users, facts=facts)
    with files.atomic_directory(output) as folder:
        if lines is not None:
            curves.plot_training_curve(lines, folder / curves.FILE_NAME)
        plot_intervals(forest, folder / ranking_report.FOREST)
        tables.write(folder, NAME, document, ranking_report.values(made))
        write_exports(folder, ranked, data, export)
        planned.write_finished(folder)
    _logger.info("report: wrote %s", output / f"{NAME}.json")
    return _read(output)


def _plan(
    dataset: str,
    prepared_dir: Path,
    paths: Mapping[str, Sequence[Path]],
    beside: Beside,
    choice: ChoiceSettings,
) -> Manifest:
    """Returns the manifest of the report that was asked for."""
    candidates = prepared_dir / "candidates.parquet"
    if not candidates.exists():
        raise UserError(f"{prepared_dir} holds no {candidates.name}; run `instructrec prepare`")
    inputs = {"candidates": files.sha256(candidates)}
    if not paths:
        raise UserError("no scores were given; name those of at least one system")
    if signed := [name for name in paths if SIGN in name]:
        raise UserError(f"system {signed[0]!r} has a {SIGN} in its name; give it another")
    inputs |= input_hashes(paths)
    inputs |= beside.inputs(prepared_dir)
    settings = {
        "dataset": dataset,
        "systems": list(paths),
        "seed": SEED,
        **choice.told(),
    }
    return Manifest(stage="report", inputs=inputs, settings=settings)


def _make_report(
    given: Given,
    paths: Mapping[str, Sequence[Path]],
    names: Sequence[str] | None,
    planned: Manifest,
    fused: Sequence[FusedName],
) -> tuple[Report, list[Ranked]]:
    """Computes every scenario that was scored, and what each system ranked in it."""
    data = given.data
    repeated = {} if given.texts is None else caveats.repeated_intentions(data, given.texts)
    known = known_lists(data)
    systems = [read_system(name, own_paths, known) for name, own_paths in paths.items()]
    baselines = Baselines(data, known, seed=SEED)
    facts = {
        "dataset": data.dataset,
        "split": "test",
        "candidates_sha256": planned.inputs["candidates"],
        "ties": "against the target; expected: every order of equal candidates alike",
        "choice": "best validation NDCG@5, ties by HR@1, then lower id",
        "interval": f"percentile bootstrap, {statistics.CONFIDENCE:.0%}, "
        f"{statistics.NUM_RESAMPLES} resamples of events",
        "seed": SEED,
        "command": planned.command,
    }
    made, ranked = [], []
    for scenario, entries in entries_by_scenario(systems, names).items():
        entries += _fused_entries(scenario, entries, fused, known)
        runs = _test_runs(scenario, entries, baselines)
        made.append(_scenario(scenario, entries, runs, given, facts=facts, repeated=repeated))
        of_validation = [run for entry in entries if (run := entry.validation_run()) is not None]
        ranked.append(Ranked(scenario, of_validation, runs, num_baselines=len(runs) - len(entries)))
    return Report(dataset=data.dataset, scenarios=made), ranked


def _fused_entries(
    scenario: str, entries: Sequence[Entry], fused: Sequence[FusedName], known: Known
) -> list[Entry]:
    """Returns the systems that are fused from others, where all their parts were scored."""
    by_name, found = {entry.system.name: entry for entry in entries}, []
    for name, parts, by in fused:
        if lacking := [part for part in parts if part not in by_name]:
            _logger.warning("%s: no %s without %s", scenario, name, ", ".join(lacking))
        else:
            own = [by_name[part] for part in parts]
            found.append(fused_entry(name, scenario, own, known, by=by))
    return found


def _test_runs(scenario: str, entries: Sequence[Entry], baselines: Baselines) -> list[Run]:
    """Returns what the baselines, then the systems, ranked of the examples that all scored.

    A system that bears a baseline's name takes its place.
    """
    examples, rows = shared_examples(scenario, entries)
    own = [entry.run(entry.system.test, r) for entry, r in zip(entries, rows, strict=True)]
    return [*baselines.runs(examples, without={run.name for run in own}), *own]


def _scenario(
    scenario: str,
    entries: Sequence[Entry],
    runs: Sequence[Run],
    given: Given,
    *,
    facts: Mapping[str, Any],
    repeated: Mapping[str, str],
) -> ScenarioResult:
    """Compares systems on the test examples that all of them scored."""
    examples = runs[-1].examples
    events = events_of(examples)
    firsts, num_baselines = events.firsts, len(runs) - len(entries)
    counts = sorted({len(example.candidate_ids) for example in examples})
    made = _systems(scenario, entries, runs, events)
    first_examples = [examples[row] for row in firsts]
    details = details_of(
        [run for run in runs if not results.is_repeat(run.name)],
        events,
        given.items,
        num_baselines=num_baselines,
        variant_of=given.checks.variant,
    )
    counted = {
        "num_examples": len(firsts),
        "num_draws": f"{len(examples) / len(firsts):.3g}",
        "num_examples_left_out": max(len(entry.examples) for entry in entries) - len(examples),
        "num_candidates": counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
    }
    of_texts = [text for query, text in repeated.items() if scenario.endswith(f".{query}")]
    return ScenarioResult(
        scenario=scenario,
        systems=made,
        certain_hits=caveats.certain_hits(first_examples),
        warnings=[
            *caveats.caveats(first_examples, given.data),
            *_favoured_negatives(runs, firsts),
            *of_texts,
            *filter(None, (slices.warning(details.slices, s.name) for s in made if s.chosen)),
        ],
        details=details,
        validity=given.checks.of(runs, firsts),
        facts={**facts, **counted},
    )


def _favoured_negatives(runs: Sequence[Run], firsts: NDArray[np.int64]) -> list[str]:
    """Returns what the ranks of popularity say of the negatives; nothing where it is not there."""
    found = []
    for run in runs:
        if run.name == "popularity":
            rank, num_tied = run.ranks_and_ties()
            sizes = np.array([len(example.candidate_ids) for example in run.examples])
            found.append(caveats.favoured_negatives(rank[firsts], num_tied[firsts], sizes[firsts]))
    return [text for text in found if text]


def _systems(
    scenario: str, entries: Sequence[Entry], runs: Sequence[Run], events: Events
) -> list[SystemResult]:
    """Returns the figures of all systems, baselines first."""
    found = {run.name: run.ranks_and_ties() for run in runs}
    ranks = results.pooled({name: rank for name, (rank, _) in found.items()})
    ties = {
        name: results.ties(rank, num_tied, name=name, event=events.event, seed=SEED)
        for name, (rank, num_tied) in found.items()
    }
    made, names = [], list(found)
    num_baselines = len(runs) - len(entries)
    for name in names[:num_baselines]:
        metrics, minus = results.compare(ranks, name, others=(), event=events.event, seed=SEED)
        made.append(SystemResult(name=name, metrics=metrics, minus=minus, ties=ties[name]))
    order = _order_of_subtraction(entries)
    for entry, run in zip(entries, runs[num_baselines:], strict=True):
        if results.is_repeat(run.name):
            continue
        others = [*names[:num_baselines], *order[order.index(run.name) + 1 :]]
        metrics, minus = results.compare(
            ranks, run.name, others=others, event=events.event, seed=SEED
        )
        made.append(
            SystemResult(
                name=run.name,
                metrics=metrics,
                minus=minus,
                ties=ties[run.name],
                choices=entry.choices,
                chosen=entry.chosen,
                unsure=run.scores.unsure(run.template),
                position_bias=_position_bias(scenario, run, events.firsts),
                facts={**_facts(entry, run), **results.about_runs(ranks[run.name])},
            )
        )
    return made


def _order_of_subtraction(entries: Sequence[Entry]) -> list[str]:
    """Returns the names of systems: from each those after it are subtracted.

    Fused systems are first, and those that bear a baseline's name last.
    """
    baselines = {baseline.name for baseline in BASELINES}
    ordered = sorted(entries, key=lambda e: (not e.parts, e.system.name in baselines))
    return [entry.system.name for entry in ordered if not results.is_repeat(entry.system.name)]


def _position_bias(
    scenario: str, run: Run, firsts: NDArray[np.int64]
) -> results.PositionBias | None:
    """Returns HR@1 by the target's index, of one example an event: they must be independent."""
    counts = {len(example.candidate_ids) for example in run.examples}
    if not run.scores.shows_all() or len(counts) > 1:
        return None
    rank, _ = run.ranks_and_ties()
    return results.position_bias(
        run.scores.target_index(run.template)[run.rows][firsts],
        rank[firsts],
        num_candidates=counts.pop(),
        seed=seeds.stable_seed(SEED, "position bias", scenario),
    )


def _facts(entry: Entry, run: Run) -> dict[str, Any]:
    """Returns what a system's numbers depend on."""
    return {
        "template": run.template,
        "normaliser": run.normaliser,
        "ranked_candidates_sha256": validity.candidates_hash(
            [example.example_id for example in run.examples], run.table.candidate_ids
        ),
        "candidate_view": run.scores.view_facts(run.template),
        "num_examples_left_out": len(entry.examples) - len(run.rows),
        **entry.system.facts(run.template),
    }


def _read(output: Path) -> dict[str, Any]:
    """Returns the JSON of a report."""
    return files.read_json(output / f"{NAME}.json", dict[str, Any], remedy=RERUN)
