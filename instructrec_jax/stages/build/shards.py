"""The files of `build`, each written by itself: here, in other processes, or on Beam's workers.

TensorFlow and SeqIO are imported where files are written: the flags of `build` do without them.
"""

import collections
import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax import files, workers
from instructrec_jax.baselines.cooccurrence import CatalogueScores
from instructrec_jax.data.columnar import CONFIGS, SPLITS
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.builder import RecordBuilder, RecordSettings
from instructrec_jax.instructions.coverage import aspects_of, count_name
from instructrec_jax.instructions.train_negatives import MATCHED
from instructrec_jax.records import InstructionRecord
from instructrec_jax.teacher.texts import Texts

logger = logging.getLogger(__name__)
_SUMMARY = ".summary.json"
UNPACKED = "texts"  # folder of artefact B's texts as every worker reads them
RANKER = "ranker.npz"  # in whose order negatives are matched, likewise
_Tally = collections.Counter[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every worker has to know; small, and equal for all shards.

    Attributes:
      input_dir: output folder of `prepare`.
      texts_dir: output folder of `annotate`; None for records without texts.
      output_dir: folder that the configs' folders go into; every worker must reach all three.
      dataset: name of the dataset.
      settings: of the records.
    """

    input_dir: str
    texts_dir: str | None
    output_dir: str
    dataset: str
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


@functools.lru_cache(maxsize=1)
def record_builder(work: Work) -> RecordBuilder:
    """Returns the builder of some work, opened once per process."""
    data = read_prepared(work.input_dir)
    texts = None
    if work.texts_dir is not None:
        texts = Texts(work.texts_dir, data.histories, unpacked=work.folder / UNPACKED)
    ranker = None
    if work.settings.train_negatives == MATCHED:
        ranker = CatalogueScores.read(work.folder / RANKER)
    return RecordBuilder(data, work.settings, texts, ranker=ranker)


def write_ranker(work: Work, data: PreparedData) -> None:
    """Writes what negatives are matched by, where they are: counted once, not by each worker."""
    if work.settings.train_negatives == MATCHED and not (work.folder / RANKER).exists():
        CatalogueScores.of(data, seed=work.settings.seed).write(work.folder / RANKER)


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
    from instructrec_jax.pipeline import record_store

    path = _path(work, shard)
    summary = path.with_name(path.name + _SUMMARY)
    if summary.exists():
        return
    counts: _Tally = collections.Counter()
    numbers = range(shard.start, shard.stop)
    records = record_builder(work).records(shard.config, shard.split, numbers, counts)
    size = record_store.write_shard(path, _counted(records, shard, counts))
    found = {"size": dataclasses.asdict(size), "counts": counts}
    files.write_text(summary, json.dumps(found))


def write_all(work: Work, shards: Sequence[Shard], *, num_workers: int) -> Iterator[Shard]:
    """Writes the shards in this process or in others, and yields each when it is there.

    Args:
      work: what all have in common.
      shards: what to write.
      num_workers: processes; 1 for this one alone.
    """
    written = workers.map_parts(
        functools.partial(write_shard, work), shards, num_workers=num_workers
    )
    for shard, _ in zip(shards, written, strict=True):
        yield shard


def finish(work: Work, shards: Iterable[Shard]) -> dict[str, int]:
    """Puts TFDS's metadata beside the files; returns the counts of all of them."""
    from instructrec_jax.pipeline import record_store

    counts: _Tally = collections.Counter()
    sizes: dict[str, dict[str, list[record_store.ShardSize]]] = {}
    for shard in shards:
        path = _path(work, shard)
        summary = path.with_name(path.name + _SUMMARY)
        found = files.read_json(summary, dict[str, Any], remedy="remove it and rerun")
        counts.update(found["counts"])
        of_split = sizes.setdefault(shard.config, {}).setdefault(shard.split, [])
        of_split.append(record_store.ShardSize(**found["size"]))
    for config, of_config in sizes.items():
        folder = _config_folder(work, config)
        record_store.write_metadata(folder, dataset=work.dataset, shards=of_config)
        for summary in folder.glob("*" + _SUMMARY):
            summary.unlink()
    remove_unpacked(work)
    return dict(sorted(counts.items()))


def remove_unpacked(work: Work) -> None:
    """Removes what only workers read, which nothing needs once the records are written."""
    shutil.rmtree(work.folder / UNPACKED, ignore_errors=True)
    (work.folder / RANKER).unlink(missing_ok=True)


def _path(work: Work, shard: Shard) -> Path:
    """Returns where a shard is written."""
    from instructrec_jax.pipeline import record_store

    return record_store.shard_path(
        _config_folder(work, shard.config),
        dataset=work.dataset,
        split=shard.split,
        index=shard.index,
        num_shards=shard.num_shards,
    )


def _config_folder(work: Work, config: str) -> Path:
    """Returns the folder of a config, where TFDS looks for it."""
    from instructrec_jax.pipeline import record_store

    return work.folder / config / record_store.VERSION


def _counted(
    records: Iterable[InstructionRecord], shard: Shard, counts: _Tally
) -> Iterator[InstructionRecord]:
    """Yields the records, counting all of them and those with the same aspects."""
    for record in records:
        counts[f"{shard.config}/{shard.split}"] += 1
        counts[count_name(shard.config, shard.split, aspects_of(record))] += 1
        yield record


def beam_pipeline(runner: str, options: Sequence[str]) -> Any:
    """Returns an empty Beam pipeline.

    Args:
      runner: as `run_on_beam`.
      options: as `run_on_beam`.

    Raises:
      UserError: if apache-beam is not installed, or knows no such runner.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "runner needs apache-beam, which is not installed; run "
            "`pip install -c constraints.txt -e '.[beam]'`, or leave --runner out"
        ) from None
    flags = [f"--runner={runner}", *options]
    try:
        return beam.Pipeline(options=PipelineOptions(flags))
    except (ValueError, ImportError) as error:
        raise UserError(f"Beam cannot start with {' '.join(flags)}: {error}") from None


def run_on_beam(
    work: Work, shards: Sequence[Shard], *, runner: str, options: Sequence[str] = ()
) -> None:
    """Writes the shards on Beam's workers; those that are there already are left.

    Every worker writes whole files of its own, with the function that a local run uses, so the
    bytes are the same wherever they were written.

    Args:
      work: what all have in common; its folders must be reachable from every worker.
      shards: what to write.
      runner: "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner" ...
      options: further flags of that runner, such as "--project=my-project".

    Raises:
      UserError: if apache-beam is not installed, or knows no such runner.
    """
    pipeline = beam_pipeline(runner, options)
    import apache_beam as beam

    logger.info("build: %d files on %s", len(shards), runner)
    with pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(shards))
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(functools.partial(write_shard, work))
        )
