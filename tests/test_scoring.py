"""Scoring: the numbers of the loss, however requests are laid out, shared and split."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from tiny_model import EOS, VOCAB_SIZE, tiny_model

from instructrec_jax.errors import UserError
from instructrec_jax.models.objectives import cross_entropy, training_logits
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.scoring.shapes import fit_shapes

LONGEST = 40  # tokens of the longest instruction or candidate here


def text(rng, length, vocabulary=VOCAB_SIZE):
    return np.append(rng.integers(3, vocabulary, length - 1), EOS).astype(np.int32)


def random_requests(seed, number, *, vocabulary=VOCAB_SIZE):
    """Requests of all sizes; a small vocabulary of titles makes common prefixes frequent."""
    rng = np.random.default_rng(seed)
    return [
        TokenRequest(
            request_id=str(index),
            instruction=text(rng, rng.integers(1, LONGEST)),
            candidates=[
                text(rng, length, vocabulary) for length in rng.integers(1, 9, rng.integers(1, 12))
            ],
        )
        for index in range(number)
    ]


def one_row_per_candidate(requests, model):
    """The slow way: every candidate is a training example of its own, scored by the loss."""

    def padded(texts, width):
        return np.stack([np.pad(tokens, (0, width - len(tokens))) for tokens in texts])

    pairs = [(r.instruction, tokens) for r in requests for tokens in r.candidates]
    pairs += pairs[:1] * (-len(pairs) % 128)  # of a few shapes alone
    width = max(len(tokens) for _, tokens in pairs)
    targets = padded([tokens for _, tokens in pairs], width + -width % 8)
    examples = {
        "encoder_input_tokens": padded([instruction for instruction, _ in pairs], LONGEST),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
    }
    found = np.asarray(_log_likelihood_of_rows(model, examples))
    ends = np.cumsum([len(request.candidates) for request in requests])
    return np.split(found[: ends[-1]], ends[:-1])


@jax.jit
def _log_likelihood_of_rows(model, examples):
    logits, target_logits = training_logits(model, examples)
    weights = (examples["decoder_target_tokens"] > 0).astype(np.float32)
    total = lambda *row: -cross_entropy(*row, z_loss=0.0, label_smoothing=0.0)[0]  # noqa: E731
    return jax.vmap(total)(logits, target_logits, weights)


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def one_device():
    return make_mesh(MeshSettings(), jax.devices()[:1])


@pytest.fixture(scope="module")
def requests():
    return [*random_requests(0, 10), *random_requests(1, 10, vocabulary=5)]


@pytest.fixture(scope="module")
def expected(requests):
    return one_row_per_candidate(requests, tiny_model())


@pytest.fixture(scope="module")
def scorer(requests):
    return Scorer(one_device(), fit_shapes(requests))


MESHES = [MeshSettings(), MeshSettings(data=2, fsdp=2, tensor=2)]


@pytest.mark.parametrize("settings", [*MESHES, None])
def test_log_likelihoods_are_those_of_one_row_per_candidate(requests, expected, settings):
    mesh = make_mesh(settings) if settings else one_device()
    assert_close(Scorer(mesh)(tiny_model(), requests), expected)


def test_neither_order_nor_company_changes_a_number(requests, expected, scorer):
    model = tiny_model()
    assert_close(scorer(model, requests[::-1])[::-1], expected)
    assert_close([scorer(model, [request])[0] for request in requests[:4]], expected[:4])
    turned = [dataclasses.replace(r, candidates=r.candidates[::-1]) for r in requests]
    assert_close([found[::-1] for found in scorer(model, turned)], expected)


@pytest.mark.parametrize("settings", [*MESHES, None])
def test_many_small_steps_give_the_same_numbers(requests, expected, settings):
    """Instructions leave and enter memory, and candidates of one are cut over several steps."""
    shapes = fit_shapes(requests)
    small = dataclasses.replace(
        shapes, num_tokens=48, num_nodes=16, num_paths=5, num_chunks=3, chunk_length=8
    )
    mesh = make_mesh(settings) if settings else one_device()
    assert_close(Scorer(mesh, small)(tiny_model(), requests), expected)


def test_requests_unlike_the_sample_find_room(requests, expected):
    shapes = fit_shapes([r for r in requests if len(r.instruction) < 9])
    assert_close(Scorer(one_device(), shapes)(tiny_model(), requests), expected)
    rng = np.random.default_rng(0)
    long = TokenRequest(request_id="long", instruction=text(rng, 3), candidates=[text(rng, 39)])
    tight = dataclasses.replace(shapes, num_nodes=16, num_chunks=2, chunk_length=8)
    found = Scorer(one_device(), tight)(tiny_model(), [long])
    assert_close(found, one_row_per_candidate([long], tiny_model()))


def test_a_title_that_begins_another_and_one_twice_have_the_numbers_of_their_own():
    halo = [9, 10, EOS], [9, 10, 11, EOS], [9, 10, EOS], [EOS], [9, EOS]
    request = TokenRequest(
        request_id="halo",
        instruction=np.array([5, 6, EOS], np.int32),
        candidates=[np.array(title, np.int32) for title in halo],
    )
    (found,) = Scorer(one_device())(tiny_model(), [request])
    assert_close([found], one_row_per_candidate([request], tiny_model()))
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 4


def test_the_probabilities_of_all_strings_of_a_tiny_vocabulary_sum_to_one():
    """EOS counts: without it the strings that go on would be counted with those that end."""
    model = tiny_model(vocab_size=5)
    others = [token for token in range(5) if token not in (0, EOS)]
    # T5 never says the padding token 0, but gives it a probability: strings with it are missing.
    ended = [(*rest, EOS) for n in range(4) for rest in itertools.product(others, repeat=n)]
    open_ended = list(itertools.product(others, repeat=4))
    request = TokenRequest(
        request_id="all",
        instruction=np.array([2, 3, EOS], np.int32),
        candidates=[np.array(string, np.int32) for string in (*ended, *open_ended)],
    )
    (found,) = Scorer(one_device())(model, [request])
    with_padding = _probability_of_padding(model, request, others)
    np.testing.assert_allclose(np.exp(found).sum() + with_padding, 1.0, rtol=1e-5)


def _probability_of_padding(model, request, others):
    """That a string of four has a 0 before any EOS, by the logits of training."""
    begins = [rest for n in range(4) for rest in itertools.product(others, repeat=n)]
    rows = np.array([[0, *begin, *[0] * (3 - len(begin))] for begin in begins], np.int32)
    targets = np.array([[*begin, 2, *[0] * (3 - len(begin))] for begin in begins], np.int32)
    batch = {
        "encoder_input_tokens": np.repeat(request.instruction[None], len(begins), 0),
        "decoder_input_tokens": rows,
        "decoder_target_tokens": targets,
    }
    log_p = jax.nn.log_softmax(np.asarray(training_logits(model, batch)[0]), axis=-1)
    total = 0.0
    for begin, row in zip(begins, np.asarray(log_p), strict=True):
        so_far = sum(row[place, token] for place, token in enumerate(begin))
        total += np.exp(so_far + row[len(begin), 0])
    return total


def test_bfloat16_stays_within_its_bound(requests, expected):
    found = Scorer(one_device())(tiny_model(dtype="bfloat16"), requests)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.1)


def test_a_set_is_compiled_for_few_shapes_and_once(requests):
    scorer = Scorer(one_device(), fit_shapes(requests))
    many = random_requests(2, 200)
    scorer(tiny_model(), many)
    compiled = scorer.num_compiled
    assert 2 <= compiled <= 8
    scorer(tiny_model(), many)
    assert scorer.num_compiled == compiled


def test_no_requests_have_no_numbers(scorer):
    assert scorer(tiny_model(), []) == []


@pytest.mark.parametrize("candidates", [[], [[5, EOS], []]])
def test_a_request_without_candidates_or_text_is_refused(candidates):
    with pytest.raises(UserError, match=r"request 'u1' has .*at least one candidate"):
        TokenRequest(
            request_id="u1",
            instruction=np.array([4, EOS]),
            candidates=[np.array(tokens, np.int32) for tokens in candidates],
        )
