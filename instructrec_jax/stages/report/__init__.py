"""Artefacts E and A -> F: tables with intervals and baselines, as text, JSON, Markdown and PNG."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax import files, manifest, seeds
from instructrec_jax.baselines import chance, cooccurrence, popularity
from instructrec_jax.data import prepared as prepared_files
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest
from instructrec_jax.metrics import ranking, statistics
from instructrec_jax.metrics.ranking import checked_normalisers
from instructrec_jax.records import CandidateList
from instructrec_jax.report import curves, evaluation, position_bias, scenarios, writers
from instructrec_jax.report.evaluation import Choice, Report, ScenarioResult
from instructrec_jax.scores import parts as score_files
from instructrec_jax.scores import t5x
from instructrec_jax.scores.parts import Scores
from instructrec_jax.stages.report.split_scores import ScoredSplit, ballots_of

SEED = 0  # of the bootstrap and of the random scorer; results of different runs stay comparable
CURVE = "training_curve.png"

_logger = logging.getLogger(__name__)


def report(
    *,
    dataset: str,
    prepared_dir: Path | str,
    validation_scores_dir: Path | str,
    test_scores_dir: Path | str,
    output_dir: Path | str,
    metrics_file: Path | str | None = None,
    normalisers: Sequence[str] = ("sum",),
) -> dict[str, Any]:
    """Writes report.json, report.md, report.txt and the training curve; returns the JSON.

    Args:
      dataset: name of the dataset; must be the one that was prepared.
      prepared_dir: artefact A.
      validation_scores_dir: artefact E of the validation split, or what T5X's `infer` wrote in
        score mode for `.rank` tasks: chooses template and normaliser.
      test_scores_dir: artefact E of the test split: gives the numbers.
      output_dir: folder to write; one that holds the same report is kept.
      metrics_file: JSONL metrics of the training run, for the curve.
      normalisers: names of the normalisers that validation may choose among.

    Raises:
      UserError: if a folder is missing, or the scores do not belong to the candidates of A.
    """
    names = checked_normalisers(normalisers)
    score_folders = {"validation": Path(validation_scores_dir), "test": Path(test_scores_dir)}
    planned = _plan(dataset, Path(prepared_dir), score_folders, metrics_file, names)
    output = Path(output_dir)
    if manifest.find_same_work(output, planned):
        _logger.info("report: %s is up to date", output)
        _log_table((output / "report.txt").read_text(encoding="utf-8"))
        return json.loads((output / "report.json").read_text(encoding="utf-8"))
    data = prepared_files.read_prepared(prepared_dir)
    if data.dataset != dataset:
        raise UserError(f"{prepared_dir} holds dataset {data.dataset!r}, not {dataset!r}")
    scores = {split: _read_scores(path) for split, path in score_folders.items()}
    made = _make_report(data, scores, names, _protocol(planned, scores, score_folders))
    _write(made, output, planned, metrics_file)
    _logger.info("report: wrote %s", output / "report.json")
    _log_table(writers.as_text(made))
    return writers.as_json(made)


def _plan(
    dataset: str,
    prepared_dir: Path,
    score_folders: Mapping[str, Path],
    metrics_file: Path | str | None,
    names: Sequence[str],
) -> Manifest:
    """Returns the manifest of the report that was asked for."""
    candidates = prepared_dir / "candidates.parquet"
    if not candidates.exists():
        raise UserError(f"{prepared_dir} holds no {candidates.name}; run `instructrec prepare`")
    for folder in score_folders.values():
        if t5x.holds_t5x_scores(folder):
            continue
        if not manifest.read_manifest(folder).counts:  # claimed, not finished
            raise UserError(f"scoring into {folder} has not finished; run its command again")
    inputs = {"candidates": files.sha256(candidates)}
    inputs |= {f"{split}_scores": files.sha256(path) for split, path in score_folders.items()}
    if metrics_file is not None:
        if not Path(metrics_file).is_file():
            raise UserError(f"metrics file {metrics_file} is not there")
        inputs["training_metrics"] = files.sha256(metrics_file)
    settings = {"dataset": dataset, "normalisers": list(names), "seed": SEED}
    return Manifest(stage="report", inputs=inputs, settings=settings)


def _read_scores(folder: Path) -> Scores:
    """Returns the scores of a folder, whichever scorer wrote them."""
    if t5x.holds_t5x_scores(folder):
        return t5x.read_t5x_scores(folder)
    return score_files.read_scores(folder)


def _protocol(
    planned: Manifest, scores: Mapping[str, Scores], folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Returns what every scenario's protocol has in common."""
    for split, part in scores.items():
        if part.metadata["split"] not in (split, None):  # None: T5X's config is not at hand
            raise UserError(
                f"{folders[split]} holds scores of the {part.metadata['split']} split, not of "
                f"{split}; were the folders exchanged?"
            )
    ballots = [ballots_of(scores[split]) for split in ("validation", "test")]
    if ballots[0] != ballots[1]:
        raise UserError(
            f"{folders['validation']} was scored with CANDIDATE_VIEW {ballots[0]} and "
            f"{folders['test']} with {ballots[1]}; score both splits with the same"
        )
    steps = {split: part.metadata["checkpoint_step"] for split, part in scores.items()}
    if scores["validation"].metadata["checkpoint"] != scores["test"].metadata["checkpoint"]:
        raise UserError(
            f"{folders['validation']} was scored with checkpoint step {steps['validation']} and "
            f"{folders['test']} with another of step {steps['test']}; score both splits with the "
            "same checkpoint"
        )
    return {
        "dataset": planned.settings["dataset"],
        "split": "test",
        "candidates_sha256": planned.inputs["candidates"],
        "checkpoint_step": steps["test"],
        "checkpoint_sha256": scores["test"].metadata["checkpoint"],
        "teacher": scores["test"].metadata["teacher"],
        "ties": "against the target",
        "interval": f"percentile bootstrap, {statistics.CONFIDENCE:.0%}, "
        f"{statistics.NUM_RESAMPLES} resamples of examples",
        "seed": SEED,
        "score_command": scores["test"].metadata.get("command", "unknown"),
        "command": planned.command,
    }


