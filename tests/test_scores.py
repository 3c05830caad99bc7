"""Score files: what is written comes back, and what cannot be read is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec_jax.errors import UserError
from instructrec_jax.scoring import scores as score_files
from instructrec_jax.scoring.scores import read_scores


def row(name: str, size: int) -> dict:
    return {
        "example_id": name,
        "template_id": "A7",
        "candidate_ids": np.arange(size, dtype=np.int32),
        "log_likelihood": -np.arange(size, dtype=np.float32),
        "num_tokens": np.full(size, 2, np.int32),
        "num_chars": np.full(size, 9, np.int32),
        "target_index": size - 1,
    }


def test_scores_come_back_as_they_were_written(tmp_path):
    for index, names in enumerate((["a", "b"], ["c"])):
        path = tmp_path / score_files.part_name("A7", index)
        rows = [row(name, size) for size, name in enumerate(names, start=2 + index)]
        score_files.write_part(path, rows, {"checkpoint_step": 7})
    found = read_scores(tmp_path)
    assert found.example_id == ["a", "b", "c"] and found.template_id == ["A7"] * 3
    assert [values.tolist() for values in found.candidate_ids] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert found.log_likelihood[1].dtype == np.float32
    assert found.log_likelihood[1].tolist() == [0, -1, -2]
    assert found.target_index.tolist() == [1, 2, 2]
    assert found.metadata == {"checkpoint_step": 7}
    assert score_files.num_finished_parts(tmp_path, "A7") == 2
    assert score_files.num_rows(tmp_path, "A7") == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a readable Parquet"),
        (lambda path: path.write_text("{}"), "not a readable Parquet"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "not a part written by"),
    ],
)
def test_an_unreadable_part_is_named(tmp_path, damage, message):
    path = tmp_path / score_files.part_name("A7", 0)
    score_files.write_part(path, [row("a", 2)], {})
    damage(path)
    with pytest.raises(UserError, match=rf"A7\.part-00000\.parquet is {message}"):
        read_scores(tmp_path)


def test_a_folder_without_scores_is_refused(tmp_path):
    with pytest.raises(UserError, match="no scores in"):
        read_scores(tmp_path)


# The stage.
