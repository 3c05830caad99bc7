"""Instruction records (artefact C) as a TFDS dataset: written once, read by tfds and SeqIO."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.manifest import read_manifest
from instructrec_jax.records import InstructionRecord

CONFIGS = ("leave_one_out", "product_search")
SPLITS = ("train", "validation", "test")
VERSION = "1.0.0"
_SHUFFLE_BUFFER_SIZE = 1024  # the files are in random order already
_FIELDS = tuple(field.name for field in dataclasses.fields(InstructionRecord))
_INTEGERS = frozenset({"position", "target_id", "candidate_ids"})


def features() -> tfds.features.FeaturesDict:
    """Returns the TFDS features, one for each field of `InstructionRecord`."""
    texts = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(
        {
            "example_id": tfds.features.Text(),
            "user_id": tfds.features.Text(),
            "position": np.int32,
            "history": texts,
            "preference": texts,
            "vague_intention": texts,
            "specific_intention": tfds.features.Text(),
            "target_id": np.int32,
            "target": tfds.features.Text(),
            "candidate_ids": tfds.features.Sequence(np.int32),
            "candidates": texts,
        }
    )


def write_records(
    folder: Path | str,
    *,
    dataset: str,
    splits: Mapping[str, Iterable[InstructionRecord]],
    records_per_shard: int = 50_000,
) -> dict[str, int]:
    """Writes one TFDS config, in the order given; the same records give the same bytes.

    TFDS's own builders keep a split in memory and serialise fields in an order that changes from
    process to process, so the files are written here and TFDS's metadata is put beside them.

    Args:
      folder: where the files go; below a TFDS data_dir it is `<dataset>/<config>/1.0.0`.
      dataset: name of the dataset.
      splits: records of every split; they are consumed once, one after another.
      records_per_shard: most records in a file.

    Returns:
      The number of records of every split that has any; the others are not written, and nothing
      at all if no split has any.
    """
    folder = Path(folder)
    infos = []
    for split, records in splits.items():
        shards = _write_shards(folder / f"{dataset}-{split}.tfrecord", records, records_per_shard)
        if shards:
            template = tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=dataset, split=split, filetype_suffix="tfrecord"
            )
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[number for number, _ in shards],
                    num_bytes=sum(size for _, size in shards),
                    filename_template=template,
                )
            )
    if infos:
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=features(),
            split_infos=infos,
            version=VERSION,
            check_data=False,
            description="Instruction records of instructrec-jax.",
            disable_shuffling=True,  # file order is record order
        )
    return {info.name: info.num_examples for info in infos}


def _write_shards(
    stem: Path, records: Iterable[InstructionRecord], records_per_shard: int
) -> list[tuple[int, int]]:
    """Writes records to numbered files; returns the number of records and bytes of each."""
    shards: list[tuple[int, int]] = []
    iterator = iter(records)
    while first := list(itertools.islice(iterator, 1)):
        stem.parent.mkdir(parents=True, exist_ok=True)
        shard = itertools.chain(first, itertools.islice(iterator, records_per_shard - 1))
        number = size = 0
        with tf.io.TFRecordWriter(f"{stem}-{len(shards):05d}") as writer:
            for record in shard:
                serialized = serialize(record)
                writer.write(serialized)
                number, size = number + 1, size + len(serialized)
        shards.append((number, size))
    for index in range(len(shards)):  # the names hold the number of files, known only now
        path = Path(f"{stem}-{index:05d}")
        path.rename(f"{path}-of-{len(shards):05d}")
    return shards


def serialize(record: InstructionRecord) -> bytes:
    """Returns a record as a `tf.train.Example` that `features` reads."""
    example = tf.train.Example()
    feature = example.features.feature
    for name in _FIELDS:
        value = getattr(record, name)
        values = value if isinstance(value, tuple) else (value,)
        if name in _INTEGERS:
            feature[name].int64_list.value.extend(values)
        else:
            feature[name].bytes_list.value.extend(text.encode() for text in values)
    return example.SerializeToString(deterministic=True)


def use_data_dir(folder: Path | str) -> None:
    """Makes every task of this process read its records below one TFDS data_dir."""
    seqio.set_tfds_data_dir_override(str(folder))


class RecordSource(seqio.TfdsDataSource):
    """Reads one config of a dataset from the run's data_dir, whichever it is by then.

    Each example gets `is_training`, because what a preprocessor draws afresh for training stands
    fixed in evaluation, and SeqIO does not tell preprocessors the split.
    """

    def __init__(self, dataset: str, config: str, *, needs: str = "") -> None:
        """Names the records, and reads nothing.

        Args:
          dataset: name of the dataset.
          config: "leave_one_out" or "product_search".
          needs: a field without whose text no record is of use, such as "specific_intention".
        """
        super().__init__(tfds_name=f"{dataset}/{config}:{VERSION}", splits=SPLITS, read_only=True)
        self._dataset, self._config, self._needs = dataset, config, needs

    def get_dataset(
        self,
        split: str | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        """Returns the records of a split in file order, which is the order they were written in.

        Where they are to be shuffled, they begin at a place that depends on the seed, so that the
        tasks of a mixture show different records at a time, and pass through a buffer. Records
        are shuffled and not what becomes of them: a batch need not wait for a buffer of prompts.

        Raises:
          UserError: if the dataset, this config of it, or the split is not in the data_dir.
        """
        del unused
        split = split or "train"
        builder = self._open(split)
        read_config = tfds.ReadConfig(
            try_autocache=False, skip_prefetch=True, interleave_cycle_length=1
        )
        if shard_info:
            read_config.input_context = tf.distribute.InputContext(
                num_input_pipelines=shard_info.num_shards, input_pipeline_id=shard_info.index
            )
        part = _rotated(split, seed) if shuffle and seed is not None else split
        ds = builder.as_dataset(split=part, shuffle_files=False, read_config=read_config)
        if shuffle:
            ds = ds.shuffle(_SHUFFLE_BUFFER_SIZE, seed=seed)
        is_training = tf.constant(split.startswith("train"))
        return ds.map(lambda record: {**record, "is_training": is_training})

    @property
    def performs_internal_shuffling(self) -> bool:
        """Whether SeqIO may leave shuffling to the source."""
        return True

    def num_input_examples(self, split: str) -> int:
        """Returns the number of records of a split."""
        return self._open(split).info.splits[split].num_examples

    def _open(self, split: str) -> tfds.core.DatasetBuilder:
        """Returns the builder of this config, having checked that it can serve the split."""
        data_dir = data_dir_in_use()
        folder = data_dir / self._dataset / self._config / VERSION
        if not folder.is_dir():
            check_dataset(self._dataset)
            raise UserError(
                f"dataset {self._dataset!r} in {data_dir} has no {self._config} records (product "
                f"search needs items with a category); use {self._dataset}.sequential"
            )
        builder = tfds.builder_from_directory(str(folder))
        if split.split("[")[0] not in builder.info.splits:
            raise UserError(
                f"{folder} has no split {split!r}, only {', '.join(builder.info.splits)}"
            )
        if self._needs:
            self._check_need(data_dir / self._dataset, split.split("[")[0])
        return builder

    def _check_need(self, folder: Path, split: str) -> None:
        """Raises where no record of the split has the text that the task is about."""
        count = read_manifest(folder).counts.get(f"{self._config}/{split}/{self._needs}")
        if count == 0:
            raise UserError(
                f"no {split} record of {self._dataset!r} has a {self._needs}: the items have no "
                f"category; use a mixture that needs none, such as {self._dataset}.sequential"
            )


def check_dataset(dataset: str) -> None:
    """Raises UserError where the data_dir of this process holds no such dataset."""
    data_dir = data_dir_in_use()
    built = [path.parent.name for path in data_dir.glob("*/manifest.json")]
    if dataset not in built:
        raise UserError(
            f"{unknown_name('dataset', dataset, built)} in {data_dir}; run "
            f"`instructrec build --dataset={dataset} --output_dir={data_dir}`, or name the folder "
            "it wrote"
        )


def data_dir_in_use() -> Path:
    """Returns the TFDS data_dir of this process.

    Raises:
      UserError: if none was chosen.
    """
    loader = seqio.utils.LazyTfdsLoader("any:1.0.0")  # a fresh one knows the latest override
    if loader.data_dir is None:
        raise UserError("no data folder is chosen; give --data_dir, or the gin macro DATA_DIR")
    return Path(loader.data_dir)


def _rotated(split: str, seed: int) -> str:
    """Returns the split in TFDS's notation, begun at another place and wrapped around."""
    percent = seed % 100
    return f"{split}[{percent}%:]+{split}[:{percent}%]" if percent and "[" not in split else split
