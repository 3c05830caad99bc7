"""The files of `build`, each written by itself: here, in other processes, or on Beam's workers."""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.instructions.builder import (
    CONFIGS,
    SPLITS,
    RecordBuilder,
    RecordSettings,
    Tally,
)
from instructrec_jax.instructions.coverage import aspects_of, count_name
from instructrec_jax.pipeline import record_store
from instructrec_jax.records import InstructionRecord, Teacher
from instructrec_jax.teacher.extractive import ExtractiveTeacher

_SUMMARY = ".summary.json"
TEACHERS: dict[str, type[ExtractiveTeacher] | None] = {
    "extractive": ExtractiveTeacher,
    "none": None,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every worker has to know; small, and equal for all shards.

    Attributes:
      input_dir: output folder of `prepare`.
      output_dir: folder that the configs' folders go into; every worker must reach both.
      dataset: name of the dataset.
      teacher: a name of `TEACHERS`.
      settings: of the records.
    """

    input_dir: str
    output_dir: str
    dataset: str
    teacher: str
    settings: RecordSettings

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return Path(self.output_dir)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file: the records `start` .. `stop` - 1 of a split of a config."""

    config: str
    split: str
    index: int
    num_shards: int
    start: int
    stop: int


def make_teacher(name: str) -> Teacher | None:
    """Returns a teacher that needs no network, None for "none".

    Raises:
      UserError: if there is no such teacher.
    """
    if name not in TEACHERS:
        raise unknown_name("teacher", name, TEACHERS)
    found = TEACHERS[name]
    return None if found is None else found()


@functools.lru_cache(maxsize=1)
def record_builder(work: Work) -> RecordBuilder:
    """Returns the builder of some work, opened once a process."""
    return RecordBuilder(read_prepared(work.input_dir), work.settings, make_teacher(work.teacher))


def plan_shards(work: Work, records_per_shard: int) -> list[Shard]:
    """Returns the files that make up the records, which are all known before any is written.

    Raises:
      UserError: if there is no record at all.
    """
    builder = record_builder(work)
    shards = []
    for config in CONFIGS:
        for split in SPLITS:
            total = builder.num_records(config, split)
            starts = range(0, total, records_per_shard)
            shards += [
                Shard(
                    config=config,
                    split=split,
                    index=index,
                    num_shards=len(starts),
                    start=start,
                    stop=min(start + records_per_shard, total),
                )
                for index, start in enumerate(starts)
            ]
    if not shards:
        raise UserError(f"dataset {work.dataset!r} gives no record at all; check `prepare`")
    return shards


def write_shard(work: Work, shard: Shard) -> None:
    """Writes one file and, after it, a summary of what it holds; does nothing if both are there."""
    path = _path(work, shard)
    summary = path.with_name(path.name + _SUMMARY)
    if summary.exists():
        return
    tally: Tally = collections.Counter()
    counts: Tally = collections.Counter()
    numbers = range(shard.start, shard.stop)
    records = record_builder(work).records(shard.config, shard.split, numbers, tally)
    size = record_store.write_shard(path, _counted(records, shard, counts))
    found = {"size": dataclasses.asdict(size), "counts": counts, "drops": tally}
    files.write_text(summary, json.dumps(found))


def write_all(work: Work, shards: Sequence[Shard], *, num_workers: int) -> Iterator[Shard]:
    """Writes the shards in this process or in others, and yields each when it is there.

    Args:
      work: what all have in common.
      shards: what to write.
      num_workers: processes; 1 for this one alone.
    """
    if num_workers == 1:
        for shard in shards:
            write_shard(work, shard)
            yield shard
        return
    # Not forked: TensorFlow has threads by now.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        running = {pool.submit(write_shard, work, shard): shard for shard in shards}
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
                yield running[future]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def finish(work: Work, shards: Iterable[Shard]) -> tuple[dict[str, int], dict[str, int]]:
    """Puts TFDS's metadata beside the files; returns the counts and the drops of all of them."""
    counts: Tally = collections.Counter()
    drops: Tally = collections.Counter()
    sizes: dict[str, dict[str, list[record_store.ShardSize]]] = {}
    for shard in shards:
        path = _path(work, shard)
        summary = path.with_name(path.name + _SUMMARY)
        found = json.loads(summary.read_text(encoding="utf-8"))
        counts.update(found["counts"])
        drops.update(found["drops"])
        of_split = sizes.setdefault(shard.config, {}).setdefault(shard.split, [])
        of_split.append(record_store.ShardSize(**found["size"]))
    for config, of_config in sizes.items():
        folder = _config_folder(work, config)
        record_store.write_metadata(folder, dataset=work.dataset, shards=of_config)
        for summary in folder.glob("*" + _SUMMARY):
            summary.unlink()
    return dict(sorted(counts.items())), dict(sorted(drops.items()))


def _path(work: Work, shard: Shard) -> Path:
    """Returns where a shard is written."""
    return record_store.shard_path(
        _config_folder(work, shard.config),
        dataset=work.dataset,
        split=shard.split,
        index=shard.index,
        num_shards=shard.num_shards,
    )


def _config_folder(work: Work, config: str) -> Path:
    """Returns the folder of a config, where TFDS looks for it."""
    return work.folder / config / record_store.VERSION


def _counted(
    records: Iterable[InstructionRecord], shard: Shard, counts: Tally
) -> Iterator[InstructionRecord]:
    """Yields the records, counting all of them and those with the same aspects."""
    for record in records:
        counts[f"{shard.config}/{shard.split}"] += 1
        counts[count_name(shard.config, shard.split, aspects_of(record))] += 1
        yield record
