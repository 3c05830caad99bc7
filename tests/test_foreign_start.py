"""Training and scoring straight from Hugging Face's and T5X's checkpoints."""

import re
import shutil

import numpy as np
import pytest
from checkpoint_toys import random_arrays, write
from score_toy import score_toy
from tiny_model import tiny_config
from train_toy import MODEL, train_toy

from instructrec_jax import tokenizer
from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.source import open_source
from instructrec_jax.errors import UserError
from instructrec_jax.scores import parts
from instructrec_jax.stages.convert import convert

pytestmark = pytest.mark.slow  # whole runs

SCORED = {"tasks": ("toy.C10.specific.grouped",), "num_requests": 16}


@pytest.fixture(scope="module")
def arrays():
    return {name: array * 0.2 for name, array in random_arrays(MODEL).items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toy_records, arrays):
    """The same model as each kind, with the tokenizer of the records beside it."""
    root = tmp_path_factory.mktemp("foreign")
    write(root / "hf", "hf", arrays, config=MODEL)
    model_file = toy_records / "toy" / "vocabulary" / "sentencepiece.model"
    shutil.copyfile(model_file, root / "hf" / "spiece.model")
    for kind in ("t5x", "native"):
        convert(source_path=str(root / "hf"), output_dir=str(root / kind), to=kind)
    return root


@pytest.mark.parametrize("kind", ["hf", "t5x", "native"])
def test_a_run_begins_with_the_parameters_and_step_of_each_kind(
    toy_records, folders, arrays, tmp_path, kind, caplog
):
    start = {"initial_checkpoint_path": str(folders / kind), "learning_rate": 0.0}
    with caplog.at_level("INFO"):
        train_toy(
            toy_records,
            tmp_path / "run",
            None,
            objective="packed text",
            train_steps_relative=2,
            **start,
        )
    assert f"starting from the parameters of {open_source(folders / kind).path} ({kind})" in (
        caplog.text
    )
    assert "the optimizer starts afresh: " in caplog.text
    assert store.resolve_checkpoint(tmp_path / "run" / store.LATEST).name == "9"
    found = open_source(tmp_path / "run" / store.LATEST)
    for name, array in arrays.items():  # at rate 0 nothing but the start decides
        np.testing.assert_array_equal(found.read(name), array)


def test_a_state_of_adafactor_is_no_use_to_adamw(toy_records, arrays, tmp_path, caplog):
    slots = {
        name: dict.fromkeys(("m", "v_col", "v_row"), np.zeros(1, np.float32)) | {"v": array**2}
        for name, array in arrays.items()
    }
    start = write(tmp_path / "t5x", "t5x", arrays, config=MODEL, slots=slots.items())
    with caplog.at_level("INFO"):
        train_toy(
            toy_records,
            tmp_path / "run",
            None,
            objective="packed text",
            train_steps_relative=1,
            initial_checkpoint_path=str(start),
        )
    assert "the optimizer starts afresh: the state in " in caplog.text


def test_each_kind_scores_alike(toy_records, folders, tmp_path):
    found = {}
    for kind in ("hf", "t5x", "native"):
        score_toy(toy_records, folders / kind, tmp_path / kind, **SCORED)
        written = parts.read_scores(tmp_path / kind)
        assert written.metadata["checkpoint_step"] == 7
        found[kind] = np.concatenate(list(written.log_likelihood))
    assert np.isfinite(found["hf"]).all() and len(found["hf"]) > 10
    np.testing.assert_array_equal(found["t5x"], found["hf"])
    np.testing.assert_array_equal(found["native"], found["hf"])


@pytest.mark.parametrize("stage", [train_toy, score_toy])
def test_a_checkpoint_with_another_tokenizer_is_refused(toy_records, folders, tmp_path, stage):
    other = shutil.copytree(folders / "hf", tmp_path / "other")
    corpus = [f"{a}{b} {b}{a}" for a in ("ba", "ko", "li", "mu") for b in ("re", "sta", "ti")]
    tokenizer.train_vocabulary(corpus, other / "spiece.model", vocab_size=290)
    run = {"initial_checkpoint_path": str(other), "objective": "packed text"}
    with pytest.raises(UserError, match=r"is not the one of the checkpoint, .*spiece\.model \("):
        if stage is train_toy:
            train_toy(toy_records, tmp_path / "run", 9, **run)
        else:
            score_toy(toy_records, other, tmp_path / "run", **SCORED)
    assert not (tmp_path / "run").exists()


def test_a_damaged_tokenizer_is_named(toy_records, folders, tmp_path):
    other = shutil.copytree(folders / "hf", tmp_path / "other")
    (other / "spiece.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UserError, match=r"spiece\.model is not a SentencePiece model"):
        score_toy(toy_records, other, tmp_path / "run", **SCORED)


def test_what_is_no_number_is_refused_before_the_first_step(toy_records, arrays, tmp_path):
    broken = dict(arrays) | {"encoder.encoder_norm.scale": np.full(16, np.nan, np.float32)}
    bad = write(tmp_path / "bad", "hf", broken, config=MODEL)
    named = r"encoder_norm\.scale holds 16 non-finite values"
    with pytest.raises(UserError, match=named):
        score_toy(toy_records, bad, tmp_path / "run", **SCORED)
    start = {"initial_checkpoint_path": str(bad), "objective": "packed text"}
    with pytest.raises(UserError, match=named):
        train_toy(toy_records, tmp_path / "model", 9, **start)
    assert not list((tmp_path / "model").rglob("default"))


def test_a_dry_run_finds_a_checkpoint_of_another_size(toy_records, folders, tmp_path):
    wide = tiny_config(vocab_size=600, emb_dim=32, num_encoder_layers=1, num_decoder_layers=1)
    of_other_size = "is of another size than MODEL: .*emb_dim is 16"
    found = score_toy(toy_records, folders / "hf", tmp_path / "run", model=wide, dry_run=True)
    assert re.search(rf"\(hf\) {of_other_size}", found.rows["checkpoint"])
    start = {"initial_checkpoint_path": str(folders / "t5x"), "objective": "packed text"}
    found = train_toy(toy_records, tmp_path / "run", 9, model=wide, dry_run=True, **start)
    assert re.search(rf"\(t5x\) {of_other_size}", found.rows["checkpoint"])
    assert "checkpoint" in found.stops
