"""Our T5 against arrays that the real T5X computed from the same checkpoint; 1e-5 in float32."""

import functools
import json
import re
from unittest import mock

import jax
import numpy as np
import pytest
import t5x_golden
from checkpoint_toys import disassemble
from hf_reference import jit_fused
from tiny_model import requests_of

from instructrec_jax.checkpoints import parameters
from instructrec_jax.checkpoints.t5x import T5xCheckpoint, write_t5x
from instructrec_jax.cli import main
from instructrec_jax.models.objectives import (
    NegativeLogLikelihood,
    candidate_log_likelihood,
    cross_entropy,
    pack_candidates,
    training_logits,
)
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.pipeline import loader
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.training.metrics_log import FILE_NAME, read_metrics

TOLERANCE = 1e-5
jit = functools.partial(jit_fused, level=0)
SUM_LOSS = {"z_loss": 1e-4, "loss_normalizing_factor": None}


def error_of(found, golden):
    """The greatest error, relative to values above 1 and absolute below."""
    found, golden = np.asarray(found, np.float64), np.asarray(golden, np.float64)
    assert found.shape == golden.shape
    return (np.abs(found - golden) / np.maximum(np.abs(golden), 1.0)).max()


def one_device():
    return make_mesh(MeshSettings(), jax.devices()[:1])


@pytest.fixture(scope="module")
def checkpoint():
    return T5xCheckpoint(t5x_golden.FOLDER / "t5x_orbax")


@pytest.fixture(scope="module")
def model(checkpoint):
    shapes = abstract_model(checkpoint.config.init, one_device())
    return parameters.assemble(shapes, checkpoint.read)


@pytest.fixture(scope="module")
def golden():
    return {**np.load(t5x_golden.FOLDER / "batch.npz"), **np.load(t5x_golden.FOLDER / "scores.npz")}


@pytest.fixture(scope="module")
def loss():
    return json.loads((t5x_golden.FOLDER / "loss.json").read_text())


def one_row_each(golden):
    targets = golden["candidate_targets"]
    rows = targets.reshape(-1, targets.shape[-1])
    return {
        "encoder_input_tokens": np.repeat(golden["encoder_input_tokens"], targets.shape[1], axis=0),
        "decoder_target_tokens": rows,
        "decoder_input_tokens": np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
    }


@pytest.fixture(scope="module")
def logits(model, golden):
    return jit(training_logits)(model, one_row_each(golden))


def ranking_batch(golden):
    names = {
        "encoder_input_tokens": "encoder_input_tokens",
        "candidate_tokens": "candidate_targets",
    }
    return pack_candidates({ours: golden[theirs] for ours, theirs in names.items()})


def test_candidate_log_likelihoods_equal_those_of_t5x(model, golden):
    found = jit(candidate_log_likelihood)(model, ranking_batch(golden))
    assert error_of(found, golden["sequence_scores"]) <= TOLERANCE


def test_scored_sets_equal_t5x(model, golden):
    batch = {
        "encoder_input_tokens": golden["encoder_input_tokens"],
        "candidate_tokens": golden["candidate_targets"],
    }
    found = Scorer(one_device())(model, requests_of(batch))
    assert error_of(np.stack(found), golden["sequence_scores"]) <= TOLERANCE


def test_token_log_probabilities_equal_those_of_t5x(logits, golden):
    all_logits, target_logits = logits
    found = target_logits - jax.nn.logsumexp(all_logits, axis=-1)
    targets = golden["candidate_targets"]
    found = np.where(targets > 0, np.reshape(found, targets.shape), 0.0)
    assert error_of(found, golden["token_logprobs"]) <= TOLERANCE


def test_logits_equal_those_of_t5x(logits, golden):
    length = golden["candidate_lengths"][0, 0]
    assert error_of(logits[0][0, :length], golden["logits_ex0_cand0"]) <= TOLERANCE


@pytest.mark.parametrize("example", [0, 4])
def test_encoder_output_equals_that_of_t5x(model, golden, example):
    found = jit(type(model).encode)(model, golden["encoder_input_tokens"])
    length = golden["encoder_lengths"][example]
    assert error_of(found[example, :length], golden[f"encoder_output_ex{example}"]) <= TOLERANCE


def test_the_loss_of_a_packed_batch_and_its_z_loss_equal_those_of_t5x(model, loss):
    packed = t5x_golden.packed_batch()
    logits, target_logits = jit(training_logits)(model, packed)
    weights = packed["decoder_loss_weights"].astype(np.float32)
    total, total_z = cross_entropy(
        logits, target_logits, weights, z_loss=loss["z_loss_coef"], label_smoothing=0.0
    )
    assert weights.sum() == loss["weight_sum"]
    assert error_of(total, loss["loss"]) <= TOLERANCE
    assert error_of(total_z, loss["z_loss_total"]) <= TOLERANCE
    assert error_of(total - total_z, loss["cross_entropy_total"]) <= TOLERANCE


def test_the_objective_is_the_loss_of_t5x(model, loss):
    total, metrics = jit(NegativeLogLikelihood(**SUM_LOSS))(model, t5x_golden.packed_batch())
    entropy = metrics["nll_per_token"] * loss["weight_sum"]
    assert error_of(total, loss["loss"]) <= TOLERANCE
    assert error_of(entropy, loss["cross_entropy_total"]) <= TOLERANCE


