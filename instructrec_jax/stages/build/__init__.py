"""The stage `build`: artefacts A and B to instruction records (C) and a vocabulary for SeqIO."""

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from instructrec_jax import files, tokenizer
from instructrec_jax.baselines.popularity import count_items, training_histories
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TRAIN
from instructrec_jax.data.prepared import PreparedData, hashes_of, read_prepared
from instructrec_jax.data.titles import path_labels
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.builder import RecordSettings
from instructrec_jax.instructions.language import Literal, Template, plain_text, plain_title
from instructrec_jax.instructions.task_modules import SHIPPED, templates_of
from instructrec_jax.instructions.train_negatives import RULES, told_counts
from instructrec_jax.manifest import (
    FILE_NAME,
    Manifest,
    find_finished,
    find_same_work,
)
from instructrec_jax.progress import Progress
from instructrec_jax.records import InstructionRecord
from instructrec_jax.settings import Count, Range, Workers, check_fields
from instructrec_jax.stages.build import shards as build_shards
from instructrec_jax.stages.build.shards import Shard, Work
from instructrec_jax.stages.run_data import ANNOTATORS, AUDITED, NO_TEACHER, VOCABULARY_FILE
from instructrec_jax.teacher.texts import published, read_texts_manifest

logger = logging.getLogger(__name__)
_NUM_SAMPLE_RECORDS = 3000  # whose teacher texts the vocabulary learns from


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildSettings(RecordSettings):
    """What decides the records and the vocabulary beside the prepared data and the texts.

    Attributes:
      vocabulary_path: a SentencePiece model to copy, such as T5's; without it one is trained.
      vocab_size: most pieces of the vocabulary that is trained; few texts give fewer.
      title_pieces: whole titles, those most often in training histories, that become pieces of the
        vocabulary beside `vocab_size`, for models without pretraining: a title is then one token,
        which starts from what it was chosen with. As many categories at most become pieces too.
        A single word that other words begin with does not.
      task_module: the module whose templates the vocabulary should know.
      records_per_shard: most records in a file.
    """

    vocabulary_path: str | None = None
    vocab_size: Annotated[int, Range(1, 1_000_000)] = 2000
    title_pieces: Annotated[int, Range(0, 1_000_000)] = 0
    task_module: str = SHIPPED
    records_per_shard: Count = 20_000

    def __post_init__(self) -> None:
        check_fields(self)
        if self.title_pieces and self.vocabulary_path is not None:
            raise UserError(
                f"title_pieces={self.title_pieces} with the vocabulary {self.vocabulary_path}: "
                "pieces are added to a vocabulary that `build` trains; leave one of them out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the files are written, which decides nothing of what is in them.

    Attributes:
      num_workers: processes of this machine.
      runner: an Apache Beam runner instead, such as "DirectRunner"; needs the extra [beam], and
        every worker must reach both folders.
      beam_options: further flags of that runner, such as --beam_option=--project=my-project; may
        be repeated.
    """

    num_workers: Workers = 1
    runner: str | None = None
    beam_options: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def build(
    *,
    dataset: str,
    input_dir: Path | str,
    output_dir: Path | str,
    settings: BuildSettings,
    texts_dir: Path | str | None = None,
    execution: Execution | None = None,
) -> Manifest:
    """Writes `output_dir/<dataset>`: the TFDS configs, the vocabulary and the manifest.

    It streams, and files that an interrupted run has finished are kept and not written again; the
    folder appears under its name when all is there.

    Args:
      dataset: name of the dataset, such as ml_100k; names of tasks begin with it.
      input_dir: output folder of `prepare`.
      output_dir: the TFDS data_dir, which may hold other datasets too.
      settings: what else decides the records.
      texts_dir: output folder of `annotate` on the same prepared data; without it no record
        has a preference or a vague intention.
      execution: where the work is done; None for this process.

    Returns:
      The manifest; that of the earlier run where the same work is done already.

    Raises:
      UserError: if an input or a setting is unusable, or the folder holds another run.
    """
    folder = Path(output_dir) / dataset
    planned = _plan(dataset, Path(input_dir), texts_dir, settings)
    if (earlier := find_finished(folder, planned)) is not None:
        logger.info("build: %s is up to date", folder)
        return earlier
    if execution is not None and execution.runner is not None:  # before anything is written
        build_shards.beam_pipeline(execution.runner, execution.beam_options)
    data = read_prepared(input_dir)
    _check(data, dataset, Path(input_dir), settings)
    wording = templates_of(settings.task_module) if settings.vocabulary_path is None else ()
    work = Work(
        input_dir=str(input_dir),
        texts_dir=None if texts_dir is None else str(texts_dir),
        output_dir=str(_partial_folder(folder, planned)),
        dataset=dataset,
        settings=settings,
    )
    with files.exclusive_directory(work.folder):
        manifest = _fill(work, data, wording, planned, execution or Execution())
        find_same_work(folder, planned)  # another build may have put its work there meanwhile
        work.folder.rename(folder)
    _remove_other_partial_folders(folder)
    _report(manifest, folder, texts_dir)
    return manifest


def _fill(
    work: Work,
    data: PreparedData,
    wording: Sequence[Template],
    planned: Manifest,
    execution: Execution,
) -> Manifest:
    """Writes everything into the folder of the work; returns its manifest."""
    for left in work.folder.rglob(".*.tmp"):  # half-written by a run that was killed
        left.unlink()
    build_shards.record_builder.cache_clear()
    try:
        build_shards.write_ranker(work, data)
        shards = build_shards.plan_shards(work, planned.settings["records_per_shard"])
        pieces = _write_vocabulary(work, data, wording)
        _write_shards(work, shards, execution)
    except UserError:
        build_shards.remove_unpacked(work)
        _remove_if_nothing_is_there(work.folder)
        raise
    counts = build_shards.finish(work, shards)
    counts |= {**planned.counts, "vocabulary": pieces}
    manifest = dataclasses.replace(planned, counts=counts)
    manifest.write_finished(work.folder)
    return manifest


def _plan(
    dataset: str, input_dir: Path, texts_dir: Path | str | None, settings: BuildSettings
) -> Manifest:
    """Returns the manifest of the work, with what it can count before it begins."""
    plain = dataclasses.asdict(settings)
    path = plain.pop("vocabulary_path")
    prepared = hashes_of(input_dir)
    inputs = {"prepared": prepared[0]}
    counts: dict[str, int] = {}
    if not settings.title_pieces:
        del plain["title_pieces"]  # records of before have none either
    if not settings.shuffled_labels:
        del plain["shuffled_labels"]
    plain["train_negatives"] = RULES[settings.train_negatives]
    plain["teacher"] = NO_TEACHER
    if texts_dir is not None:
        texts = read_texts_manifest(texts_dir, prepared=prepared)
        inputs["texts"] = files.sha256(Path(texts_dir) / FILE_NAME)
        plain["teacher"] = texts.text("teacher")
        counts = {f"texts/{name}": number for name, number in texts.counts.items()}
        if (note := published(texts_dir)) is not None:
            counts |= {AUDITED: note["num_texts"], ANNOTATORS: note["num_annotators"]}
    if path is not None:
        tokenizer.check_vocabulary(path)
        inputs["vocabulary"] = files.sha256(path)
    return Manifest(
        stage="build", inputs=inputs, settings={"dataset": dataset, **plain}, counts=counts
    )


def _check(data: PreparedData, dataset: str, input_dir: Path, settings: BuildSettings) -> None:
    """Raises where the prepared data are not what is asked for."""
    if data.dataset != dataset:
        raise UserError(f"{input_dir} holds dataset {data.dataset!r}, not {dataset!r}")
    if settings.states_time and not len(data.histories.times):
        raise UserError(
            f"states_time is set, and {input_dir} has no times in seconds since 1970; leave it out"
        )


def _partial_folder(folder: Path, planned: Manifest) -> Path:
    """Returns where the work is done until it is complete; equal work finds the same folder."""
    work = json.dumps([dict(planned.inputs), dict(planned.settings)], sort_keys=True)
    name = f".{folder.name}.{hashlib.sha256(work.encode()).hexdigest()[:12]}.partial"
    return folder.with_name(name)


def _remove_if_nothing_is_there(partial: Path) -> None:
    """Removes the folder of a run that could not begin."""
    if not any(path.is_file() for path in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)


def _remove_other_partial_folders(folder: Path) -> None:
    """Removes what interrupted runs with other settings left, now that the dataset is there."""
    for other in folder.parent.glob(f".{folder.name}.*.partial"):
        with contextlib.suppress(UserError), files.exclusive_directory(other):
            shutil.rmtree(other)


def _write_shards(work: Work, shards: Sequence[Shard], execution: Execution) -> None:
    """Writes what is missing, wherever it is to be done."""
    if execution.runner is not None:
        build_shards.run_on_beam(
            work, shards, runner=execution.runner, options=execution.beam_options
        )
        return
    written = build_shards.write_all(work, shards, num_workers=execution.num_workers)
    for _ in Progress("build", total=len(shards), unit="files").track(written):
        pass


def _write_vocabulary(work: Work, data: PreparedData, wording: Sequence[Template]) -> int:
    """Copies or trains the vocabulary; returns its number of pieces."""
    settings, path = work.settings, work.folder / VOCABULARY_FILE
    assert isinstance(settings, BuildSettings)
    if path.exists():
        return tokenizer.check_vocabulary(path).get_piece_size()
    if settings.vocabulary_path is not None:
        return tokenizer.copy_vocabulary(settings.vocabulary_path, path)
    builder = build_shards.record_builder(work)
    num_sampled = min(_NUM_SAMPLE_RECORDS, builder.num_records(LEAVE_ONE_OUT, TRAIN))
    sample = builder.records(LEAVE_ONE_OUT, TRAIN, range(num_sampled))
    lines = itertools.chain(vocabulary_lines(data, wording), teacher_lines(sample))
    return tokenizer.train_vocabulary(
        lines,
        path,
        vocab_size=settings.vocab_size,
        whole=whole_pieces(data, wording, settings.title_pieces),
    )


def _report(manifest: Manifest, folder: Path, texts_dir: Path | str | None) -> None:
    """Logs what was written, and by whom the texts are."""
    for name, count in manifest.counts.items():
        logger.info("build: %s=%d", name, count)
    if told := told_counts(manifest.counts):
        logger.info("build: negatives of training, %s", told)
    teacher = manifest.settings["teacher"]
    if teacher == NO_TEACHER:
        logger.info(
            "build: no texts, so no record has a preference or a vague intention; "
            "`instructrec annotate` writes them, --texts_dir names them"
        )
    logger.info("build: wrote %s, texts by the teacher %s", folder, teacher)
    if texts_dir is not None:
        note = published(texts_dir)
        logger.info(
            "build: these texts are %s",
            "not published: nobody has audited them (`instructrec audit sample`)"
            if note is None
            else f"published: {_who_audited(note)}, on {note['num_texts']} texts, {note['date']}",
        )


def _who_audited(note: Mapping[str, Any]) -> str:
    """Returns whose answers texts were published on."""
    if number := note["num_annotators"]:
        return f"audited by {number} {'person' if number == 1 else 'people'}"
    return f"judged by the language model {note['judge']} alone, by no person"


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


def whole_pieces(data: PreparedData, templates: Iterable[Template], number: int) -> list[str]:
    """Returns names of categories and titles that are to be one piece each.

    A text of one word may be one if it begins no other word: pieces are found at the beginning of
    any word, and a title "It" would cut the "Item" of a prompt in two.

    Args:
      data: its titles, those most often in training first, ties by item id.
      templates: whose wording stays as it is.
      number: most titles, and most categories.
    """
    counts = count_items(
        training_histories(history.item_ids for history in data.histories if number),
        num_items=len(data.items),
    )
    order = [item for item in np.argsort(-counts, kind="stable") if counts[item]]
    frequent = [plain_title(data.items[item].title) for item in order]
    names = [plain_text(name) for item in data.items for name in path_labels(item.category)]
    wording = {word for t in templates for text in _literals(t) for word in text.split()}
    said = {word for item in data.items for word in plain_title(item.title).split()}
    words = sorted(wording | said | {word for name in names for word in name.split()})

    def begins_another_word(text: str) -> bool:
        first = bisect.bisect_left(words, text)
        if words[first : first + 1] == [text]:
            first += 1
        return text in wording or any(word.startswith(text) for word in words[first : first + 1])

    def fitting(texts: Iterable[str]) -> Iterator[str]:
        for text in filter(None, dict.fromkeys(texts)):
            if len(text.split()) > 1 or not begins_another_word(text):
                yield text

    chosen = (itertools.islice(fitting(texts), number) for texts in (sorted(names), frequent))
    return list(dict.fromkeys(itertools.chain.from_iterable(chosen)))


def teacher_lines(records: Iterable[InstructionRecord]) -> Iterator[str]:
    """Yields the teacher's texts of records, the first of each aspect."""
    for record in records:
        for texts in (record.preference, record.vague_intention, record.second_vague_intention):
            yield from (plain_text(text) for text in texts[:1])


def _literals(template: Template) -> Iterator[str]:
    """Yields the fixed texts of a template."""
    for segment in template.input_segments + template.target_segments:
        parts = getattr(segment, "segments", (segment,))
        yield from (part.text for part in parts if isinstance(part, Literal))
