"""Records as TFDS files: read back whole by tfds and by SeqIO, in order, and always the same."""

import collections
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds
from test_language import RECORD

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.coverage import aspects_of
from instructrec_jax.manifest import Manifest
from instructrec_jax.pipeline import record_store
from instructrec_jax.records import InstructionRecord

RECORDS = [
    dataclasses.replace(
        RECORD,
        example_id=f"u{n}:2",
        history=() if n == 0 else ("é",) * n,
        preference=("a", "b")[: n % 3],
        specific_intention="" if n == 1 else "Games",
    )
    for n in range(7)
]


def write(folder: Path, splits: dict[str, list[InstructionRecord]], *, in_shard: int = 3) -> None:
    """Writes a config as `build` does, with files of a few records."""
    sizes = {}
    for split, records in splits.items():
        starts = range(0, len(records), in_shard)
        sizes[split] = [
            record_store.write_shard(
                record_store.shard_path(
                    folder, dataset="own", split=split, index=index, num_shards=len(starts)
                ),
                iter(records[start : start + in_shard]),
            )
            for index, start in enumerate(starts)
        ]
    record_store.write_metadata(folder, dataset="own", shards=sizes)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "own" / "leave_one_out" / record_store.VERSION
    write(path, {"train": RECORDS, "test": RECORDS[:2]})
    counts = collections.Counter(
        f"leave_one_out/{split}/{aspects_of(record)}"
        for split, number in (("train", 7), ("test", 2))
        for record in RECORDS[:number]
    )
    Manifest(stage="build", inputs={}, settings={}, counts=dict(counts)).write(tmp_path / "own")
    record_store.use_data_dir(tmp_path)
    return tmp_path


def as_records(dataset) -> list:
    """Returns examples as TFDS gives them as records."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return tuple(plain(part) for part in value.tolist())
        return value.decode() if isinstance(value, bytes) else int(value)

    def record(example):
        example.pop("is_training", None)
        return InstructionRecord(**{name: plain(value) for name, value in example.items()})

    return [record(example) for example in dataset.as_numpy_iterator()]


def test_tfds_reads_every_field_in_order(folder):
    found = tfds.load("own/leave_one_out:2.0.0", data_dir=str(folder), split="train")
    assert as_records(found) == RECORDS


def test_seqio_reads_every_field_in_order(folder):
    source = seqio.TfdsDataSource("own/leave_one_out:2.0.0", tfds_data_dir=str(folder))
    assert as_records(source.get_dataset("train", shuffle=False)) == RECORDS


def test_our_source_adds_whether_it_is_training(folder):
    source = record_store.RecordSource("own", "leave_one_out")
    train = source.get_dataset("train", shuffle=False)
    assert as_records(train) == RECORDS
    assert all(example["is_training"] for example in train.as_numpy_iterator())
    test = source.get_dataset("test", shuffle=False)
    assert not any(example["is_training"] for example in test.as_numpy_iterator())
    assert source.num_input_examples("train") == 7


def test_rows_are_the_records_that_have_what_is_needed(folder):
    every = record_store.RecordSource("own", "leave_one_out")
    assert list(map(record_store.as_record, every.rows("train"))) == RECORDS
    wordy = record_store.RecordSource("own", "leave_one_out", needs=("history", "preference"))
    having = [record for record in RECORDS if record.history and record.preference]
    assert list(map(record_store.as_record, wordy.rows("train"))) == having


def test_shuffled_records_are_the_same_ones_in_another_order(folder):
    source = record_store.RecordSource("own", "leave_one_out")
    first, again, other = (
        as_records(source.get_dataset("train", shuffle=True, seed=seed)) for seed in (137, 137, 5)
    )
    assert first == again
    assert first != other
    assert sorted(map(str, first)) == sorted(map(str, other)) == sorted(map(str, RECORDS))


def test_shards_hold_a_bounded_number_of_records(folder):
    names = sorted(path.name for path in (folder / "own/leave_one_out/2.0.0").glob("*train*"))
    assert names == [f"own-train.tfrecord-0000{n}-of-00003" for n in range(3)]


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    """The hash of a field's name differs between processes; the files must not."""
    program = (
        "import sys, pathlib; from test_record_store import *; "
        "write(pathlib.Path(sys.argv[1]), {'train': RECORDS})"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")],
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
    )
    write(tmp_path / "here", {"train": RECORDS})
    assert files.sha256(tmp_path / "here") == files.sha256(tmp_path / "there")


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path):
    def records():
        yield RECORDS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_store.write_shard(tmp_path / "own-train.tfrecord-00000-of-00001", records())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "config", "split", "needs", "message"),
    [
        ("own", "product_search", "train", (), "no train record of 'own' in its product_search"),
        ("owm", "leave_one_out", "train", (), r"unknown dataset 'owm'; the nearest known: own"),
        ("own", "leave_one_out", "validation", (), "no validation record of 'own'"),
        ("own", "leave_one_out", "tests", (), "no split 'tests'"),
        ("own", "leave_one_out", "train", ("vague_intention",), "has a vague_intention"),
    ],
)
def test_what_is_not_there_is_named(folder, dataset, config, split, needs, message):
    source = record_store.RecordSource(dataset, config, needs=needs)
    with pytest.raises(UserError, match=message):
        source.get_dataset(split)


def test_a_source_counts_the_records_that_have_what_it_needs(folder):
    every = record_store.RecordSource("own", "leave_one_out")
    assert every.splits == ("train", "test")
    wordy = record_store.RecordSource("own", "leave_one_out", needs=("history", "preference"))
    having = [record for record in RECORDS if record.history and record.preference]
    assert wordy.num_input_examples("train") == len(having) == 4
    vague = record_store.RecordSource("own", "leave_one_out", needs=("vague_intention",))
    assert vague.splits == ()


def test_a_source_follows_the_data_dir_of_the_run(folder, tmp_path):
    source = record_store.RecordSource("own", "leave_one_out")
    source.get_dataset("train")
    record_store.use_data_dir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="elsewhere"):
        source.get_dataset("train")


def test_without_a_data_dir_the_user_is_told_to_name_one():
    seqio.set_tfds_data_dir_override(None)
    with pytest.raises(UserError, match="--data_dir"):
        record_store.data_dir_in_use()


@pytest.mark.parametrize("damage", ["fifo", "one is missing", "all are missing"])
@pytest.mark.parametrize("way", ["rows", "get_dataset"])
def test_files_of_records_that_are_not_there_are_told(folder, damage, way):
    first, *others = sorted(folder.rglob("own-train.tfrecord-*"))
    first.unlink()
    if damage == "fifo":
        os.mkfifo(first)
    for path in others if damage == "all are missing" else ():
        path.unlink()
    source = record_store.RecordSource("own", "leave_one_out")
    with pytest.raises(UserError, match=r"own-train\.tfrecord|no file of train records"):
        next(iter(getattr(source, way)("train")))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"splits": 5, "featuresDict": 5}'])
def test_descriptions_of_records_that_are_damaged_are_told(folder, name, text):
    (damaged,) = folder.rglob(name)
    damaged.write_text(text, encoding="utf-8")
    source = record_store.RecordSource("own", "leave_one_out")
    try:
        next(iter(source.get_dataset("train")))
    except UserError as error:
        assert str(folder) in str(error)
