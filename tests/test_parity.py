"""Our T5 against arrays that Hugging Face transformers computed (tests/testdata/hf_golden)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from instructrec_jax.models.encoder_decoder import candidate_log_likelihood, training_logits
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.scoring.packing import pack_candidates

GOLDEN = Path(__file__).parent / "testdata" / "hf_golden"
CONFIG = T5Config(
    vocab_size=1152,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=2,
    num_decoder_layers=2,
)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def attention(weights, stack, place, name):
    def load(part):
        kernels = [weights[f"{stack}.block.{i}.layer.{place}.{name}.{part}.weight"] for i in (0, 1)]
        return np.stack(kernels)

    split = lambda kernel: kernel.transpose(0, 2, 1).reshape(2, 32, 4, 8)  # noqa: E731
    return {
        "query": split(load("q")),
        "key": split(load("k")),
        "value": split(load("v")),
        "out": load("o").transpose(0, 2, 1).reshape(2, 4, 8, 32),
    }


def load_stack(weights, stack_name, stack, places):
    for attribute, place, name in places:
        for part, kernel in attention(weights, stack_name, place, name).items():
            getattr(getattr(stack.layers, attribute), part).kernel[...] = kernel
    mlp = len(places)
    for part in ("wi_0", "wi_1", "wo"):
        kernels = [
            weights[f"{stack_name}.block.{i}.layer.{mlp}.DenseReluDense.{part}.weight"].T
            for i in (0, 1)
        ]
        getattr(stack.layers.mlp, part).kernel[...] = np.stack(kernels)
    norms = {
        "encoder": ("pre_attention_layer_norm", "pre_mlp_layer_norm"),
        "decoder": (
            "pre_self_attention_layer_norm",
            "pre_cross_attention_layer_norm",
            "pre_mlp_layer_norm",
        ),
    }[stack_name]
    for place, norm in enumerate(norms):
        scales = [
            weights[f"{stack_name}.block.{i}.layer.{place}.layer_norm.weight"] for i in (0, 1)
        ]
        getattr(stack.layers, norm).scale[...] = np.stack(scales)
    table = f"{stack_name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    stack.relpos_bias.rel_embedding[...] = weights[table].T
    getattr(stack, f"{stack_name}_norm").scale[...] = weights[
        f"{stack_name}.final_layer_norm.weight"
    ]


@pytest.fixture(scope="module")
def model() -> T5:
    weights = read_safetensors(GOLDEN / "model.safetensors")
    model = T5(CONFIG, jax.random.key(0))
    model.token_embedder.embedding[...] = weights["shared.weight"]
    model.logits_dense.kernel[...] = weights["lm_head.weight"].T
    load_stack(weights, "encoder", model.encoder, [("attention", 0, "SelfAttention")])
    places = [("self_attention", 0, "SelfAttention")]
    places += [("encoder_decoder_attention", 1, "EncDecAttention")]
    load_stack(weights, "decoder", model.decoder, places)
    return model


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    arrays = np.load(GOLDEN / "hf_batch.npz")
    return {
        "encoder_input_tokens": arrays["encoder_input_tokens"],
        "candidate_tokens": arrays["candidate_targets"],
    }


def test_candidate_log_likelihoods_equal_those_of_hugging_face(model, batch):
    golden = np.load(GOLDEN / "hf_scores.npz")
    log_likelihood = candidate_log_likelihood(model, pack_candidates(batch))
    np.testing.assert_allclose(log_likelihood, golden["sequence_scores"], rtol=1e-5, atol=1e-5)


def test_optimised_code_gives_the_same_log_likelihoods(model, batch):
    """The other tests run unoptimised code, for it compiles sooner (see conftest.py)."""
    golden = np.load(GOLDEN / "hf_scores.npz")
    options = {"xla_backend_optimization_level": 3}
    score = jax.jit(candidate_log_likelihood, compiler_options=options)
    found = score(model, pack_candidates(batch))
    np.testing.assert_allclose(found, golden["sequence_scores"], rtol=1e-5, atol=1e-5)


def test_token_log_likelihoods_equal_those_of_hugging_face(model, batch):
    golden = np.load(GOLDEN / "hf_scores.npz")["token_logprobs"]
    targets = batch["candidate_tokens"]
    rows, length = targets.shape[0] * targets.shape[1], targets.shape[2]
    one_row_each = {
        "encoder_input_tokens": np.repeat(batch["encoder_input_tokens"], targets.shape[1], axis=0),
        "decoder_target_tokens": targets.reshape(rows, length),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1].reshape(
            rows, -1
        ),
    }
    logits, target_logits = training_logits(model, one_row_each)
    tokens = target_logits - jax.nn.logsumexp(logits, axis=-1)
    tokens = np.where(targets > 0, tokens.reshape(targets.shape), 0.0)
    np.testing.assert_allclose(tokens, golden, rtol=1e-5, atol=1e-5)


def test_encoder_output_equals_that_of_hugging_face(model, batch):
    golden = np.load(GOLDEN / "hf_scores.npz")["encoder_output_ex5"]
    encoded = model.encode(batch["encoder_input_tokens"])[5, : len(golden)]
    np.testing.assert_allclose(encoded, golden, rtol=1e-5, atol=1e-5)
