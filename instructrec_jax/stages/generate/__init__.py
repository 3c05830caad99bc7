"""`instructrec generate`: a checkpoint and T2 tasks -> the likeliest titles of the whole catalogue.

Source: paper section 2.1, T2: the item is produced from the whole catalogue. HR@K and NDCG@K are
those of the target's rank among all titles, not among candidates.
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints.source import Source, load_model, open_for_run
from instructrec_jax.generation.beam_search import (
    Generated,
    generate_from_catalogue,
    write_generated,
)
from instructrec_jax.generation.catalogue_trie import CatalogueTrie
from instructrec_jax.metrics import ranking
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel import processes
from instructrec_jax.parallel.mesh import LogicalMesh, MeshSettings, make_mesh
from instructrec_jax.parallel.placement import check_rows
from instructrec_jax.pipeline import loader, registry
from instructrec_jax.progress import Progress
from instructrec_jax.settings import Count, Names, OneOf, Range, Rows, check_fields, refuse
from instructrec_jax.stages.dry_run import DryRun, open_dry
from instructrec_jax.stages.generate import catalogue
from instructrec_jax.stages.generate.catalogue import CatalogueRequest
from instructrec_jax.stages.run_data import RunData, dataset_of
from instructrec_jax.stages.together import check_run, finished_json, output_directory
from instructrec_jax.training.metrics_log import as_table

logger = logging.getLogger(__name__)
FILE_NAME = "metrics.json"
CUTOFFS = (1, 3, 5, 10, 20, 50)
_BATCHES_PER_CHUNK = 32
Metrics = dict[str, float]
Search = Callable[[Sequence[CatalogueRequest]], list[Generated]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """One run.

    Attributes:
      checkpoint_path: any checkpoint that `score` takes (CHECKPOINT_PATH).
      prepared_dir: the prepared data that the records were built from, for the catalogue.
      output_dir: where files and metrics go (INFER_OUTPUT_DIR).
      tasks: T2 tasks, or mixtures, which stand for all they hold.
      split: "validation" or "test".
      batch_size: examples searched for at once (BATCH_SIZE).
      num_titles: titles to find for each example.
      num_beams: prefixes kept per step, the beam width (BEAM_SIZE).
      num_examples: of each task; None for the whole split.
      exclude_history: never generate an item of the user's history.
    """

    checkpoint_path: str
    prepared_dir: str
    output_dir: str
    tasks: Names
    split: Annotated[str, OneOf(("validation", "test"))] = "test"
    batch_size: Rows = 8
    num_titles: Count = 10
    num_beams: Annotated[int, Range(1, 10_000)] = 40
    num_examples: Count | None = None
    exclude_history: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_beams < self.num_titles:
            raise refuse(self, "num_beams", f"as many as num_titles, {self.num_titles}, or more")


def generate(
    *,
    model: T5Config,
    data: RunData,
    run: GenerateSettings,
    mesh: MeshSettings,
    config_text: str = "",
    dry_run: bool = False,
) -> Metrics | DryRun:
    """Finds the likeliest titles of every example and writes them with their metrics.

    The folder is written whole or not at all.

    Args:
      model: sizes of the checkpoint's model (MODEL).
      data: records, tasks and vocabulary.
      run: this run.
      mesh: how many devices each mesh axis has.
      config_text: the resolved gin config, written to the output folder.
      dry_run: say what would be done, and stop before anything is written.

    Returns:
      HR@K and NDCG@K over the whole catalogue, of each task; what was found after a dry run.

    Raises:
      UserError: for a mistake in settings, data or checkpoint.
    """
    work = f"{', '.join(run.tasks)}, split {run.split}"
    words = {"work": work, "output_dir": run.output_dir}
    check_rows(run.batch_size, make_mesh(mesh), name="BATCH_SIZE")
    if dry_run:
        dry = open_dry(run.checkpoint_path, model, mesh, **words)
        return _dry_run(dry, model, data, run)
    with processes.sharing_errors():
        checkpoint, device_mesh, shapes = open_for_run(run.checkpoint_path, model, mesh, **words)
        vocabulary = data.open(*run.tasks, vocab_size=model.vocab_size)
        run = dataclasses.replace(run, tasks=registry.matching_tasks(run.tasks, split=run.split))
        planned = _plan(model, data, run, checkpoint)
        data.check_tokenizer(run.tasks[0], checkpoint.tokenizer)
    output = Path(run.output_dir)
    check_run(planned, config_text, output)
    if (earlier := finished_json(output / FILE_NAME, planned)) is not None:
        return earlier
    prepared = catalogue.open_catalogue(run.prepared_dir, run.tasks[0])
    lengths = data.feature_lengths
    trie = catalogue.make_trie(prepared, vocabulary, lengths)
    logger.info("%d items of %d titles", len(prepared.items), trie.num_titles)
    search = _searcher(load_model(checkpoint, shapes), trie, run, device_mesh)
    found: Metrics = {"step": checkpoint.step}
    with output_directory(output) as folder:
        for task in run.tasks:
            read = functools.partial(catalogue.requests, task, prepared, vocabulary, lengths)
            stream = read(split=run.split, exclude_history=run.exclude_history)
            found |= _generate_task(task, stream, search, run, planned, folder=folder)
        files.write_text(folder / FILE_NAME, json.dumps(found, indent=2) + "\n")
        if config_text:
            files.write_text(folder / "config.gin", config_text)
        planned.write_finished(folder)
    measured = {name: value for name, value in found.items() if "@" in name}
    logger.info("%s", as_table(f"step {checkpoint.step}", measured))
    return found


def _dry_run(
    dry: DryRun,
    model: T5Config,
    data: RunData,
    run: GenerateSettings,
) -> DryRun:
    """Adds what is said of the data to a dry run."""
    with dry.row("data") as say:
        data.open(*run.tasks, vocab_size=model.vocab_size)
        tasks = registry.matching_tasks(run.tasks, split=run.split)
        data.check_tokenizer(tasks[0], dry.tokenizer)
        numbers = [loader.check_records(task, run.split) for task in tasks]
        items = len(catalogue.open_catalogue(run.prepared_dir, tasks[0]).items)
        say(f"found: {sum(numbers):,} {run.split} examples in {data.data_dir}, {items:,} titles")
        taken = sum(min(number, run.num_examples or number) for number in numbers)
        dry.rows["work"] = f"{taken:,} examples: {dry.rows['work']}"
    if dry.checkpoint is not None and dry.would_start:
        run = dataclasses.replace(run, tasks=tasks)
        dry.look_at_output(run.output_dir, _plan(model, data, run, dry.checkpoint))
    return dry


def _plan(
    model: T5Config, data: RunData, run: GenerateSettings, checkpoint: Source
) -> manifest.Manifest:
    """Returns the manifest of the run."""
    inputs = {"checkpoint": checkpoint.fingerprint(), **data.fingerprint(dataset_of(*run.tasks))}
    settings = {
        "model": dataclasses.asdict(model),
        "feature_lengths": dict(data.feature_lengths),
        **dataclasses.asdict(run),
    }
    for where in ("checkpoint_path", "prepared_dir", "output_dir", "batch_size"):
        del settings[where]  # they do not decide what is found
    return manifest.Manifest(stage="generate", inputs=inputs, settings=settings)


def _searcher(model: T5, trie: CatalogueTrie, run: GenerateSettings, mesh: LogicalMesh) -> Search:
    """Returns what finds the titles of some requests."""

    def search(requests: Sequence[CatalogueRequest]) -> list[Generated]:
        return generate_from_catalogue(
            model,
            [request.instruction for request in requests],
            trie,
            num_titles=run.num_titles,
            num_beams=run.num_beams,
            excluded=[request.excluded.tolist() for request in requests],
            batch_size=run.batch_size,
            mesh=mesh,
        )

    return search


def _generate_task(
    task: str,
    stream: Iterator[CatalogueRequest],
    search: Search,
    run: GenerateSettings,
    planned: manifest.Manifest,
    *,
    folder: Path,
) -> Metrics:
    """Writes the file of a task; returns its metrics."""
    template, ranks = task.split(".", 1)[1], list[int]()
    number = registry.instruction_task(task).source.num_input_examples(run.split)
    number = number if run.num_examples is None else min(number, run.num_examples)

    def chunks() -> Iterator[list[dict[str, Any]]]:
        size = _BATCHES_PER_CHUNK * run.batch_size
        with Progress(f"generate {task}", total=number, unit="examples") as progress:
            for requests in catalogue.in_chunks(stream, size, number):
                rows = list(map(_row, requests, search(requests)))
                ranks.extend(row["rank"] for row in rows)
                progress.advance(len(rows))
                yield rows

    metadata = {**planned.inputs, "template_id": template, **planned.settings}
    write_generated(folder / f"{template}.parquet", chunks(), metadata)
    metrics: Metrics = {}
    for cutoff in (k for k in CUTOFFS if k <= run.num_titles):
        metrics[f"{run.split}/{task}/hr@{cutoff}"] = ranking.hit_rate(ranks, cutoff)
        metrics[f"{run.split}/{task}/ndcg@{cutoff}"] = ranking.ndcg(ranks, cutoff)
    return {**metrics, f"{run.split}/{task}/num_examples": len(ranks)}


def _row(request: CatalogueRequest, found: Generated) -> dict[str, Any]:
    return {
        "example_id": request.example_id,
        "target_id": request.target_id,
        "item_ids": [np.asarray(ids).tolist() for ids in found.item_ids],
        "log_likelihood": found.log_likelihood,
        "rank": found.rank_of(request.target_id),
    }
