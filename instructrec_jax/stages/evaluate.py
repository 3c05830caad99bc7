"""`instructrec eval`: a checkpoint -> ranking metrics; training measures itself in the same way.

What `score` and `report` do with intervals and baselines, in one number a metric: for a look at a
checkpoint on validation.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.ranking_config import DEFAULT_NORMALISER, chosen_normaliser
from instructrec_jax.checkpoints.source import Source, load_model, open_for_run
from instructrec_jax.instructions.token_budget import TokenRenderer, arrange, title_limit
from instructrec_jax.metrics import ranking
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.pipeline import loader, registry
from instructrec_jax.report.tables import markdown_code
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, Names, OneOf, Rows, check_fields
from instructrec_jax.stages.dry_run import DryRun, open_dry
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.together import check_run, finished_json
from instructrec_jax.tokenizer import SentencePieceModel
from instructrec_jax.training.metrics_log import as_table

logger = logging.getLogger(__name__)
FILE_NAME = "metrics.json"
Metrics = dict[str, float]
_Labelled = tuple[TokenRequest, int]  # a request, and the index of its target, -1 if unknown
_NUM_SHOWN = 3  # ranked examples of a task, as text
_NORMALISERS = ("sum", "mean")  # those that need nothing but tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """What is measured, in training and by `eval`.

    Attributes:
      tasks: grouped ranking tasks, "<dataset>.<template>.grouped".
      split: where; the test split is for `score` and `report` alone.
      batch_size: examples in which `num_batches` counts.
      num_batches: batches of each task (EVAL_STEPS); None for the whole split.
      num_examples: examples of each task (EVALUATOR_NUM_EXAMPLES); None for all; where both are
        given, the smaller number counts. Fewer than all are drawn of the whole split, the same ones
        at every evaluation.
      use_memory_cache: make the requests once and keep them, instead of making them again for each
        evaluation (EVALUATOR_USE_MEMORY_CACHE).
      normaliser: "sum" or "mean" of token log-likelihoods (NORMALISER); None: as the checkpoint was
        trained, and in training the paper's "sum".
    """

    tasks: Names
    split: Annotated[str, OneOf(("train", "validation", "test"))] = "validation"
    batch_size: Rows = 64
    num_batches: Count | None = None
    num_examples: Count | None = None
    use_memory_cache: bool = True
    normaliser: Annotated[str, OneOf(_NORMALISERS)] | None = None

    def __post_init__(self) -> None:
        check_fields(self)  # now, not at the first evaluation

    @property
    def num_drawn(self) -> int | None:
        """Examples to draw of each task; None for all."""
        in_batches = None if self.num_batches is None else self.num_batches * self.batch_size
        limits = [limit for limit in (in_batches, self.num_examples) if limit is not None]
        return min(limits, default=None)

    @property
    def headline(self) -> str:
        """Name of the metric by which the best checkpoint is chosen."""
        return f"{self.split}/ndcg@5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """One evaluation.

    Attributes:
      checkpoint_path: any checkpoint that `score` takes (CHECKPOINT_PATH).
      output_dir: where metrics.json goes (EVAL_OUTPUT_DIR).
    """

    checkpoint_path: str
    output_dir: str

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate(
    *,
    model: T5Config,
    data: RunData,
    run: EvaluateSettings,
    validation: ValidationSettings,
    mesh: MeshSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> Metrics | DryRun:
    """Measures a checkpoint and writes metrics.json.

    Args:
      model: sizes of the checkpoint's model (MODEL).
      data: records, tasks and vocabulary.
      run: this run.
      validation: what is measured; a mixture stands for its tasks of the evaluation pool.
      mesh: how devices are shared.
      config_text: the resolved gin config, written to the output folder.
      dry_run: say what would be done, and stop before anything is written.

    Returns:
      HR@K and NDCG@K, over the examples of all tasks and of each; what was found after a dry run.

    Raises:
      UserError: for a mistake in settings, data or checkpoint.
    """
    work = f"{', '.join(validation.tasks)}, split {validation.split}"
    words = {"work": work, "output_dir": run.output_dir}
    if dry_run:
        dry = open_dry(run.checkpoint_path, model, mesh, **words)
        return _dry_run(dry, model, data, run, validation=validation)
    with processes.sharing_errors():
        checkpoint, device_mesh, shapes = open_for_run(run.checkpoint_path, model, mesh, **words)
        vocabulary = data.open(*validation.tasks, vocab_size=model.vocab_size)
        chosen = registry.evaluated_tasks(validation.tasks, split=validation.split)
        normaliser, why = chosen_normaliser(validation.normaliser, checkpoint.ranking)
        logger.info("candidates are ranked by %s, %s", normaliser, why)
        validation = dataclasses.replace(validation, tasks=chosen, normaliser=normaliser)
        data.check_tokenizer(chosen[0], checkpoint.tokenizer)
        planned = _plan(model, data, validation, checkpoint)
    output = Path(run.output_dir)
    check_run(planned, config_text, output)
    found = finished_json(output / FILE_NAME, planned)
    if found is None:
        restored = load_model(checkpoint, shapes)
        found = {"step": checkpoint.step}
        measure = make_evaluate(validation, data, Scorer(device_mesh), vocabulary=vocabulary)
        found |= measure(restored)
        processes.on_main(lambda: _write(found, output, planned, config_text))
    measured = {name: value for name, value in found.items() if name != "step"}
    logger.info("%s", as_table(f"step {found['step']:.0f}", measured))
    return found


def _dry_run(
    dry: DryRun,
    model: T5Config,
    data: RunData,
    run: EvaluateSettings,
    *,
    validation: ValidationSettings,
) -> DryRun:
    """Adds what is said of the data to a dry run."""
    split = validation.split
    with dry.row("data") as say:
        data.open(*validation.tasks, vocab_size=model.vocab_size)
        chosen = registry.evaluated_tasks(validation.tasks, split=split)
        data.check_tokenizer(chosen[0], dry.tokenizer)
        numbers = [loader.check_records(task, split) for task in chosen]
        say(f"found: {sum(numbers):,} {split} examples in {data.data_dir}")
        drawn = sum(min(number, validation.num_drawn or number) for number in numbers)
        dry.rows["work"] = f"{drawn:,} examples: {dry.rows['work']}"
    if dry.checkpoint is not None and dry.would_start:
        normaliser, _ = chosen_normaliser(validation.normaliser, dry.checkpoint.ranking)
        validation = dataclasses.replace(validation, tasks=chosen, normaliser=normaliser)
        dry.look_at_output(run.output_dir, _plan(model, data, validation, dry.checkpoint))
    return dry


def _plan(
    model: T5Config, data: RunData, validation: ValidationSettings, checkpoint: Source
) -> manifest.Manifest:
    """Returns the manifest of the evaluation that was asked for."""
    inputs = {"checkpoint": checkpoint.fingerprint(), **data.fingerprint(validation.tasks[0])}
    settings = {
        "model": dataclasses.asdict(model),
        "validation": dataclasses.asdict(validation),
        "feature_lengths": dict(data.feature_lengths),
    }
    return manifest.Manifest(stage="eval", inputs=inputs, settings=settings)


def _write(found: Metrics, output: Path, planned: manifest.Manifest, config_text: str) -> None:
    """Writes the folder whole or not at all."""
    with files.atomic_directory(output) as folder:
        text = json.dumps(found, indent=2)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
        if config_text:
            (folder / "config.gin").write_text(config_text, encoding="utf-8")
        planned.write_finished(folder)


def make_evaluate(
    settings: ValidationSettings,
    data: RunData,
    scorer: Scorer,
    *,
    vocabulary: SentencePieceModel,
    texts: dict[str, str] | None = None,
) -> Callable[[T5], Metrics]:
    """Returns a function that measures a model.

    Args:
      settings: what is measured.
      data: records and tasks, opened.
      scorer: scores the requests.
      vocabulary: of the opened data.
      texts: takes at each call three ranked examples of each task, as Markdown.

    Returns:
      A function that gives "<split>/<task>/<metric>" for each task, and "<split>/<metric>" for the
      mean over the examples of all: a task of few examples, whose figures are luck for the most
      part, chooses no checkpoint.

    Raises:
      UserError: if a task is none that ranks candidates, or an instruction does not fit.
    """

    def read(task: str) -> list[_Labelled]:
        return list(_requests(task, settings, data, vocabulary))

    normaliser = settings.normaliser or DEFAULT_NORMALISER
    kept = {task: read(task) for task in settings.tasks} if settings.use_memory_cache else {}

    def evaluate(model: T5) -> Metrics:
        ranks = {}
        for task in settings.tasks:
            requests = kept[task] if kept else read(task)
            found = _values(model, requests, scorer, normaliser)
            ranks[task] = _ranks(found, requests)
            if texts is not None:
                texts[f"{settings.split}/{task}"] = _as_text(found, requests, vocabulary)
        of_all = ranking.evaluate(np.concatenate(list(ranks.values())))
        values = {f"{settings.split}/{name}": value for name, value in of_all.items()}
        for task, own in ranks.items():
            of_task = ranking.evaluate(own)
            values |= {f"{settings.split}/{task}/{name}": value for name, value in of_task.items()}
        return values

    return evaluate


def _requests(
    task: str, settings: ValidationSettings, data: RunData, vocabulary: SentencePieceModel
) -> Iterator[_Labelled]:
    """Yields the requests of a ranking task, or the drawn ones, in file order."""
    own = registry.ranking_task(task)
    renderer = TokenRenderer(
        variant=own.variant,
        vocabulary=vocabulary,
        feature_lengths=data.feature_lengths,
        task=own.name,
    )
    number = own.source.num_input_examples(settings.split)
    is_drawn, num_cut = np.ones(number, bool), 0
    if settings.num_drawn is not None and settings.num_drawn < number:
        rng = np.random.default_rng(stable_seed("examples of an evaluation"))
        is_drawn[:] = False
        is_drawn[rng.choice(number, settings.num_drawn, replace=False)] = True
    for record in itertools.compress(own.records(settings.split), is_drawn):
        record, num_titles_cut = arrange(record, data.feature_lengths, vocabulary)
        num_cut += num_titles_cut > 0
        request = TokenRequest(
            request_id=record.example_id,
            instruction=renderer.instruction(record).tokens,
            candidates=renderer.candidates(record),
        )
        is_known = record.target_id in record.candidate_ids
        yield request, record.candidate_ids.index(record.target_id) if is_known else -1
    if num_cut:
        limit = title_limit(data.feature_lengths)
        logger.info("%s: %d requests show titles that are cut at %d tokens", task, num_cut, limit)


def _values(
    model: T5, labelled: Sequence[_Labelled], scorer: Scorer, normaliser: str
) -> np.ndarray:
    """Returns float32 [requests, longest] what candidates are ranked by, -inf at padding."""
    requests = [request for request, _ in labelled]
    width = max((len(request.candidates) for request in requests), default=0)
    log_likelihood = np.full((len(requests), width), -np.inf, np.float32)
    num_tokens = np.zeros((len(requests), width), np.int32)
    for row, (request, found) in enumerate(zip(requests, scorer(model, requests), strict=True)):
        log_likelihood[row, : len(found)] = found
        num_tokens[row, : len(found)] = [len(tokens) for tokens in request.candidates]
    return ranking.normalise(log_likelihood, num_tokens, normaliser)


def _ranks(values: np.ndarray, labelled: Sequence[_Labelled]) -> np.ndarray:
    """Returns the target's rank of every request whose target is known."""
    targets = np.array([target for _, target in labelled], np.int32)
    is_known = targets >= 0
    return ranking.ranks(values[is_known], targets[is_known])


def _as_text(
    values: np.ndarray, labelled: Sequence[_Labelled], vocabulary: SentencePieceModel
) -> str:
    """Returns the first requests as they are read, with their candidates best first."""
    lines = []
    for own, (request, target) in zip(values, labelled[:_NUM_SHOWN], strict=False):
        lines += [f"**{request.request_id}**", "", _code(vocabulary, request.instruction), ""]
        order = np.argsort(-own[: len(request.candidates)], kind="stable")
        for place, index in enumerate(order.tolist(), start=1):
            title = _code(vocabulary, request.candidates[index])
            mark = " (target)" if index == target else ""
            lines.append(f"{place}. {own[index]:.3f} {title}{mark}")
        lines.append("")
    return "\n".join(lines)


def _code(vocabulary: SentencePieceModel, tokens: np.ndarray) -> str:
    return markdown_code(vocabulary.decode(tokens.tolist()))
