"""Scoring: the same numbers however candidates are laid out, and no row lost or doubled."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from score_toy import TASKS, score_toy, toy_data
from tiny_model import random_tokens, ranking_batch, tiny_config, tiny_model

from instructrec_jax import manifest
from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.models.encoder_decoder import training_logits
from instructrec_jax.models.losses import cross_entropy
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.scoring import scores as score_files
from instructrec_jax.scoring.packing import pack_candidates
from instructrec_jax.scoring.scorer import make_scorer
from instructrec_jax.scoring.scores import read_scores
from instructrec_jax.stages.evaluation import EvaluationSettings, make_evaluate

# The log-likelihoods themselves.


def one_row_per_candidate(batch):
    """The slow way: every candidate is a training example of its own."""
    targets = batch["candidate_tokens"]
    rows, candidates, length = targets.shape
    flat = targets.reshape(-1, length)
    examples = {
        "encoder_input_tokens": np.repeat(batch["encoder_input_tokens"], candidates, axis=0),
        "decoder_input_tokens": np.pad(flat, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": flat,
    }

    def log_likelihood(model, examples):
        logits, target_logits = training_logits(model, examples)
        weights = (examples["decoder_target_tokens"] > 0).astype(np.float32)
        total = lambda *row: -cross_entropy(*row, z_loss=0.0, label_smoothing=0.0)[0]  # noqa: E731
        return jax.vmap(total)(logits, target_logits, weights)

    found = jax.jit(log_likelihood)(tiny_model(), examples).reshape(rows, candidates)
    return np.where(targets.any(-1), found, -np.inf)


@pytest.fixture(scope="module")
def batch():
    made = ranking_batch(0, rows=8, candidates=5, inputs=20, targets=10)
    made["candidate_tokens"][2, 4] = 0
    made["candidate_tokens"][7] = 0
    return made


@pytest.fixture(scope="module")
def expected(batch):
    return one_row_per_candidate(batch)


@pytest.fixture(scope="module")
def score_on_8():
    return make_scorer(make_mesh(MeshSettings()))


def tokens_of(batch, inputs, candidates):
    return batch | {"encoder_input_tokens": inputs, "candidate_tokens": candidates}


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [MeshSettings(), MeshSettings(data=2, fsdp=2, tensor=2), None])
def test_log_likelihoods_are_those_of_one_row_per_candidate(batch, expected, settings):
    mesh = make_mesh(settings) if settings else make_mesh(MeshSettings(), jax.devices()[:1])
    found, num_tokens = make_scorer(mesh)(tiny_model(), batch)
    assert found.dtype == np.float32
    close(found, expected)
    np.testing.assert_array_equal(num_tokens, (batch["candidate_tokens"] > 0).sum(-1))


def test_batch_size_padding_bucket_and_order_change_nothing(batch, expected, score_on_8):
    inputs, candidates = batch["encoder_input_tokens"], batch["candidate_tokens"]
    longer = tokens_of(
        batch,
        np.pad(inputs, ((0, 8), (0, 4))),
        np.pad(candidates, ((0, 8), (0, 3), (0, 6))),
    )
    found, _ = score_on_8(tiny_model(), longer)
    close(found[:8, :5], expected)
    assert np.isneginf(found[8:]).all() and np.isneginf(found[:, 5:]).all()
    order = np.random.default_rng(0).permutation(5)
    found, _ = score_on_8(tiny_model(), tokens_of(batch, inputs, candidates[:, order]))
    close(found, expected[:, order])


def test_candidates_that_need_several_rows_get_the_same_numbers(score_on_8):
    rng = np.random.default_rng(1)
    batch = {
        "encoder_input_tokens": random_tokens(rng, rng.integers(2, 20, 8), 20),
        "candidate_tokens": random_tokens(rng, rng.integers(60, 100, (8, 4)), 100),
    }
    assert pack_candidates(batch)["packed_tokens"].shape[1:] == (2, 256)
    close(score_on_8(tiny_model(), batch)[0], one_row_per_candidate(batch))


def test_candidates_are_packed_as_the_docstring_says():
    tokens = np.array([[[5, 1, 0], [6, 7, 1]]], np.int32)
    found = pack_candidates({"candidate_tokens": tokens, "target_index": 1}, row_lengths=(6,))
    assert found["packed_tokens"].tolist() == [[[5, 1, 6, 7, 1, 0]]]
    assert found["packed_candidates"].tolist() == [[[1, 1, 2, 2, 2, 0]]]
    assert found["num_tokens"].tolist() == [[2, 3]]
    assert found["target_index"] == 1 and "candidate_tokens" not in found


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([(7,), (8, 12), (30,)]),
)
def test_every_candidate_lies_whole_in_one_row(lengths, row_lengths):
    rng = np.random.default_rng(0)
    tokens = random_tokens(rng, np.array(lengths), 7)
    found = pack_candidates({"candidate_tokens": tokens}, row_lengths)
    assert found["packed_tokens"].shape[-1] in row_lengths
    for example, candidates in enumerate(tokens):
        rows = found["packed_tokens"][example], found["packed_candidates"][example]
        for index, candidate in enumerate(candidates):
            own = [row[owner == index + 1] for row, owner in zip(*rows, strict=True)]
            own = [row.tolist() for row in own if len(row)]
            assert own == ([candidate[candidate > 0].tolist()] if candidate.any() else [])
        assert (rows[0] > 0).sum() == (candidates > 0).sum()
        for owner in rows[1]:  # side by side: padding comes last only
            assert (np.diff((owner > 0).astype(int)) <= 0).all()


def test_a_candidate_longer_than_any_row_is_refused():
    tokens = np.full((1, 1, 9), 5, np.int32)
    with pytest.raises(UserError, match="a candidate has 9 tokens and a packed row holds 8"):
        pack_candidates({"candidate_tokens": tokens}, row_lengths=(4, 8))


def test_a_batch_is_refused_that_the_devices_cannot_share(score_on_8):
    with pytest.raises(UserError, match="multiple of data x fsdp = 8"):
        score_on_8(tiny_model(), ranking_batch(0, rows=6))


# Rows and files.


def test_padding_rows_and_candidates_never_become_rows():
    batch = ranking_batch(0, rows=3)
    batch["example_id"][1] = ""
    batch["candidate_tokens"][0, 1] = 0
    values = np.arange(9, dtype=np.float32).reshape(3, 3)
    num_tokens = (batch["candidate_tokens"] > 0).sum(-1)
    rows = score_files.batch_rows("A7", batch, values, num_tokens)
    assert [row["example_id"] for row in rows] == ["u0:3", "u2:3"]
    assert rows[0]["log_likelihood"].tolist() == [0, 2]
    assert rows[0]["candidate_ids"].tolist() == batch["candidate_ids"][0, [0, 2]].tolist()
    assert rows[1]["log_likelihood"].tolist() == [6, 7, 8]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    store = CheckpointStore(folder / "checkpoints", keep=1)
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    store.save(5, {"model": tiny_model(**sizes)})
    store.close()
    return folder


@pytest.fixture(scope="module")
def finished(toy_records, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "test"
    score_toy(toy_records, checkpoint, folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run to damage."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished, folder], check=True)
    return folder


def tables(folder: Path) -> dict[str, pa.Table]:
    paths = sorted(folder.glob("*.parquet"))
    return {path.name: pq.read_table(path).replace_schema_metadata() for path in paths}


def test_every_example_of_the_split_is_scored_once_by_every_template(finished, toy_prepared):
    from instructrec_jax.data.prepared import read_prepared

    lists = [row for row in read_prepared(toy_prepared).candidates if row.split == "test"]
    by_id = {row.example_id: row for row in lists if row.protocol == "leave_one_out"}
    found = read_scores(finished)
    pairs = list(zip(found.template_id, found.example_id, strict=True))
    assert len(set(pairs)) == len(pairs)
    assert {name for template, name in pairs if template == "A7"} == by_id.keys()
    assert len(by_id) % 8, "the last batch has padding rows"
    for index, name in enumerate(found.example_id):
        wanted = by_id[name]
        assert found.candidate_ids[index].tolist() == list(wanted.candidate_ids)
        assert found.candidate_ids[index][found.target_index[index]] == wanted.target_id
        assert np.isfinite(found.log_likelihood[index]).all()
    assert found.metadata["teacher"] == "extractive-1"
    assert found.metadata["checkpoint_step"] == 5 and found.metadata["split"] == "test"
    assert sum(manifest.read_manifest(finished).counts.values()) == len(pairs)
    assert (finished / "config.gin").read_text() == "A = 1\n"


def test_ranks_from_the_files_are_those_that_training_measures(
    toy_records, checkpoint, finished, score_on_8
):
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    data = toy_data(toy_records)
    data.open("toy.A7.grouped", vocab_size=600)
    settings = EvaluationSettings(tasks=TASKS, split="test", batch_size=16, normaliser="mean")
    measured = make_evaluate(settings, data, score_on_8)(tiny_model(**sizes))
    found = read_scores(finished)
    for task, template in zip(TASKS, ("A7", "C10.specific"), strict=True):
        own = [index for index, name in enumerate(found.template_id) if name == template]
        values = np.stack([found.log_likelihood[i] / found.num_tokens[i] for i in own])
        metrics = ranking.evaluate(ranking.ranks(values, found.target_index[own]))
        for name, value in metrics.items():
            assert measured[f"test/{task}/{name}"] == pytest.approx(value)


def test_a_finished_run_is_reused(toy_records, checkpoint, finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    with caplog.at_level("INFO"):
        score_toy(toy_records, checkpoint, finished)
    assert "nothing left to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


@pytest.mark.parametrize("batch_size", [16, 64])
def test_the_batch_size_changes_no_score(toy_records, checkpoint, finished, tmp_path, batch_size):
    score_toy(toy_records, checkpoint, tmp_path, batch_size=batch_size, batches_per_part=9)
    one, other = read_scores(finished), read_scores(tmp_path)
    assert one.example_id == other.example_id and one.template_id == other.template_id
    close(np.concatenate(one.log_likelihood), np.concatenate(other.log_likelihood))


def test_a_part_that_was_lost_is_scored_again(toy_records, checkpoint, finished, copy):
    (copy / score_files.part_name("A7", 1)).unlink()
    with pytest.raises(UserError, match=r"\d+ rows of \d+; run `instructrec score`"):
        read_scores(copy)
    score_toy(toy_records, checkpoint, copy)
    assert tables(copy) == tables(finished)


def test_a_part_that_cannot_be_read_is_named_by_the_next_run(toy_records, checkpoint, copy):
    (copy / score_files.part_name("A7", 1)).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"A7\.part-00001\.parquet is not a readable"):
        score_toy(toy_records, checkpoint, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, r"settings\['split'\] was 'test'"),
        ({"batch_size": 16}, "batch_size"),
        ({"model": tiny_config(vocab_size=600)}, r"settings\['model'\]"),
    ],
)
def test_the_folder_of_another_run_is_refused(toy_records, checkpoint, finished, change, message):
    with pytest.raises(UserError, match=f"holds another run: .*{message}"):
        score_toy(toy_records, checkpoint, finished, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": tiny_config(vocab_size=600)}, "is of another size than MODEL: there "),
        ({"model": tiny_config(vocab_size=99)}, "the model only 99 rows"),
        ({"batch_size": 4}, "BATCH_SIZE is 4; expected a multiple of data x fsdp = 8"),
        ({"tasks": ["toy.A7.grouped", "ml_100k.A8.grouped"]}, "expected some of one dataset"),
        ({"tasks": []}, "expected some of one dataset"),
    ],
)
def test_a_mistake_leaves_no_folder_behind_that_would_refuse_the_next_try(
    toy_records, checkpoint, tmp_path, change, message
):
    with pytest.raises(UserError, match=message):
        score_toy(toy_records, checkpoint, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_a_task_named_twice_is_scored_once(toy_records, checkpoint, tmp_path):
    score_toy(toy_records, checkpoint, tmp_path, tasks=["toy.A7", "toy.A7.grouped"], num_batches=1)
    assert len(read_scores(tmp_path).example_id) == 8


def test_a_dry_run_writes_nothing(checkpoint, tmp_path, caplog):
    with caplog.at_level("INFO"):
        score_toy("no such folder", checkpoint, tmp_path / "run", dry_run=True)
    assert "toy.A7.grouped" in caplog.text
    assert re.search(
        r"[\d,]+ parameters, mesh data=8, fsdp=1, tensor=1, [\d.]+ MiB of parameters per device, "
        r"8 rows a batch",
        caplog.text,
    )
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_batches_holds_across_a_restart(toy_records, checkpoint, tmp_path):
    score_toy(toy_records, checkpoint, tmp_path, num_batches=3)
    found = read_scores(tmp_path)
    assert found.template_id.count("A7") == found.template_id.count("C10.specific") == 24
    (tmp_path / score_files.part_name("A7", 1)).unlink()
    score_toy(toy_records, checkpoint, tmp_path, num_batches=3)
    again = read_scores(tmp_path)
    assert again.example_id == found.example_id


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_row_is_lost_or_doubled(
    toy_records, checkpoint, finished, tmp_path
):
    folder = tmp_path / "killed"
    script = Path(__file__).parent / "score_toy.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(toy_records), str(checkpoint), str(folder)],
        cwd=script.parents[1],
        env=os.environ,
    )
    while not (folder / score_files.part_name("A7", 0)).exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(np.random.default_rng().uniform(0, 0.8))  # another moment each time
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(tables(folder)) < len(tables(finished))
    with pytest.raises(UserError, match="a run that has not finished"):
        read_scores(folder)
    score_toy(toy_records, checkpoint, folder)
    assert tables(folder) == tables(finished)
