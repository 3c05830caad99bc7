"""Instruction records (artefact C) as a TFDS dataset: written once, read by SeqIO or in batches."""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf import json_format

from instructrec_jax import files
from instructrec_jax.data.columnar import SPLITS
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.instructions.coverage import num_renderable
from instructrec_jax.manifest import check_files, read_manifest
from instructrec_jax.pipeline import tfrecords
from instructrec_jax.pipeline.tfrecords import damaged
from instructrec_jax.records import InstructionRecord

VERSION = "2.0.0"
_SHUFFLE_BUFFER_SIZE = 1024  # the files are in random order already
FIELDS = tuple(field.name for field in dataclasses.fields(InstructionRecord))
INTEGERS = frozenset({"position", "target_id", "candidate_ids"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSize:
    """What one file holds."""

    num_records: int
    num_bytes: int


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
            "second_vague_intention": texts,
            "specific_intention": tfds.features.Text(),
            "context": tfds.features.Text(),
            "teacher": tfds.features.Text(),
            "target_id": np.int32,
            "target": tfds.features.Text(),
            "candidate_ids": tfds.features.Sequence(np.int32),
            "candidates": texts,
        }
    )


def shard_path(folder: Path, *, dataset: str, split: str, index: int, num_shards: int) -> Path:
    """Returns where TFDS looks for a file of a split."""
    return folder / f"{dataset}-{split}.tfrecord-{index:05d}-of-{num_shards:05d}"


def write_shard(path: Path, records: Iterable[InstructionRecord]) -> ShardSize:
    """Writes one file, whole or not at all; the same records give the same bytes.

    TFDS's own builders keep a split in memory and serialise fields in an order that changes from
    process to process, so the files are written here and `write_metadata` puts TFDS's beside them.
    """
    num_records = num_bytes = 0
    with files.atomic_file(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in records:
            serialized = serialize(record)
            writer.write(serialized)
            num_records, num_bytes = num_records + 1, num_bytes + len(serialized)
    return ShardSize(num_records=num_records, num_bytes=num_bytes)


def write_metadata(
    folder: Path | str, *, dataset: str, shards: Mapping[str, Sequence[ShardSize]]
) -> None:
    """Writes what TFDS wants to know of a config, beside its files.

    Args:
      folder: where the files are; below a TFDS data_dir it is `<dataset>/<config>/<VERSION>`.
      dataset: name of the dataset.
      shards: sizes of the files of every split that has any, in order.
    """
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[size.num_records for size in sizes],
            num_bytes=sum(size.num_bytes for size in sizes),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=Path(folder),
                dataset_name=dataset,
                split=split,
                filetype_suffix="tfrecord",
            ),
        )
        for split, sizes in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=Path(folder),
        features=features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,
        description="Instruction records of instructrec-jax.",
        disable_shuffling=True,  # file order is record order
    )


def serialize(record: InstructionRecord) -> bytes:
    """Returns a record as a `tf.train.Example` that `features` reads."""
    example = tf.train.Example()
    feature = example.features.feature
    for name in FIELDS:
        value = getattr(record, name)
        values = value if isinstance(value, tuple) else (value,)
        if name in INTEGERS:
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

    def __init__(self, dataset: str, config: str, *, needs: Collection[str] = ()) -> None:
        """Names the records, and reads nothing.

        Args:
          dataset: name of the dataset.
          config: "leave_one_out" or "product_search".
          needs: fields without whose text no record is of use, such as "specific_intention".
        """
        super().__init__(tfds_name=f"{dataset}/{config}:{VERSION}", splits=SPLITS, read_only=True)
        self.dataset, self.config, self.needs = dataset, config, frozenset(needs)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with a record that has all that is needed; all before a data_dir is chosen."""
        if not is_data_dir_chosen():
            return SPLITS
        return tuple(split for split in SPLITS if self.num_input_examples(split))

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
        builder = self.open(split)
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
        """Returns the number of records of a split that have all that is needed.

        Raises:
          UserError: if the data_dir holds no such dataset.
        """
        check_dataset(self.dataset)
        return num_renderable(
            read_manifest(data_dir_in_use() / self.dataset).counts,
            config=self.config,
            split=split.split("[")[0],
            needs=self.needs,
        )

    def rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        """Yields the records of a split that have all that is needed, without TFDS and SeqIO.

        They are in file order, by name of the field; `as_record` decodes them.

        Raises:
          UserError: as `get_dataset`.
        """
        self.files(split)
        for columns in column_batches(self.dataset, self.config, split, FIELDS):
            for values in zip(*(columns[name] for name in FIELDS), strict=True):
                row = dict(zip(FIELDS, values, strict=True))
                if all(any(row[name]) for name in self.needs):
                    yield row

    def check(self, split: str) -> None:
        """Raises UserError where there is no such split, or no record in it has what is needed."""
        if split not in SPLITS:
            raise UserError(f"no split {split!r}; expected one of {', '.join(SPLITS)}")
        if not self.num_input_examples(split):
            lacking = " and ".join(sorted(self.needs)) or "title"
            raise UserError(
                f"no {split} record of {self.dataset!r} in its {self.config} records has a "
                f"{lacking}, so there is nothing to render; `instructrec lint --dataset="
                f"{self.dataset} --data_dir={data_dir_in_use()}` shows what it has texts for"
            )

    def files(self, split: str) -> list[Path]:
        """Returns the files of a split, having checked that they are all there, as written.

        Raises:
          UserError: as `get_dataset`.
        """
        self.check(split)
        if found := record_files(self.dataset, self.config, split):
            return found
        folder = data_dir_in_use() / self.dataset / self.config / VERSION
        raise damaged(folder, f"it holds no file of {split} records")

    def open(self, split: str) -> tfds.core.DatasetBuilder:
        """Returns the builder of this config, having checked that it can serve the split."""
        folder = self.files(split.split("[")[0])[0].parent
        for name in ("dataset_info.json", "features.json"):
            files.read_json(folder / name, dict[str, Any], remedy="run `instructrec build` again")
        try:
            return tfds.builder_from_directory(str(folder))
        except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError) as error:
            raise damaged(folder, str(error)) from None


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


def is_data_dir_chosen() -> bool:
    """Returns whether this process has a TFDS data_dir."""
    return _chosen_data_dir() is not None


def data_dir_in_use() -> Path:
    """Returns the TFDS data_dir of this process.

    Raises:
      UserError: if none was chosen.
    """
    chosen = _chosen_data_dir()
    if chosen is None:
        raise UserError("no data folder is chosen; give --data_dir, or the gin macro DATA_DIR")
    return Path(chosen)


def _chosen_data_dir() -> str | None:
    """Returns what SeqIO was last told; a fresh loader knows the latest override."""
    return seqio.utils.LazyTfdsLoader("any:1.0.0").data_dir


def _rotated(split: str, seed: int) -> str:
    """Returns the split in TFDS's notation, begun at another place and wrapped around."""
    percent = seed % 100
    return f"{split}[{percent}%:]+{split}[:{percent}%]" if percent and "[" not in split else split


