"""Scores of other systems, T5X's and plain lines: read, refused, and reported like our own."""

import json

import columns
import numpy as np
import pytest
from report_toy import TEST, VALIDATION, make_data, run, scenario, score_rows, write_scores

from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest
from instructrec_jax.scores import importers
from instructrec_jax.scores.parts import read_scores

# What `gin.config_str` makes of T5X's run, long lines broken as it breaks them.
CONFIG = """import __main__ as infer_script
# Macros:
CHECKPOINT_PATH = \\
    'gs://bucket/flan_t5_xl/checkpoint_1140000'
SPLIT = '{split}'

utils.DatasetConfig.batch_size = 32
utils.DatasetConfig.split = %SPLIT
utils.RestoreCheckpointConfig.path = %CHECKPOINT_PATH
"""


def lines_of(rows):
    """One line per candidate; T5X turns single whole numbers into floats and pads targets."""
    for index, row in enumerate(rows):
        for place, item in enumerate(row["candidate_ids"]):
            inputs = {
                "example_id": row["example_id"],
                "candidate_id": float(item),
                "candidate_num_chars": float(row["num_chars"][place]),
                "idx": [index, place],
                "is_correct": place == row["target_index"],
                "targets": [7] * (row["num_tokens"][place] - 1) + [1, 0, 0],
                **scenario(row["template_id"]),
            }
            yield {"inputs": inputs, "score": row["log_likelihood"][place]}


def write_lines(folder, task, lines, *, shard=0, shards=1):
    path = folder / f"{task}-score.jsonl-{shard:05d}-of-{shards:05d}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_name(path.name + ".COMPLETED").touch()
    return path


def write_t5x_scores(folder, data, split, bonuses):
    folder.mkdir()
    for template, bonus in bonuses.items():
        protocol = "product_search" if template.startswith("B") else "leave_one_out"
        examples = [e for e in data.candidates if (e.protocol, e.split) == (protocol, split)]
        rows = score_rows(template, examples, bonus=bonus)
        write_lines(folder, f"toy.{template}.rank", lines_of(rows))
    (folder / "config.gin").write_text(CONFIG.format(split=split))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, data = tmp_path_factory.mktemp("t5x"), make_data()
    (root / "prepared").mkdir()
    columns.write_prepared(root / "prepared", data)
    Manifest(stage="prepare", inputs={}, settings={"dataset": "toy"}).write(root / "prepared")
    for split, bonuses in (("validation", VALIDATION), ("test", TEST)):
        write_scores(root / f"own_{split}", data, split, bonuses)
        write_t5x_scores(root / split, data, split, bonuses)
    (root / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    return root


def test_what_t5x_wrote_is_read_as_our_own_scores(folders):
    own, found = read_scores(folders / "own_test"), importers.read_t5x_scores(folders / "test")
    assert found.example_id == own.example_id and found.template_id == own.template_id
    assert found.scenarios == own.scenarios
    for name in ("candidate_ids", "log_likelihood", "num_tokens", "num_chars"):
        for row, expected in zip(getattr(found, name), getattr(own, name), strict=True):
            np.testing.assert_array_equal(row, expected)
            assert row.dtype == expected.dtype
    np.testing.assert_array_equal(found.target_index, own.target_index)
    assert found.metadata["split"] == "test"
    assert found.metadata["checkpoint"] == "gs://bucket/flan_t5_xl/checkpoint_1140000"
    assert found.metadata["checkpoint_step"] == 1140000


def test_the_report_of_t5x_scores_has_the_numbers_of_our_own(folders, tmp_path):
    own = {"model": (folders / "own_validation", folders / "own_test")}
    native = run(folders, tmp_path / "own", scores=own)
    found = run(folders, tmp_path / "t5x")
    for name, expected in native["scenarios"].items():
        for part in expected.keys() - {"protocol"}:
            assert found["scenarios"][name][part] == expected[part], (name, part)
        facts = found["scenarios"][name]["protocol"]["systems"]["model"]
        assert facts["checkpoint_step"] == 1140000 and facts["written_by"] == "t5x"
        assert "t5x.infer" in facts["score_command"]


def test_without_the_config_split_and_checkpoint_are_unknown(folders, tmp_path):
    rows = [json.loads(line) for line in next(folders.glob("test/toy.A7*-00001")).open()]
    write_lines(tmp_path, "toy.A7.rank", rows)
    metadata = importers.read_t5x_scores(tmp_path).metadata
    assert metadata["split"] is None and metadata["checkpoint_step"] is None
    assert metadata["checkpoint"] == importers.UNKNOWN


def test_exchanged_folders_of_t5x_are_noticed(folders, tmp_path):
    exchanged = {"model": (folders / "test", folders / "validation")}
    with pytest.raises(UserError, match="exchanged"):
        run(folders, tmp_path / "out", scores=exchanged)


def test_shards_are_put_together_in_any_order_of_rows(folders, tmp_path):
    rows = [json.loads(line) for line in next(folders.glob("test/toy.A9*-00001")).open()]
    half = len(rows) // 2 // 10 * 10
    write_lines(tmp_path, "toy.A9.rank", rows[half:][::-1], shard=1, shards=2)
    write_lines(tmp_path, "toy.A9.rank", rows[:half], shard=0, shards=2)
    found = importers.read_t5x_scores(tmp_path)
    assert len(found.example_id) == len(rows) // 10
    expected = {
        (row["inputs"]["example_id"], *row["inputs"]["idx"][1:]): row["score"] for row in rows
    }
    for example, values in zip(found.example_id, found.log_likelihood, strict=True):
        for place, value in enumerate(values):
            assert value == np.float32(expected[example, place])


def _without(name):
    def change(rows):
        del rows[3]["inputs"][name]

    return change


def _doubled(rows):
    rows.append(rows[0])


def _cut(rows):
    del rows[4]


def _two_right(rows):
    for row in rows[:10]:
        row["inputs"]["is_correct"] = True


def _two_families(rows):
    rows[0]["inputs"]["family"] = "play"


def _no_number(rows):
    rows[2]["score"] = "high"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("candidate_id"), r"line 4 has no field 'candidate_id'; score with gin/t5x/score"),
        (_without("example_id"), "line 4 has no field 'example_id'"),
        (_doubled, r"has candidates \[0, 0, 1"),
        (_cut, r"has candidates \[0, 1, 2, 3, 5"),
        (_two_right, "has 10 correct candidates"),
        (_two_families, "expected one family"),
        (_without("family"), "line 4 has no field 'family'"),
        (_no_number, "line 3 is no score"),
    ],
)
def test_rows_that_make_no_sense_are_refused(folders, tmp_path, change, message):
    rows = [json.loads(line) for line in next(folders.glob("test/toy.A7*-00001")).open()]
    change(rows)
    write_lines(tmp_path, "toy.A7.rank", rows)
    with pytest.raises(UserError, match=message):
        importers.read_t5x_scores(tmp_path)