def test_label_smoothing_equals_that_of_t5x(model, loss):
    objective = NegativeLogLikelihood(**SUM_LOSS, label_smoothing=0.1)
    total, _ = jit(objective)(model, t5x_golden.packed_batch())
    assert error_of(total, loss["loss_label_smoothing_0.1"]) <= TOLERANCE


def test_gradients_have_the_norms_of_those_of_t5x(model, loss):
    objective = NegativeLogLikelihood(**SUM_LOSS)
    gradient = jit(jax.grad(objective, has_aux=True))(model, t5x_golden.packed_batch())[0]
    found = {name: np.linalg.norm(array) for name, array in disassemble(gradient)}
    for name, norm in loss["grad_l2_norms"].items():
        assert error_of(found[name.replace("/", ".")], norm) <= TOLERANCE, name


GIN_FILES = [f"--gin_file=gin/{n}.gin" for n in ("models/t5_tiny", "mixtures/ml_100k")]
SIZES = ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers", "num_decoder_layers")
FINETUNE = {
    **{f"t5.T5Config.{name}": getattr(t5x_golden.CONFIG, name) for name in SIZES},
    "VOCAB_SIZE": t5x_golden.CONFIG.vocab_size,
    "DTYPE": "float32",
    "MIXTURE_OR_TASK_NAME": "toy.A1",
    "EVAL_TASKS": ["toy.A7.grouped"],
    "EVAL_STEPS": 1,
    "TASK_FEATURE_LENGTHS": {"inputs": 256, "targets": 24, "history": 4},
    "BATCH_SIZE": 4,
    "mesh.MeshSettings.fsdp": 2,
    "NUM_PARTITIONS": 2,
    "DROPOUT_RATE": 0.0,
    "LOSS_NORMALIZING_FACTOR": None,
    "LOG_PERIOD": 1,
    "TRAIN_STEPS_RELATIVE": 10,
}


@pytest.fixture(scope="module")
def without_state(checkpoint, tmp_path_factory):
    """The golden checkpoint, parameters and step alone."""
    arrays = ((name, checkpoint.read(name)) for name in checkpoint.found)
    folder = tmp_path_factory.mktemp("without_state")
    return write_t5x(folder, arrays, config=checkpoint.config, step=checkpoint.step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate", "said"),
    [
        ("resumed", 1e-2, "Adafactor goes on with its state of step 20"),
        ("fresh", 1e-3, "the optimizer starts afresh: .*checkpoint_20 holds no state of Adafactor"),
    ],
)
def test_fine_tunes_further_and_the_loss_curve_agrees(
    toy_records, without_state, tmp_path, monkeypatch, capsys, kind, rate, said
):
    """By `instructrec train` and the shipped recipe; only the batches are T5X's instead of ours."""
    batch = dict(np.load(t5x_golden.FOLDER / "packed_batch.npz"))
    stream = mock.MagicMock(position=[[0, 0]], __next__=lambda _: batch)
    monkeypatch.setattr(loader, "training_batches", lambda *_, **__: stream)
    start = {"resumed": t5x_golden.FOLDER / "t5x_orbax", "fresh": without_state}[kind]
    bindings = {
        **FINETUNE,
        "DATA_DIR": str(toy_records),
        "MODEL_DIR": str(tmp_path),
        "INITIAL_CHECKPOINT_PATH": str(start),
        "LEARNING_RATE": rate,
    }
    command = [*GIN_FILES, "--gin_file=gin/runs/finetune.gin"]
    command += [f"--gin.{name}={value!r}" for name, value in bindings.items()]
    assert main.main(["train", *command]) == 0
    assert re.search(said, " ".join(capsys.readouterr().err.split()))  # lines are folded
    lines = [line for line in read_metrics(tmp_path / FILE_NAME) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(21, 31))
    golden = json.loads((t5x_golden.FOLDER / "loss_curve.json").read_text())
    assert error_of([line["loss"] for line in lines], golden[f"{kind}_lr{rate}"]) <= TOLERANCE


def test_bfloat16_ranks_the_candidates_as_float32_does_apart_from_ties(checkpoint, golden):
    config = type(checkpoint.config)(**{**vars(checkpoint.config), "dtype": "bfloat16"})
    narrow = parameters.assemble(abstract_model(config.init, one_device()), checkpoint.read)
    found = np.asarray(jit(candidate_log_likelihood)(narrow, ranking_batch(golden)))
    exact = golden["sequence_scores"]
    bound = 2e-2 * np.abs(exact).max(axis=1, keepdims=True)
    assert (np.abs(found - exact) <= bound).all()
    for row, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        gaps = theirs[:, None] - theirs[None, :]
        is_clear = gaps > 2 * bound[row]
        assert ((ours[:, None] - ours[None, :])[is_clear] > 0).all()


def test_a_scanned_checkpoint_scores_as_under_t5x():
    folder = t5x_golden.FOLDER / "t5x_scanned"
    checkpoint, golden = T5xCheckpoint(folder), np.load(folder / "scores.npz")
    model = parameters.assemble(
        abstract_model(checkpoint.config.init, one_device()), checkpoint.read
    )
    found = jit(candidate_log_likelihood)(model, ranking_batch(golden))
    assert error_of(found, golden["sequence_scores"]) <= TOLERANCE
