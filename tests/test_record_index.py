"""Records read by position, and checked."""

import numpy as np
import pytest
import tensorflow as tf
from test_record_store import RECORDS, folder  # noqa: F401

from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import loader, record_store, tfrecords
from instructrec_jax.pipeline.record_index import RecordIndex, parsed
from instructrec_jax.pipeline.record_store import RecordSource


@pytest.fixture
def index(folder) -> RecordIndex:  # noqa: F811
    """Of records in several files."""
    return RecordIndex(RecordSource("own", "leave_one_out"), "train")


def test_any_records_are_read_in_any_order(index):
    assert len(index) == len(RECORDS)
    positions = [len(RECORDS) - 1, 0, 3, 0]
    assert index.read(positions) == [record_store.serialize(RECORDS[p]) for p in positions]


def test_a_record_is_parsed_as_tfds_reads_it(index):
    (expected,) = RecordSource("own", "leave_one_out").get_dataset("train", shuffle=False).take(1)
    found = parsed(tf.constant(index.read([0])[0]))
    assert found.keys() == expected.keys() - {"is_training"}
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name])


def test_the_records_with_some_texts_are_found(index):
    needs = {"history", "preference"}
    having = [i for i, record in enumerate(RECORDS) if record.history and record.preference]
    assert index.positions_with(needs).tolist() == having


def flip(folder, at=40):  # noqa: F811
    """Changes a bit of the second file."""
    path = sorted(folder.rglob("own-train.tfrecord-*"))[1]
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    return content


AT_FIRST = r"damaged \(the record at byte 0 of own-train.*00001-of"


def test_a_flipped_bit_is_named_with_its_file_and_byte(folder, index):  # noqa: F811
    flip(folder)
    first = int(index._first[1])
    assert len(index.read([0, first - 1])) == 2
    with pytest.raises(UserError, match=AT_FIRST):
        index.read([0, first])


@pytest.mark.parametrize("at", [3, 40])  # in the length, in the record
@pytest.mark.parametrize("way", ["rows", "get_dataset", "files"])
def test_every_way_to_open_records_names_file_and_byte_of_a_flipped_bit(folder, at, way):  # noqa: F811
    if way == "files":  # which compares hashes
        (manifest,) = folder.rglob("manifest.json")
        read_manifest(manifest.parent).write_finished(manifest.parent)
    flip(folder, at)
    with pytest.raises(UserError, match=AT_FIRST):
        found = getattr(RecordSource("own", "leave_one_out"), way)("train")
        list(loader.numpy_batches(found) if way == "get_dataset" else found)


def test_a_bit_flipped_while_records_are_read_is_named(folder, monkeypatch):  # noqa: F811
    flip(folder)
    monkeypatch.setattr(record_store, "check_files", lambda *_: None)
    source = RecordSource("own", "leave_one_out")
    with pytest.raises(UserError, match=AT_FIRST):
        list(source.rows("train"))


def test_a_second_record_is_named_by_its_own_byte(folder):  # noqa: F811
    path = sorted(folder.rglob("own-train.tfrecord-*"))[1]
    one = path.read_bytes()
    flip(folder)
    path.write_bytes(one + path.read_bytes())
    with pytest.raises(UserError, match=rf"the record at byte {len(one)} of "):
        tfrecords.check_records([path])


@pytest.mark.parametrize("end", [-3, -20])
def test_a_file_cut_short_is_named_when_it_is_opened(folder, end):  # noqa: F811
    path = sorted(folder.rglob("own-train.tfrecord-*"))[0]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"the record at byte \d+ of own-train.*00000-of"):
        RecordIndex(RecordSource("own", "leave_one_out"), "train")
