"""The stage `build`: artefact A to instruction records (C) and a vocabulary, ready for SeqIO."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.data import candidates, titles
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions import builder
from instructrec_jax.instructions.language import Literal, Template, plain_text, plain_title
from instructrec_jax.manifest import Manifest, find_same_work
from instructrec_jax.pipeline import record_store, registry, vocabulary
from instructrec_jax.records import InstructionRecord
from instructrec_jax.stages.run_data import VOCABULARY_FILE

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What decides the records beside the prepared data.

    Attributes:
      vocabulary_path: a SentencePiece model to copy, such as T5's; None to train one.
      vocab_size: pieces of the vocabulary that is trained.
      vocab_size_is_limit: train a smaller one where the texts cannot give so many pieces.
      num_train_negatives: negatives beside the target of a training record.
      max_train_positions: most recent training targets of each user; None for all.
      task_module: the module whose templates the vocabulary should know.
      seed: of the negatives and of the order of training records.
    """

    vocabulary_path: str | None = None
    vocab_size: int = 2000
    vocab_size_is_limit: bool = False
    num_train_negatives: int = 9
    max_train_positions: int | None = None
    task_module: str = "tasks.mixtures"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_train_negatives", "max_train_positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}; it must be at least 1")


def build(
    *, dataset: str, input_dir: Path | str, output_dir: Path | str, settings: BuildSettings
) -> Manifest:
    """Writes `output_dir/<dataset>`: the TFDS configs, the vocabulary and the manifest.

    Args:
      dataset: its name; tasks bear it.
      input_dir: output folder of `prepare`.
      output_dir: the TFDS data_dir, which may hold other datasets too.
      settings: what else decides the records.

    Returns:
      The manifest; that of the earlier run where the same work is done already.

    Raises:
      UserError: if an input or a setting is unusable, or the folder holds another run.
    """
    folder = Path(output_dir) / dataset
    planned = _plan(dataset, Path(input_dir), settings)
    if (earlier := find_same_work(folder, planned)) is not None:
        logger.info("build: %s is up to date", folder)
        return earlier
    data = read_prepared(input_dir)
    if data.dataset != dataset:
        raise UserError(f"{input_dir} holds dataset {data.dataset!r}, not {dataset!r}")
    with files.atomic_directory(folder) as temporary:
        pieces = _write_vocabulary(temporary / VOCABULARY_FILE, data, settings)
        counts = _write_configs(temporary, data, settings)
        manifest = dataclasses.replace(planned, counts={**counts, "vocabulary": pieces})
        manifest.write(temporary)
    for name, count in manifest.counts.items():
        logger.info("build: %s=%d", name, count)
    logger.info("build: wrote %s", folder)
    return manifest


def _plan(dataset: str, input_dir: Path, settings: BuildSettings) -> Manifest:
    """Returns the manifest of the work, without what it will count."""
    plain = dataclasses.asdict(settings)
    path = plain.pop("vocabulary_path")
    inputs = {"prepared": files.sha256(input_dir / "manifest.json")} if input_dir.exists() else {}
    if path is not None:
        vocabulary.check_vocabulary(path)
        inputs["vocabulary"] = files.sha256(path)
    return Manifest(stage="build", inputs=inputs, settings={"dataset": dataset, **plain})


def _write_vocabulary(path: Path, data: PreparedData, settings: BuildSettings) -> int:
    """Copies or trains the vocabulary; returns its number of pieces."""
    if settings.vocabulary_path is not None:
        return vocabulary.copy_vocabulary(settings.vocabulary_path, path)
    templates = registry.import_task_module(settings.task_module, data.dataset).TEMPLATES
    lines = vocabulary_lines(data, templates)
    return vocabulary.train_vocabulary(
        lines, path, vocab_size=settings.vocab_size, is_limit=settings.vocab_size_is_limit
    )


def vocabulary_lines(data: PreparedData, templates: Iterable[Template]) -> Iterator[str]:
    """Yields the corpus of the vocabulary: titles, categories and the templates' wording.

    Every prompt holds a template and about thirty titles, so the wording comes once for each
    thirty titles: its words become single pieces, and prompts short.
    """
    wording = [text for template in templates for text in _literals(template)]
    for index, item in enumerate(data.items):
        if index % 30 == 0:
            yield from wording
        yield plain_title(item.title)
        if item.category:
            yield plain_text(item.category)


def _literals(template: Template) -> Iterator[str]:
    """Yields the fixed texts of a template."""
    for segment in template.input_segments + template.target_segments:
        parts = getattr(segment, "segments", (segment,))
        yield from (part.text for part in parts if isinstance(part, Literal))


def _write_configs(folder: Path, data: PreparedData, settings: BuildSettings) -> dict[str, int]:
    """Writes the TFDS configs into `folder`; returns counts by config, split and field."""
    counts: collections.Counter[str] = collections.Counter()
    for config in record_store.CONFIGS:
        splits = {
            split: _counted(records, f"{config}/{split}", counts)
            for split, records in _records(data, config, settings).items()
        }
        record_store.write_records(
            folder / config / record_store.VERSION, dataset=data.dataset, splits=splits
        )
    if not any(counts.values()):
        raise UserError(f"dataset {data.dataset!r} gives no record at all; check `prepare`")
    return dict(counts)


def _counted(
    records: Iterable[InstructionRecord], name: str, counts: collections.Counter[str]
) -> Iterator[InstructionRecord]:
    """Yields the records, counting them and those with a specific intention."""
    counts[f"{name}/specific_intention"] += 0
    for record in records:
        counts[name] += 1
        counts[f"{name}/specific_intention"] += bool(record.specific_intention)
        yield record


def _records(
    data: PreparedData, config: str, settings: BuildSettings
) -> dict[str, Iterator[InstructionRecord]]:
    """Returns the records of every split of a config, as generators."""
    catalogue = builder.Catalogue(items=data.items, search_splits=data.search_splits)
    draw = _candidate_drawer(data, settings)
    if config == candidates.LEAVE_ONE_OUT:
        positions = builder.training_positions(
            data.histories, max_positions=settings.max_train_positions, seed=settings.seed
        )
        train = builder.leave_one_out_training(catalogue, data.histories, positions, draw=draw)
    else:
        train = builder.product_search_training(catalogue, draw=draw, seed=settings.seed)
    held_out = {
        split: builder.evaluation_records(
            catalogue,
            data.histories,
            [row for row in data.candidates if (row.protocol, row.split) == (config, split)],
        )
        for split in builder.HELD_OUT
    }
    return {"train": train, **held_out}


def _candidate_drawer(data: PreparedData, settings: BuildSettings) -> builder.DrawCandidates:
    """Returns the drawing of training candidates, by the rule of the evaluation's.

    Product search shows no held-out item, not even as a negative: a model would learn that such
    items are never what is searched for.
    """
    title_ids = titles.title_ids([item.title for item in data.items])
    held_out = frozenset(
        item for item, split in enumerate(data.search_splits) if split in builder.HELD_OUT
    )

    def draw(example_id: str, target: int, user: int) -> tuple[int, ...]:
        excluded = frozenset(data.seen_items[user].tolist()) if user >= 0 else held_out
        return candidates.draw_candidates(
            title_ids,
            excluded=excluded,
            target=target,
            num_candidates=settings.num_train_negatives + 1,
            rng=candidates.example_rng(
                example_id, dataset=data.dataset, split="train", seed=settings.seed
            ),
            allow_fewer=True,
        )

    return draw
