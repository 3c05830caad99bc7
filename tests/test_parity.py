"""Our T5 against Hugging Face's: golden arrays (tests/testdata/hf_golden), and torch itself.

Errors are relative to values above 1 and absolute below; 1e-5 in float32, for every quantity. Layer
by layer torch computes in double precision, for its own float32 is off by almost as much.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from checkpoint_toys import GOLDEN
from hf_reference import (
    error_of,
    first_difference,
    jit_fused,
    load_torch,
    our_layers,
    random_torch,
    torch_layers,
)
from tiny_model import requests_of

from instructrec_jax.checkpoints.huggingface import write_huggingface
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.models.objectives import (
    candidate_log_likelihood,
    pack_candidates,
    training_logits,
)
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.scoring.scorer import Scorer

TOLERANCE = 1e-5
# Log-likelihoods of the golden candidates, sums of -15 to -137, may be off by half of this in
# bfloat16 (measured: 0.15), so that two which differ by less may change places.
BFLOAT16_BOUND = 0.5


def load(folder, **changes) -> T5:
    source = open_source(folder)
    config = dataclasses.replace(source.config, **changes)
    return load_model(
        source, abstract_model(config.init, make_mesh(MeshSettings(), jax.devices()[:1]))
    )


@pytest.fixture(scope="module")
def model() -> T5:
    return load(GOLDEN)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return {**np.load(GOLDEN / "hf_batch.npz"), **np.load(GOLDEN / "hf_scores.npz")}


@pytest.fixture(scope="module")
def batch(golden) -> dict[str, np.ndarray]:
    return {
        "encoder_input_tokens": golden["encoder_input_tokens"],
        "candidate_tokens": golden["candidate_targets"],
    }


@pytest.fixture(scope="module")
def logits(model, golden) -> tuple[np.ndarray, np.ndarray]:
    """(all logits, those of the targets), a row a candidate."""
    targets = golden["candidate_targets"]
    rows = targets.reshape(-1, targets.shape[-1])
    one_row_each = {
        "encoder_input_tokens": np.repeat(golden["encoder_input_tokens"], targets.shape[1], axis=0),
        "decoder_target_tokens": rows,
        "decoder_input_tokens": np.pad(rows, ((0, 0), (1, 0)))[:, :-1],
    }
    return jit_fused(training_logits)(model, one_row_each)


def test_candidate_log_likelihoods_equal_those_of_hugging_face(model, batch, golden):
    found = jit_fused(candidate_log_likelihood)(model, pack_candidates(batch))
    assert error_of(found, golden["sequence_scores"]) <= TOLERANCE


@pytest.fixture(scope="module")
def requests(batch):
    return requests_of(batch)


def test_scored_sets_equal_hugging_face(model, requests, golden):
    scorer = Scorer(make_mesh(MeshSettings(), jax.devices()[:1]))
    assert error_of(np.stack(scorer(model, requests)), golden["sequence_scores"]) <= TOLERANCE


def test_logits_equal_those_of_hugging_face(logits, golden):
    wanted = golden["logits_ex0_cand0"]
    assert error_of(logits[0][0, : len(wanted)], wanted) <= TOLERANCE


def test_token_log_likelihoods_equal_those_of_hugging_face(logits, golden):
    targets = golden["candidate_targets"]
    tokens = logits[1] - jax.nn.logsumexp(logits[0], axis=-1)
    tokens = np.where(targets > 0, tokens.reshape(targets.shape), 0.0)
    assert error_of(tokens, golden["token_logprobs"]) <= TOLERANCE


def test_encoder_output_equals_that_of_hugging_face(model, golden):
    wanted = golden["encoder_output_ex5"]
    encoded = jit_fused(T5.encode)(model, golden["encoder_input_tokens"])[5, : len(wanted)]
    assert error_of(encoded, wanted) <= TOLERANCE


@pytest.mark.parametrize("is_set", [False, True])
def test_bfloat16_ranks_the_golden_candidates_alike_apart_from_ties(
    batch, requests, golden, is_set
):
    narrow = load(GOLDEN, dtype="bfloat16")
    if is_set:
        found = np.stack(Scorer(make_mesh(MeshSettings(), jax.devices()[:1]))(narrow, requests))
    else:
        found = np.asarray(jit_fused(candidate_log_likelihood)(narrow, pack_candidates(batch)))
    wanted = golden["sequence_scores"]
    assert np.abs(found - wanted).max() <= BFLOAT16_BOUND / 2
    for one, other in itertools.permutations(range(wanted.shape[1]), 2):
        is_clear = wanted[:, one] - wanted[:, other] > BFLOAT16_BOUND
        assert (found[:, one] > found[:, other])[is_clear].all()


@pytest.fixture(scope="module")
def rows(golden) -> tuple[np.ndarray, np.ndarray]:
    """Instructions of all lengths with one target each."""
    return golden["encoder_input_tokens"], golden["candidate_targets"][:, 2]


@pytest.fixture(scope="module")
def golden_layers(rows):
    pytest.importorskip("transformers")
    return torch_layers(load_torch(GOLDEN).double(), *rows)


@pytest.mark.parity
def test_every_layer_equals_that_of_hugging_face(model, rows, golden_layers):
    assert first_difference(our_layers(model, *rows), golden_layers, TOLERANCE) is None


@pytest.mark.parity
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("token_embedder.embedding", "encoder embedding"),
        ("encoder.relpos_bias.rel_embedding", "encoder layer 0"),
        ("encoder.layers.mlp.wi_0.kernel", "encoder layer 1"),
        ("encoder.encoder_norm.scale", "encoder norm"),
        ("decoder.layers.encoder_decoder_attention.out.kernel", "decoder layer 1"),
        ("decoder.decoder_norm.scale", "decoder norm"),
        ("logits_dense.kernel", "logits"),
    ],
)
def test_the_first_layer_that_differs_is_named(rows, golden_layers, place, named):
    changed = load(GOLDEN)
    *path, last = place.split(".")
    owner = changed
    for part in path:
        owner = getattr(owner, part)
    param = getattr(owner, last)
    # Of a stack the last layer alone.
    param[...] = param[...].at[-1].multiply(1.01) if "layers" in path else param[...] * 1.01
    found = first_difference(our_layers(changed, *rows), golden_layers, TOLERANCE)
    assert found is not None and found.startswith(f"{named} differs first")


SIZES = {
    "vocab_size": 96,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
}


@pytest.fixture(scope="module")
def torch_folder(tmp_path_factory):
    """A model that transformers made and saved, in several shards."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("torch") / "theirs"
    random_torch(**SIZES).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def random_rows():
    rng = np.random.default_rng(3)
    tokens, targets = rng.integers(2, 96, (4, 70)), rng.integers(2, 96, (4, 9))
    for row, (inputs, outputs) in enumerate([(70, 9), (41, 5), (17, 1), (1, 8)]):
        tokens[row, inputs:] = 0
        targets[row, outputs:] = 0
    return tokens.astype(np.int32), targets.astype(np.int32)


@pytest.mark.parity
def test_what_transformers_saves_gives_the_same_numbers_here(torch_folder, random_rows):
    """Other sizes than the golden ones: layers, buckets and distances among them."""
    assert len(list(torch_folder.glob("*.safetensors"))) > 2
    theirs = torch_layers(load_torch(torch_folder).double(), *random_rows)
    ours = our_layers(load(torch_folder), *random_rows)
    assert first_difference(ours, theirs, TOLERANCE) is None


@pytest.mark.parity
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_what_is_exported_gives_the_same_numbers_in_transformers(
    torch_folder, random_rows, tmp_path, max_shard_bytes
):
    source = open_source(torch_folder)
    write_huggingface(
        tmp_path, config=source.config, step=5, read=source.read, max_shard_bytes=max_shard_bytes
    )
    theirs, again = load_torch(torch_folder), load_torch(tmp_path)
    weights = dict(again.named_parameters())
    for name, weight in theirs.named_parameters():
        np.testing.assert_array_equal(weights[name].detach(), weight.detach(), err_msg=name)
    assert (
        first_difference(torch_layers(again, *random_rows), torch_layers(theirs, *random_rows), 0.0)
        is None
    )
    assert not again.config.scale_decoder_outputs