def test_a_line_cut_short_is_named(folders, tmp_path):
    path = write_lines(tmp_path, "toy.A7.rank", [{"inputs": {}, "score": 1.0}])
    path.write_text(path.read_text()[:-4])
    with pytest.raises(UserError, match="line 1 is no score"):
        importers.read_t5x_scores(tmp_path)


def test_unfinished_runs_and_other_tasks_are_refused(tmp_path):
    path = write_lines(tmp_path, "toy.A7.rank", [], shard=0, shards=2)
    with pytest.raises(UserError, match=r"has not finished scoring toy\.A7\.rank .* shard 1 of 2"):
        importers.read_t5x_scores(tmp_path)
    write_lines(tmp_path, "toy.A7.rank", [], shard=1, shards=2)
    path.with_name(path.name + ".COMPLETED").unlink()
    with pytest.raises(UserError, match=r"shard 0 of 2 or its \.COMPLETED"):
        importers.read_t5x_scores(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_lines(other, "toy.A7", [])
    with pytest.raises(UserError, match=r"T5X's scores of toy\.A7; expected .*\.rank"):
        importers.read_t5x_scores(other)


def test_plain_lines_of_any_system_are_read_as_scores(tmp_path):
    path = tmp_path / "bm25.jsonl"
    lines = [
        {"family": "play", "example_id": "u:3", "candidate_ids": [5, 2], "scores": [0.5, 2]},
        {
            **{"family": "product_search", "query": "specific", "template": "tuned"},
            **{"example_id": "item:4", "candidate_ids": [7, 1, 3], "scores": [1, 2, 3]},
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = importers.read_any_scores(path)
    assert found.example_id == ["u:3", "item:4"] and found.template_id == ["play", "tuned"]
    assert found.scenarios == {"play": "play", "tuned": "product_search.specific"}
    assert found.log_likelihood[0].tolist() == [0.5, 2.0] and found.num_tokens == [None, None]
    assert found.target_index.tolist() == [-1, -1]
    assert found.metadata == {"system": "bm25", "split": None}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2 is no score"),
        ('{"example_id"', "line 2 is no score"),
        ('{"example_id": "a", "candidate_ids": [1], "scores": [1]}', "has no field 'family'"),
        ('{"family": "f", "example_id": "a", "candidate_ids": [1], "score": [1]}', "unknown f"),
        ('{"family": "f", "example_id": "a", "candidate_ids": [1, 2], "scores": [1]}', "as many"),
        ('{"family": "f", "example_id": "a", "candidate_ids": [], "scores": []}', "as many"),
        ('{"family": 3, "example_id": "a", "candidate_ids": [1], "scores": [1]}', "family is 3"),
        ('{"family": "f", "example_id": "a", "candidate_ids": [1], "scores": [NaN]}', "NaN"),
        (
            '{"family": "f", "query": "q", "template": "t", "example_id": "a", '
            '"candidate_ids": [1], "scores": [1]}',
            "template 't' is of .* another family or query before",
        ),
    ],
)
def test_plain_lines_that_make_no_sense_are_named(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    first = {"family": "f", "template": "t", "example_id": "b", "candidate_ids": [1], "scores": [1]}
    path.write_text(json.dumps(first) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        importers.read_any_scores(path)


def test_a_file_without_lines_is_refused(tmp_path):
    (tmp_path / "own.jsonl").touch()
    with pytest.raises(UserError, match="holds no scores"):
        importers.read_any_scores(tmp_path / "own.jsonl")
