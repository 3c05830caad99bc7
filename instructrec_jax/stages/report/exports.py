"""What a report writes for other programs: TREC runs and qrels, samples as lm-eval has them, ranks.

The exported rankings are the report's own: of candidates that a system finds equal the target comes
last, so HR@K and NDCG@K that any tool computes from them are those of report.json.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.instructions.task_modules import SHIPPED
from instructrec_jax.instructions.token_budget import TokenRenderer, arrange
from instructrec_jax.manifest import Manifest
from instructrec_jax.metrics import ranking
from instructrec_jax.scores import trec
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, OneOf, check_fields
from instructrec_jax.stages.report.systems import SPLITS, RankedExample, Run
from instructrec_jax.stages.run_data import RunData

TREC, SAMPLES, RANKS = "trec", "samples", "ranks"
RANKS_FILE = "ranks.jsonl"
_SEED = 0  # of the choice of samples
_README = "README.md"
_ABOUT_TREC = """# TREC runs and qrels

`SYSTEM/SPLIT/SCENARIO.run` holds `qid Q0 docid rank score tag`, `qrels/SPLIT/SCENARIO.qrels` holds
`qid 0 docid rel`. qid is the example_id and docid the item_id of candidates.parquet; blanks and "%"
are written as in a URL.

The scores are c, c - 1, ..., 1 for the c candidates in the report's order, and no log-likelihoods:
ties count against the target here, and trec_eval breaks them by docid. HR@K and NDCG@K of these
files are those of report.json, of the test split on the examples that all systems scored.

`instructrec report --scores NAME=SYSTEM/validation:SYSTEM/test` reads them again.
"""
_ABOUT_SAMPLES = """# Samples

`SYSTEM/samples_DATASET.TEMPLATE.jsonl` holds one JSON object per test example, with the names that
lm-eval gives to what `--log_samples` writes:

* `doc_id`: number of the example; `doc`: its id, user, candidates with their titles, and target;
* `target`: the target's title;
* `arguments`: for each candidate the prompt (`arg_0`, null where it is not known) and its title;
* `resps`: for each candidate its log-likelihood, or the score of a system without any;
* `filter`, `filtered_resps`: the normaliser, and for each candidate what it is ranked by;
* `metrics`: names of the metrics, each of which is a field of its own.

