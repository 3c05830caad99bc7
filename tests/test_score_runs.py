"""Scoring runs on tasks: every row once, whatever is killed, lost, repeated or shared."""

import dataclasses
import os
import re
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest
from score_toy import TASKS, save_toy_model, score_toy, toy_data
from tiny_model import tiny_config, tiny_model
from train_toy import MODEL

from instructrec_jax import manifest
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.scores.parts import part_name, read_scores
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.evaluate import ValidationSettings, make_evaluate
from instructrec_jax.teacher.extractive import ExtractiveTeacher

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("trained"))


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


def parts(folder: Path) -> dict[str, bytes]:
    paths = sorted(folder.glob("*.parquet"))
    return {path.name: path.read_bytes() for path in paths}


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
    assert found.metadata["teacher"] == ExtractiveTeacher.name
    assert found.metadata["checkpoint_step"] == 5 and found.metadata["split"] == "test"
    assert sum(manifest.read_manifest(finished).counts.values()) == len(pairs)
    assert (finished / "config.gin").read_text() == "A = 1\n"


def test_ranks_from_the_files_are_those_that_training_measures(toy_records, checkpoint, finished):
    sizes = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}
    data = toy_data(toy_records)
    vocabulary = data.open("toy.A7.grouped", vocab_size=600)
    settings = ValidationSettings(tasks=TASKS, split="test", batch_size=16, normaliser="mean")
    scorer = Scorer(make_mesh(MeshSettings()))
    measure = make_evaluate(settings, data, scorer, vocabulary=vocabulary)
    measured = measure(tiny_model(**sizes))
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


def test_the_size_of_steps_and_shards_changes_no_score(toy_records, checkpoint, finished, tmp_path):
    score_toy(toy_records, checkpoint, tmp_path, step_tokens=600, shard_size=100)
    one, other = read_scores(finished), read_scores(tmp_path)
    assert one.example_id == other.example_id and one.template_id == other.template_id
    values = [np.concatenate(found.log_likelihood) for found in (one, other)]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def test_a_part_that_was_lost_is_scored_again(toy_records, checkpoint, finished, copy):
    (copy / part_name("A7", 1)).unlink()
    with pytest.raises(UserError, match=r"\d+ rows of \d+; run `instructrec score`"):
        read_scores(copy)
    score_toy(toy_records, checkpoint, copy)
    assert parts(copy) == parts(finished)


