"""Checkpoints that score together: the mean of their log-likelihoods, in either form of `score`."""

import json

import jax
import numpy as np
import pytest
from score_toy import score_toy
from serve_toy import save_served_model
from test_request_files import write
from tiny_model import tiny_model

from instructrec_jax import manifest
from instructrec_jax.checkpoints.ranking_config import RankingConfig
from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.score.ranked_file import RankedFile, rank_file

TASK = {"tasks": ("toy.A7.grouped",), "num_requests": 6}
SIZES = {"vocab_size": 600, "num_encoder_layers": 1, "num_decoder_layers": 1}


@pytest.fixture(scope="module")
def models(toy_records, tmp_path_factory):
    """Two models of one size, and one of another."""
    root = tmp_path_factory.mktemp("models")
    weights = {
        "one": tiny_model(**SIZES),
        "two": jax.tree.map(lambda leaf: leaf[..., ::-1], tiny_model(**SIZES)),
        "wide": tiny_model(**SIZES | {"mlp_dim": 48}),
    }
    for name, model in weights.items():
        (root / name).mkdir()
        save_served_model(toy_records, root / name)
        store = CheckpointStore(root / name / "checkpoints", keep=1)
        store.save(6, {"model": model})
        store.close()
    return root


@pytest.fixture(scope="module")
def alone(toy_records, models, tmp_path_factory):
    """What the first two write by themselves."""
    root = tmp_path_factory.mktemp("alone")
    for name in ("one", "two"):
        score_toy(toy_records, models / name, root / name, **TASK)
    return {name: read_scores(root / name) for name in ("one", "two")}


def test_what_is_written_is_the_mean_of_what_each_would_write(toy_records, models, alone, tmp_path):
    out = tmp_path / "out"
    score_toy(toy_records, models / "one", out, ensemble=[str(models / "two")], **TASK)
    found = read_scores(out)
    rows = zip(found.log_likelihood, *(alone[name].log_likelihood for name in alone), strict=True)
    for values, one, two in rows:
        np.testing.assert_allclose(values, (one + two) / 2, rtol=1e-6)
        assert not np.allclose(one, two)
    hashes = [alone[name].metadata["checkpoint"] for name in ("one", "two")]
    assert found.metadata["ensemble"] == hashes
    assert found.metadata["checkpoint"] not in hashes
    assert manifest.read_manifest(out).settings["ensemble"] == hashes
    assert "ensemble" not in alone["one"].metadata


def test_a_file_of_requests_is_ranked_by_the_mean_of_models_of_any_size(models, tmp_path):
    rows = [{"id": "a", "history": ["Quiet Fox"], "candidates": ["Red Moon", "Blue Bee", "Halo"]}]
    path = write(tmp_path / "r.jsonl", rows)

    def scores(name, *others):
        output = tmp_path / f"{name}{len(others)}.jsonl"
        ensemble = [str(models / other) for other in others]
        run = RankedFile(
            model=str(models / name), input=str(path), output=str(output), ensemble=ensemble
        )
        rank_file(run)
        (line,) = output.read_text().splitlines()
        return {c["candidate"]: c["score"] for c in json.loads(line)["candidates"]}

    one, wide, both = scores("one"), scores("wide"), scores("one", "wide")
    for title, value in both.items():
        assert value == pytest.approx((one[title] + wide[title]) / 2, rel=1e-5)
    assert list(both.values()) == sorted(both.values(), reverse=True)


def test_models_that_do_not_go_together_are_refused(toy_records, models, tmp_path):
    def tried(other, **run):
        score_toy(
            *(toy_records, models / "one", tmp_path / "out"), ensemble=[str(other)], **TASK | run
        )

    with pytest.raises(UserError, match="one checkpoint is twice among"):
        tried(models / "one")
    other = tmp_path / "other"
    other.mkdir()
    save_served_model(toy_records, other)
    RankingConfig(normaliser="sum", feature_lengths={}, extra_ids=0).write(other)
    with pytest.raises(UserError, match=r"ranked by sum and .* by mean; name the normaliser"):
        tried(other)
    (other / "spiece.model").unlink()
    (other / "ranking_config.json").unlink()
    tiny = CheckpointStore(other / "checkpoints", keep=1)
    tiny.save(7, {"model": tiny_model(**SIZES | {"vocab_size": 64})})
    tiny.close()
    with pytest.raises(UserError, match=r"another vocabulary .* by `instructrec report --fuse`"):
        tried(other)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_memory_of_all(toy_records, models, tmp_path):
    def dry(**run):
        return score_toy(
            *(toy_records, models / "one", tmp_path / "out"), dry_run=True, **TASK | run
        )

    alone, both = dry(), dry(ensemble=[str(models / "two")])
    assert both.would_start and str(models / "two") in both.rows["checkpoint"]
    assert both.rows["model"] != alone.rows["model"]
    assert not dry(ensemble=[str(tmp_path / "nowhere")]).would_start