def _make_report(
    data: PreparedData,
    scores: Mapping[str, Scores],
    names: Sequence[str],
    protocol: Mapping[str, Any],
) -> Report:
    """Computes every scenario that was scored."""
    known = {(example.split, example.example_id): example for example in data.candidates}
    validation = ScoredSplit(scores["validation"], "validation", known)
    test = ScoredSplit(scores["test"], "test", known)
    baselines = _Baselines(data)
    templates: dict[str, list[str]] = {}
    for template_id in sorted(validation.rows, key=scenarios.template_order):
        templates.setdefault(scenarios.scenario_of(template_id), []).append(template_id)
    results = []
    for scenario, members in templates.items():
        choices = [
            evaluation.evaluate_choice(template_id, name, validation.rank(template_id, name))
            for template_id in members
            for name in names
        ]
        results.append(_scenario(scenario, choices, test, baselines, protocol))
    return Report(dataset=data.dataset, scenarios=results)


def _scenario(
    scenario: str,
    choices: Sequence[Choice],
    test: ScoredSplit,
    baselines: "_Baselines",
    protocol: Mapping[str, Any],
) -> ScenarioResult:
    """Chooses on validation, then touches the test split once."""
    chosen = evaluation.choose(choices)
    ours = test.rank(chosen.template_id, chosen.normaliser)
    examples = test.examples(chosen.template_id)
    ranks_by_system = baselines.ranks(examples) | {evaluation.MODEL: ours}
    counts = sorted({len(example.candidate_ids) for example in examples})
    ballots = test.ballots(chosen.template_id)
    details = {
        "num_examples": len(examples),
        "num_candidates": counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "template": chosen.template_id,
        "normaliser": chosen.normaliser,
        "ballots": ballots.description,
        "choice": "best validation NDCG@5, ties by HR@1, then lower id",
    }
    rows = evaluation.compare_systems(ranks_by_system, seed=SEED)
    bias = None
    if ballots.show_all and len(counts) == 1:
        bias = position_bias.position_bias(
            test.target_index(chosen.template_id),
            ours,
            num_candidates=counts[0],
            seed=seeds.stable_seed(SEED, "position bias", scenario),
        )
    return ScenarioResult(
        scenario=scenario,
        chosen=chosen,
        choices=choices,
        rows=rows,
        protocol={**protocol, **details},
        unsure=[name for name in ranking.METRIC_NAMES if not ballots.is_sure(name)],
        position_bias=bias,
    )


class _Baselines:
    """The systems to compare with, fitted on the training part of the histories."""

    def __init__(self, data: PreparedData):
        self._histories = {history.user_id: history.item_ids for history in data.histories}
        training = popularity.training_histories(self._histories.values())
        num_items = len(data.items)
        self._counts = popularity.count_items(training, num_items=num_items)
        self._vectors = cooccurrence.cooccurrence_embeddings(
            training, num_items, cooccurrence.ITEM_DIM, SEED
        )

    def ranks(self, examples: Sequence[CandidateList]) -> dict[str, NDArray[np.int64]]:
        """Returns each system's ranks; co-occurrence only where there is a history."""
        candidates = evaluation.stack_rows(
            [np.asarray(example.candidate_ids, dtype=np.int32) for example in examples], -1
        )
        names = [example.example_id for example in examples]
        scores = {
            "random": chance.score_randomly(names, candidates, seed=SEED),
            "popularity": popularity.score_by_popularity(candidates, self._counts),
        }
        if all(example.position >= 0 for example in examples):
            scores["cooccurrence"] = cooccurrence.score_by_cooccurrence(
                candidates,
                [self._histories[e.user_id][: e.position] for e in examples],
                vectors=self._vectors,
                counts=self._counts,
            )
        target = np.array([e.candidate_ids.index(e.target_id) for e in examples], dtype=np.int64)
        return {system: ranking.ranks(values, target) for system, values in scores.items()}


def _write(made: Report, output: Path, planned: Manifest, metrics_file: Path | str | None) -> None:
    """Writes the folder whole or not at all."""
    with files.atomic_directory(output) as folder:
        text = json.dumps(writers.as_json(made), indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.txt").write_text(writers.as_text(made), encoding="utf-8")
        if metrics_file is not None:
            curves.plot_training_curve(curves.read_metrics(metrics_file), folder / CURVE)
        curve = CURVE if metrics_file is not None else None
        (folder / "report.md").write_text(writers.as_markdown(made, curve=curve), encoding="utf-8")
        planned.write(folder)


def _log_table(text: str) -> None:
    """Shows the table line by line, as every message of a stage is shown."""
    for line in text.splitlines():
        _logger.info("%s", line)