def test_a_part_that_cannot_be_read_is_named_by_the_next_run(toy_records, checkpoint, copy):
    (copy / part_name("A7", 1)).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"A7\.part-00001\.parquet has changed"):
        score_toy(toy_records, checkpoint, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "validation"}, r"settings\['split'\] was 'test'"),
        ({"shard_size": 32}, "shard_size"),
        ({"step_tokens": 64}, "step_tokens"),
        ({"model": dataclasses.replace(MODEL, dropout_rate=0.2)}, r"settings\['model'\]"),
    ],
)
def test_the_folder_of_another_run_is_refused(toy_records, checkpoint, finished, change, message):
    with pytest.raises(UserError, match=f"holds another run: .*{message}"):
        score_toy(toy_records, checkpoint, finished, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": tiny_config(vocab_size=600)}, "is of another size than MODEL: there "),
        ({"model": tiny_config(vocab_size=99)}, "vocab_size is 600, not 99"),
        ({"tasks": ["toy.A7.grouped", "ml_100k.A8.grouped"]}, "expected some of one dataset"),
        ({"tasks": []}, r"tasks is \[\]; expected a list"),
    ],
)
def test_a_mistake_leaves_no_folder_behind_that_would_refuse_the_next_try(
    toy_records, checkpoint, tmp_path, change, message
):
    with pytest.raises(UserError, match=message):
        score_toy(toy_records, checkpoint, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_a_task_named_twice_is_scored_once(toy_records, checkpoint, tmp_path):
    score_toy(toy_records, checkpoint, tmp_path, tasks=["toy.A7", "toy.A7.grouped"], num_requests=8)
    assert len(read_scores(tmp_path).example_id) == 8


def test_a_dry_run_writes_nothing(checkpoint, tmp_path):
    found = score_toy("no such folder", checkpoint, tmp_path / "run", dry_run=True)
    model, work, data, of_checkpoint, verdict = found.as_text().splitlines()
    assert re.search(r"[\d,]+ parameters, [\d.]+ MiB on each of 8 devices \(data=8\)$", model)
    assert "toy.A7.grouped, toy.C10.specific.grouped, split test, into" in work
    assert "no such folder" in data
    assert f"found: {checkpoint}" in of_checkpoint and of_checkpoint.endswith("(native), step 5")
    assert verdict.split(maxsplit=2)[2] == "would stop because of data"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_requests_and_sees_what_the_output_folder_holds(
    toy_records, checkpoint, tmp_path
):
    settings = {"num_requests": 8, "dry_run": True}
    found = score_toy(toy_records, checkpoint, tmp_path / "run", **settings)
    assert found.would_start and found.as_text().endswith("verdict     would start")
    assert found.rows["work"].startswith("16 requests: toy.A7.grouped")
    assert found.rows["data"] == f"found: 16 requests in {toy_records}"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("")
    found = score_toy(toy_records, checkpoint, tmp_path / "run", **settings)
    assert found.stops == ["work"] and "is not empty" in found.rows["work"]
    found = score_toy(toy_records, tmp_path / "none", tmp_path / "run", **settings)
    assert found.stops == ["checkpoint"]
    assert "no finished checkpoint in" in found.rows["checkpoint"]


def test_a_limit_of_requests_holds_across_a_restart(toy_records, checkpoint, tmp_path):
    score_toy(toy_records, checkpoint, tmp_path, num_requests=24)
    found = read_scores(tmp_path)
    assert found.template_id.count("A7") == found.template_id.count("C10.specific") == 24
    (tmp_path / part_name("A7", 1)).unlink()
    score_toy(toy_records, checkpoint, tmp_path, num_requests=24)
    again = read_scores(tmp_path)
    assert again.example_id == found.example_id


def start(*folders) -> BaseProcess:
    """Starts a process that scores the toy; what it says goes into OUTPUT_DIR.log."""
    return forked.start("score_toy.py", *folders, log=Path(f"{folders[-1]}.log"))


def wait_for(path: Path, process: BaseProcess) -> None:
    while not path.exists():
        assert process.exitcode is None, "it ended before"
        time.sleep(0.01)


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    toy_records, checkpoint, finished, tmp_path
):
    """The short form of benchmarks/kill_storm.py."""
    folder, draw = tmp_path / "killed", np.random.default_rng()
    for number in (0, 2):
        process = start(toy_records, checkpoint, folder)
        wait_for(folder / part_name("A7", number), process)
        time.sleep(draw.uniform(0, 0.4))  # another moment each time
        process.kill()
        process.join()
        assert 0 < len(parts(folder)) < len(parts(finished))
        with pytest.raises(UserError, match="a run that has not finished"):
            read_scores(folder)
    score_toy(toy_records, checkpoint, folder)
    assert parts(folder) == parts(finished)
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished.iterdir()}


def test_processes_that_join_die_and_are_stopped_share_one_set(
    toy_records, checkpoint, finished, tmp_path
):
    folder = tmp_path / "shared"
    processes = [start(toy_records, checkpoint, folder) for _ in range(3)]
    dying, stopped, lasting = processes
    wait_for(folder / part_name("A7", 1), dying)
    dying.kill()
    os.kill(stopped.pid, signal.SIGTERM)
    for process in processes:
        process.join()
    assert stopped.exitcode == lasting.exitcode == 0
    assert re.search(
        r"stopped on SIGTERM; the same command goes on: \d+ of \d+ parts are there",
        Path(f"{folder}.log").read_text(),
    )
    assert parts(folder) == parts(finished)
    assert manifest.read_manifest(folder).counts == manifest.read_manifest(finished).counts
