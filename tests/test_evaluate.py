"""`instructrec eval`: the metrics of a checkpoint, and what it refuses."""

import json
import re

import numpy as np
import pytest
from score_toy import score_toy, toy_data
from seqio_groups import seqio_groups
from tiny_model import tiny_model
from train_toy import LENGTHS, MODEL

from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.stages.evaluate import (
    FILE_NAME,
    EvaluateSettings,
    ValidationSettings,
    evaluate,
    make_evaluate,
)

pytestmark = pytest.mark.slow  # whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoints"
    store = CheckpointStore(folder, keep=1)
    model = tiny_model(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1)
    store.save(7, {"model": model})
    store.close()
    return folder


def evaluate_toy(data_dir, checkpoint, output_dir, *, dry_run=False, **evaluation):
    settings = {"tasks": ["toy.A7"], "batch_size": 8, "num_batches": 2}
    return evaluate(
        model=MODEL,
        data=toy_data(data_dir),
        run=EvaluateSettings(checkpoint_path=str(checkpoint), output_dir=str(output_dir)),
        validation=ValidationSettings(**(settings | evaluation)),
        mesh=MeshSettings(),
        config_text="A = 1\n",
        dry_run=dry_run,
    )


@pytest.fixture(scope="module")
def ranks_by_example(toy_records, checkpoint, tmp_path_factory):
    """The rank of every validation example's target, by what `score` writes."""
    folder = tmp_path_factory.mktemp("scored") / "scores"
    score_toy(toy_records, checkpoint, folder, tasks=["toy.A7"], split="validation")
    scores = read_scores(folder)
    ranks = ranking.ranks(np.stack(scores.log_likelihood), scores.target_index)
    return dict(zip(scores.example_id, ranks.tolist(), strict=True))


def measured_requests(data_dir, task="toy.A7", *, lengths=LENGTHS, **settings):
    """The requests that an evaluation scores."""
    data, seen = toy_data(data_dir, lengths), []

    def score(_, requests):
        seen.extend(requests)
        return [np.zeros(len(request.candidates), np.float32) for request in requests]

    vocabulary = data.open(task, vocab_size=MODEL.vocab_size)
    validation = ValidationSettings(tasks=[task], batch_size=8, **settings)
    make_evaluate(validation, data, score, vocabulary=vocabulary)(None)
    return seen


@pytest.mark.parametrize(
    ("task", "lengths"),
    [
        ("toy.A7", LENGTHS),
        ("toy.A9", {"inputs": 150, "targets": 24}),
        ("toy.B7.specific.grouped", LENGTHS | {"candidates": 4, "preference": 1}),
    ],
)
def test_what_is_measured_is_what_seqio_renders(toy_records, task, lengths):
    found = measured_requests(toy_records, task, lengths=lengths)
    groups = seqio_groups(task, split="validation", lengths=lengths)
    for request, group in zip(found, groups, strict=True):
        assert request.request_id == group["example_id"].decode()
        assert request.instruction.tolist() == group["inputs"].tolist()
        rows = [row[row > 0].tolist() for row in group["candidates"]]
        assert [tokens.tolist() for tokens in request.candidates] == rows


def test_some_examples_are_drawn_of_the_whole_split_and_stay_in_its_order(toy_records):
    every = [request.request_id for request in measured_requests(toy_records, "toy.A9")]
    ids = [r.request_id for r in measured_requests(toy_records, "toy.A9", num_examples=12)]
    assert len(ids) == 12 and ids == sorted(ids, key=every.index)
    assert max(map(every.index, ids)) > len(every) / 2, "not the first ones"
    many = measured_requests(toy_records, "toy.A9", num_examples=999)
    assert [request.request_id for request in many] == every


def test_a_task_that_ranks_no_candidates_is_refused(toy_records):
    with pytest.raises(UserError, match="task or mixture"):
        measured_requests(toy_records, "toy.A11")
    with pytest.raises(UserError, match="renders no instruction records"):
        measured_requests(toy_records, "toy.all")