lm-eval has no `rank` (of the target; ties count against it) and no `order` (indices of the
candidates, best first; with a CANDIDATE_VIEW of several rounds those of later rounds come before
the others), and says of each response also whether it is the greedy one. Numbers that are not
finite are null.
"""
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is written for other programs.

    Attributes:
      export: "trec" (run and qrels files), "samples" (one JSON line per example with texts and
        log-likelihoods, named as lm-eval names them), "ranks" (one JSON line per test example with
        the rank that each system gives the target), or several of them.
      max_samples: most samples of a scenario, drawn by a seed, the same for every system; by
        default all.
      data_dir: output folder of `build` that was scored, from which samples show the prompts.
      task_module: module that registers the tasks that were scored.
    """

    export: Sequence[Annotated[str, OneOf((TREC, SAMPLES, RANKS))]] = ()
    max_samples: Count | None = None
    data_dir: str | None = None
    task_module: str = SHIPPED

    def __post_init__(self) -> None:
        check_fields(self)
        if SAMPLES not in self.export and (self.max_samples or self.data_dir):
            raise UserError("--max_samples and --data_dir say what --export samples writes; add it")

    def added_to(self, planned: Manifest, dataset: str) -> Manifest:
        """Returns the manifest of a report with these exports; without any it stays as it is."""
        if not self.export:
            return planned
        settings: dict[str, Any] = {"export": sorted(set(self.export))}
        settings["max_samples"] = self.max_samples
        inputs = {}
        if self.data_dir is not None:
            path = Path(self.data_dir) / dataset / manifest.FILE_NAME
            inputs["records"] = files.sha256(path)
            settings["task_module"] = self.task_module
        return dataclasses.replace(
            planned,
            settings={**planned.settings, **settings},
            inputs={**planned.inputs, **inputs},
        )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What all systems ranked in one scenario.

    Attributes:
      scenario: such as "sequential".
      validation: a run for each system with scores of that split, of all examples that it scored.
      test: a run for each baseline, then for each system, all of the same examples.
      num_baselines: of these runs.
    """

    scenario: str
    validation: Sequence[Run]
    test: Sequence[Run]
    num_baselines: int


def write_exports(
    folder: Path, ranked: Sequence[Ranked], data: PreparedData, settings: ExportSettings
) -> None:
    """Writes what was asked for into the folder of a report."""
    if RANKS in settings.export:
        _write_ranks(folder / RANKS_FILE, ranked)
    for found in ranked:
        if TREC in settings.export:
            _write_trec(folder / TREC, found)
        if SAMPLES in settings.export:
            _write_samples(folder / SAMPLES, found, data, settings)
    for name, text in ((TREC, _ABOUT_TREC), (SAMPLES, _ABOUT_SAMPLES)):
        if name in settings.export:
            files.write_text(folder / name / _README, text)


def _write_ranks(path: Path, ranked: Sequence[Ranked]) -> None:
    """Writes the ranks of the target, ties counted against it, of all test examples."""
    with files.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for found in ranked:
            ranks = {run.name: run.ranks_and_ties()[0].tolist() for run in found.test}
            for number, example in enumerate(found.test[0].examples):
                line = {
                    "scenario": found.scenario,
                    "example_id": example.example_id,
                    "user_id": example.user_id,
                    "position": example.position,
                    "target_id": example.target_id,
                    "ranks": {name: own[number] for name, own in ranks.items()},
                }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_trec(folder: Path, ranked: Ranked) -> None:
    """Writes the runs and qrels of a scenario."""
    for split, runs in zip(SPLITS, (ranked.validation, ranked.test), strict=True):
        if not runs:
            continue
        targets: dict[str, int] = {}
        for run in runs:
            targets |= {example.example_id: example.target_id for example in run.examples}
            path = folder / trec.file_name(run.name) / split
            lines = (
                (found.example.example_id, found.candidate_ids[found.order].tolist())
                for found in run.ranked()
            )
            trec.write_run(path / trec.file_name(ranked.scenario, trec.RUN), lines, tag=run.name)
        path = folder / "qrels" / split / trec.file_name(ranked.scenario, trec.QRELS)
        trec.write_qrels(path, targets.items())


def _write_samples(
    folder: Path, ranked: Ranked, data: PreparedData, settings: ExportSettings
) -> None:
    """Writes the samples of the systems, but not of the baselines, in a scenario."""
    for run in ranked.test[ranked.num_baselines :]:
        numbers = _drawn(run, settings.max_samples)
        shown = dataclasses.replace(run, rows=run.rows[numbers])
        example_ids = {example.example_id for example in shown.examples}
        prompts = _prompts(run, example_ids, data.dataset, settings)
        name = trec.file_name(f"samples_{data.dataset}.{run.template}", ".jsonl")
        path = folder / trec.file_name(run.name) / name
        with files.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
            for number, found in zip(numbers, shown.ranked(), strict=True):
                sample = _sample(number, found, data, run.normaliser, prompts)
                out.write(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n")


def _drawn(run: Run, limit: int | None) -> list[int]:
    """Returns the numbers of the examples to show, in order; other systems show the same."""
    keys = [stable_seed(_SEED, "samples", example.example_id) for example in run.examples]
    return sorted(np.argsort(keys, kind="stable")[:limit].tolist())


def _sample(
    number: int,
    found: RankedExample,
    data: PreparedData,
    normaliser: str,
    prompts: Mapping[str, str],
) -> dict[str, Any]:
    """Returns one example as lm-eval would log it."""
    example = found.example
    titles = [plain_title(data.items[item].title) for item in found.candidate_ids]
    prompt = prompts.get(example.example_id)
    metrics = ranking.evaluate([found.rank])
    return {
        "doc_id": number,
        "doc": {
            "example_id": example.example_id,
            "user_id": example.user_id,
            "candidate_ids": found.candidate_ids.tolist(),
            "candidates": titles,
            "target_id": example.target_id,
            "target_index": found.target_index,
        },
        "target": titles[found.target_index],
        "arguments": {
            f"gen_args_{index}": {"arg_0": prompt, "arg_1": title}
            for index, title in enumerate(titles)
        },
        "resps": [[[value]] for value in _numbers(found.log_likelihood)],
        "filter": normaliser,
        "filtered_resps": [[value] for value in _numbers(found.values)],
        "rank": found.rank,
        "order": found.order.tolist(),
        "metrics": list(metrics),
        **metrics,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Returns float32 as the shortest decimals that mean the same; what is not finite as None."""
    return [float(str(value)) if np.isfinite(value) else None for value in values]


def _prompts(
    run: Run, example_ids: Collection[str], dataset: str, settings: ExportSettings
) -> dict[str, str]:
    """Returns the prompts of examples as the model read them; none where they are not known."""
    missing = _without_prompts(run, dataset, settings)
    if missing:
        _logger.info("samples of %s by %s have no prompts: %s", run.name, run.template, missing)
        return {}
    return dict(_rendered(run, example_ids, dataset, settings))


def _without_prompts(run: Run, dataset: str, settings: ExportSettings) -> str:
    """Returns why the prompts of a run cannot be shown, "" where they can."""
    told = run.scores.metadata
    if settings.data_dir is None:
        return "no --data_dir names the records that were scored"
    if not {"records", "vocabulary", "feature_lengths"} <= told.keys():
        return "the scores do not say of which records they are (another program made them)"
    if not run.scores.shows_all():
        return f"its candidates are spread over several ({run.scores.view['strategy']})"
    found = _data(run, settings).fingerprint(dataset)
    if any(told[name] != sha for name, sha in found.items()):
        return f"it was scored with other records or another vocabulary than {settings.data_dir}"
    return ""


def _rendered(
    run: Run, example_ids: Collection[str], dataset: str, settings: ExportSettings
) -> Iterator[tuple[str, str]]:
    """Yields the names and prompts of test examples, decoded from the tokens of the prompt."""
    from instructrec_jax.pipeline import registry  # TensorFlow, which nothing else here needs

    name, data = f"{dataset}.{run.template}", _data(run, settings)
    words = data.open(name)
    task = registry.instruction_task(name)
    renderer = TokenRenderer(
        variant=task.variant, vocabulary=words, feature_lengths=data.feature_lengths, task=name
    )
    for record in task.records(SPLITS[-1]):
        if record.example_id in example_ids:
            shown = arrange(record, data.feature_lengths, words).record
            tokens = renderer.instruction(shown).tokens
            yield record.example_id, words.decode(tokens.tolist())


def _data(run: Run, settings: ExportSettings) -> RunData:
    """Returns the records that a run scored."""
    lengths = run.scores.metadata["feature_lengths"]
    return RunData(data_dir=settings.data_dir, feature_lengths=lengths, module=settings.task_module)