_BATCH_SIZE = 4096
_NUM_THREADS = 2
_LISTS = frozenset(
    name for name, kind in get_type_hints(InstructionRecord).items() if get_origin(kind) is tuple
)
Columns = dict[str, list[Any]]


def column_batches(
    dataset: str, config: str, split: str, fields: Collection[str]
) -> Iterator[Columns]:
    """Yields some fields of all records of a split, in file order.

    Nothing but these fields is parsed, and texts stay bytes: a pass over 100,000 records takes
    about a second.

    Args:
      dataset: name of a dataset in the data_dir in use.
      config: "leave_one_out" or "product_search".
      split: "train", "validation" or "test"; without any records it yields nothing.
      fields: names of fields of `InstructionRecord`.

    Yields:
      By field, one entry a record: an int or bytes, or a list of them.

    Raises:
      UserError: if a file is damaged.
    """
    if not (paths := record_files(dataset, config, split)):
        return
    hide_accelerators()
    spec = {name: feature_spec(name) for name in fields}
    ds = tf.data.TFRecordDataset([str(path) for path in paths]).batch(_BATCH_SIZE)
    ds = ds.map(lambda batch: tf.io.parse_example(batch, spec))
    options = tf.data.Options()
    options.threading.private_threadpool_size = _NUM_THREADS
    options.autotune.enabled = False
    try:
        for batch in ds.with_options(options).prefetch(1):
            yield {name: _rows(values) for name, values in batch.items()}
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        tfrecords.check_records(paths)
        raise damaged(paths[0].parent, error.message.splitlines()[0]) from None


def record_files(dataset: str, config: str, split: str) -> list[Path]:
    """Returns the files of a split, all of them as written; none where it has no records."""
    folder, place = data_dir_in_use() / dataset, f"{config}/{VERSION}"
    pattern = f"{place}/{dataset}-{split}.tfrecord-*"
    paths = sorted(folder.glob(pattern))
    for path in paths:
        files.check_is_file(path)
    if paths and len(paths) != int(paths[-1].name.rpartition("-")[-1]):
        raise damaged(folder / place, f"{paths[-1].name} is of more files than are there")
    try:
        check_files(folder, f"{place}/*.json", pattern)
    except UserError:
        tfrecords.check_records(paths)  # names the byte, where a record is damaged
        raise
    return paths


def hide_accelerators() -> None:
    """Keeps TensorFlow off the devices that the model trains on."""
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except (RuntimeError, ValueError):
            continue  # TensorFlow has started already, or knows no such device


def as_record(row: Mapping[str, Any]) -> InstructionRecord:
    """Returns the record of a row, in which texts are bytes, as `RecordSource.rows` yields it."""
    return InstructionRecord(**{name: _decoded(value) for name, value in row.items()})


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decoded, value))
    return value.decode() if isinstance(value, bytes) else value


def feature_spec(name: str) -> tf.io.RaggedFeature | tf.io.FixedLenFeature:
    """Returns how a field is parsed."""
    dtype = tf.int64 if name in INTEGERS else tf.string
    if name in _LISTS:
        return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    return tf.io.FixedLenFeature([], dtype)


def _rows(values: tf.Tensor | tf.RaggedTensor) -> list[Any]:
    """Returns one entry a record."""
    if not isinstance(values, tf.RaggedTensor):
        return values.numpy().tolist()
    flat, ends = values.values.numpy().tolist(), values.row_splits.numpy().tolist()
    return [flat[begin:end] for begin, end in itertools.pairwise(ends)]