def test_it_measures_what_score_scores(toy_records, checkpoint, ranks_by_example, tmp_path, caplog):
    found = evaluate_toy(toy_records, checkpoint, tmp_path / "eval", num_batches=None)
    assert json.loads((tmp_path / "eval" / FILE_NAME).read_text()) == found
    assert found["step"] == 7
    assert (tmp_path / "eval" / "config.gin").read_text() == "A = 1\n"
    for name, value in ranking.evaluate(np.array([*ranks_by_example.values()])).items():
        assert found[f"validation/toy.A7.grouped/{name}"] == found[f"validation/{name}"] == value
    with caplog.at_level("INFO"):
        assert evaluate_toy(toy_records, checkpoint, tmp_path / "eval", num_batches=None) == found
    assert "is up to date" in caplog.text
    assert caplog.messages[-1].splitlines()[0].split() == ["step", "7", *ranking.METRIC_NAMES]
    assert "\nvalidation/toy.A7.grouped  ." in caplog.messages[-1]


def test_every_example_counts_alike_however_few_its_task_has(toy_records):
    names, numbers = ("toy.A7", "toy.B7.specific"), []

    def score(_, requests):
        numbers.append(len(requests))
        return [np.eye(1, len(request.candidates))[0] for request in requests]

    data = toy_data(toy_records)
    vocabulary = data.open(*names, vocab_size=MODEL.vocab_size)
    texts = {}
    validation = ValidationSettings(tasks=names)
    measure = make_evaluate(validation, data, score, vocabulary=vocabulary, texts=texts)
    found = measure(None)
    assert list(texts) == [f"validation/{name}" for name in names]
    for text in texts.values():
        assert text.count("**") == 6 and text.count("\n1. 1.000 `") == text.count("(target)") == 3
    of_tasks = [found[f"validation/{name}/hr@1"] for name in names]
    assert min(numbers) < max(numbers) / 4 and of_tasks[0] != of_tasks[1]
    assert found["validation/hr@1"] == pytest.approx(np.average(of_tasks, weights=numbers))


def test_it_measures_some_examples_of_the_whole_split_the_same_ones_each_time(
    toy_records, checkpoint, ranks_by_example
):
    mesh = make_mesh(MeshSettings())
    model = load_model(open_source(checkpoint), abstract_model(MODEL.init, mesh))
    data, settings = toy_data(toy_records), {"tasks": ["toy.A7"], "batch_size": 8}
    vocabulary = data.open("toy.A7", vocab_size=MODEL.vocab_size)
    limited = {"num_examples": 11, "num_batches": 2}
    for limits, number in ((limited, 11), (limited | {"num_batches": 1}, 8)):
        for cached in (True, False):
            limits = limits | {"use_memory_cache": cached}
            validation = ValidationSettings(**settings, **limits)
            measure = make_evaluate(validation, data, Scorer(mesh), vocabulary=vocabulary)
            drawn = measured_requests(toy_records, num_examples=number)
            ranks = np.array([ranks_by_example[request.request_id] for request in drawn])
            assert len(ranks) == number
            for found in (measure(model), measure(model)):
                for name, value in ranking.evaluate(ranks).items():
                    assert found[f"validation/{name}"] == value
    with pytest.raises(UserError, match="num_examples is 0"):
        ValidationSettings(**settings, num_examples=0)
    with pytest.raises(UserError, match="normaliser is 'pmi'; expected one of 'sum'"):
        ValidationSettings(**settings, normaliser="pmi")


def test_the_folder_of_another_evaluation_is_refused(toy_records, checkpoint, tmp_path):
    evaluate_toy(toy_records, checkpoint, tmp_path / "eval", num_batches=1)
    with pytest.raises(UserError, match=r"holds another run: .*validation"):
        evaluate_toy(toy_records, checkpoint, tmp_path / "eval", normaliser="mean")


def test_a_dry_run_says_what_would_be_measured_and_writes_nothing(
    toy_records, checkpoint, tmp_path
):
    found = evaluate_toy("no such folder", checkpoint, tmp_path / "eval", dry_run=True)
    assert found.stops == ["data"] and "no such folder" in found.rows["data"]
    assert found.rows["work"] == f"toy.A7, split validation, into {tmp_path / 'eval'}"
    assert found.rows["model"].endswith("on each of 8 devices (data=8)")
    found = evaluate_toy(toy_records, checkpoint, tmp_path / "eval", dry_run=True)
    assert found.would_start and found.rows["work"].startswith("16 examples: toy.A7")
    assert re.search(r"^found: \d+ validation examples in", found.rows["data"])
    assert list(tmp_path.iterdir()) == []


def test_tasks_of_two_datasets_are_refused(toy_records, checkpoint, tmp_path):
    with pytest.raises(UserError, match="expected some of one dataset, found toy, other"):
        evaluate_toy(toy_records, checkpoint, tmp_path / "out", tasks=["toy.A7", "other.A7"])
    assert not (tmp_path / "out").exists()
