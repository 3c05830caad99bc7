"""The stage `annotate`: artefact A to the texts of a teacher (B)."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from instructrec_jax import files, workers
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.manifest import Manifest, find_finished, read_manifest
from instructrec_jax.progress import Progress
from instructrec_jax.records import Annotation, History
from instructrec_jax.settings import Count, Workers, check_arguments, check_fields
from instructrec_jax.teacher import texts
from instructrec_jax.teacher.extractive import ExtractiveTeacher
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, Row, Teacher

logger = logging.getLogger(__name__)
TEACHERS: dict[str, type[Teacher]] = {"extractive": ExtractiveTeacher}
_USERS_A_BLOCK = 512  # whose texts are written at a time
_Tally = collections.Counter[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotateSettings:
    """What decides the texts beside the prepared data.

    Attributes:
      teacher: who writes them: "extractive", which takes them from titles, categories and reviews.
      max_positions: positions of each user that get texts, spread evenly from the first that has a
        history to the last; without it all, the first item too.
    """

    teacher: str = "extractive"
    max_positions: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.teacher not in TEACHERS:
            raise unknown_name("teacher", self.teacher, TEACHERS)


def annotate(
    *,
    dataset: str,
    input_dir: Path | str,
    output_dir: Path | str,
    settings: AnnotateSettings | None = None,
    num_workers: Workers = 1,
) -> Manifest:
    """Writes the texts of a teacher on prepared data, whole or not at all.

    Args:
      dataset: name of the dataset, such as ml_100k.
      input_dir: output folder of `prepare`.
      output_dir: folder for artefact B, new, empty or of the same work.
      settings: what else decides the texts.
      num_workers: processes, which decide nothing of what is written.

    Returns:
      The manifest; that of the earlier run where the same work is done already.

    Raises:
      UserError: if an input or a setting is unusable, or the folder holds another run.
    """
    check_arguments(annotate, locals())
    settings = settings or AnnotateSettings()
    planned = _plan(dataset, Path(input_dir), settings)
    if (earlier := find_finished(output_dir, planned)) is not None:
        logger.info("annotate: %s is up to date", output_dir)
        return earlier
    data = read_prepared(input_dir)
    if data.dataset != dataset:
        raise UserError(f"{input_dir} holds dataset {data.dataset!r}, not {dataset!r}")
    _opened.cache_clear()
    work = functools.partial(_annotate_block, str(input_dir), settings)
    begins = range(0, len(data.histories), _USERS_A_BLOCK)
    counts: _Tally = collections.Counter(users=len(data.histories))
    drops: _Tally = collections.Counter()
    with files.atomic_directory(output_dir) as folder:
        with texts.TextsWriter(folder) as writer:
            blocks = workers.map_parts(work, begins, num_workers=num_workers)
            progress = Progress("annotate", total=len(begins), unit="blocks of users")
            for block in progress.track(blocks):
                for name, table in block.tables.items():
                    writer.write(name, table)
                counts.update(block.counts)
                drops.update(block.drops)
        manifest = dataclasses.replace(
            planned, counts=dict(sorted(counts.items())), drops=dict(sorted(drops.items()))
        )
        manifest.write_finished(folder)
    for name, count in {**manifest.counts, **manifest.drops}.items():
        logger.info("annotate: %s=%d", name, count)
    logger.info("annotate: wrote %s, texts by %s", output_dir, manifest.settings["teacher"])
    return manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
    """The texts on some users.

    Attributes:
      tables: rows by the name of their file.
      counts: what was read and written.
      drops: what was left out, by reason.
    """

    tables: dict[str, texts.Table]
    counts: _Tally
    drops: _Tally


def _plan(dataset: str, input_dir: Path, settings: AnnotateSettings) -> Manifest:
    """Returns the manifest of the work, without what it will count."""
    read_manifest(input_dir)
    teacher = TEACHERS[settings.teacher]().name
    return Manifest(
        stage=texts.STAGE,
        inputs={"prepared": files.sha256(input_dir / "manifest.json")},
        settings={
            "dataset": dataset,
            **dataclasses.asdict(settings),
            "teacher": teacher,  # its version decides the texts
            "written_by": {teacher: {"model": "rules", "prompt_version": None, "date": None}},
            "format": texts.FORMAT,
        },
    )


@functools.lru_cache(maxsize=1)
def _opened(input_dir: str, teacher: str) -> tuple[PreparedData, Teacher]:
    """Returns prepared data and a teacher, opened once per process."""
    return read_prepared(input_dir), TEACHERS[teacher]()


def _annotate_block(input_dir: str, settings: AnnotateSettings, begin: int) -> _Block:
    """Returns the texts on the users from `begin` on."""
    data, teacher = _opened(input_dir, settings.teacher)
    end = min(begin + _USERS_A_BLOCK, len(data.histories))
    counts: _Tally = collections.Counter()
    drops: _Tally = collections.Counter()
    preferences: list[Row] = []
    intentions: list[Row] = []
    for history in data.histories.block(begin, end):
        positions = _positions(len(history.item_ids), settings.max_positions)
        preferences += _preferences(data, teacher, history, positions)
        intentions += _intentions(data, teacher, history, positions, drops)
    for name, rows in ((PREFERENCES, preferences), (INTENTIONS, intentions)):
        counts[f"{name}_asked"] = len(rows)
        having = [row.user_id for row in rows if row.annotation.texts]
        counts[name] = len(having)
        counts[f"users_with_{name}"] = len(set(having))
    return _Block(
        tables={
            PREFERENCES: texts.as_table(PREFERENCES, preferences),
            INTENTIONS: texts.as_table(INTENTIONS, intentions),
        },
        counts=counts,
        drops=drops,
    )


def _positions(length: int, max_positions: int | None) -> list[int]:
    """Returns the positions of a history that get texts.

    Example:
      (20, 3) -> [1, 10, 19]; (4, None) -> [0, 1, 2, 3].
    """
    if max_positions is None:
        return list(range(length))
    spread = np.linspace(1, length - 1, min(max_positions, length - 1))
    return spread.round().astype(int).tolist()


def _preferences(
    data: PreparedData, teacher: Teacher, history: History, positions: Iterable[int]
) -> Iterator[Row]:
    """Yields what the teacher says of the items before each position that has any."""
    items = [data.items[item_id] for item_id in history.item_ids]
    for position in positions:
        if position:
            written = Annotation(texts=teacher.preferences(items[:position]), version=teacher.name)
            yield Row(user_id=history.user_id, position=position, annotation=written)


def _intentions(
    data: PreparedData,
    teacher: Teacher,
    history: History,
    positions: Iterable[int],
    drops: _Tally,
) -> Iterator[Row]:
    """Yields what the teacher makes of the reviews at each position that has one."""
    for position in positions:
        row = history.review_rows[position] if history.review_rows else -1
        if row < 0:
            continue
        found = teacher.intentions(data.reviews[row], data.items[history.item_ids[position]])
        drops.update({f"{INTENTIONS}_{reason}": n for reason, n in found.rejected.items()})
        written = Annotation(
            texts=found.vague, second_texts=found.second_vague, version=teacher.name
        )
        yield Row(user_id=history.user_id, position=position, annotation=written)
