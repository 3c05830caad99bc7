"""Records read by position, and checked."""

import numpy as np
import pytest
import tensorflow as tf
from test_record_store import RECORDS, folder  # noqa: F401

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import record_store
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


def test_a_flipped_bit_is_named_with_its_file_and_byte(folder, index):  # noqa: F811
    path = sorted(folder.rglob("own-train.tfrecord-*"))[1]
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    first = int(index._first[1])
    assert len(index.read([0, first - 1])) == 2
    with pytest.raises(UserError, match=r"damaged \(the record at byte 0 of own-train.*00001-of"):
        index.read([0, first])


@pytest.mark.parametrize("end", [-3, -20])
def test_a_file_cut_short_is_named_when_it_is_opened(folder, end):  # noqa: F811
    path = sorted(folder.rglob("own-train.tfrecord-*"))[0]
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"the record at byte \d+ of own-train.*00000-of"):
        RecordIndex(RecordSource("own", "leave_one_out"), "train")
