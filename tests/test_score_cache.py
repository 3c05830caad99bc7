"""The cache of log-likelihoods: the same answers, for nothing, and never of another model."""

import asyncio
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_toy import Served, save_served_model
from tiny_model import tiny_model

from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.serving.score_cache import ScoreCache, keys_of

TITLES = ["Quiet Fox", "Red Moon", "Tiny River", "Blue Bee"]
BODY = {"history": ["Halo", "Myst"], "candidates": TITLES, "template": "A1"}  # which lists none
TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
REQUESTS = st.tuples(st.sampled_from("ab"), TOKENS, TOKENS)


def request(prompt, *candidates):
    return TokenRequest(
        request_id="r",
        instruction=np.array(prompt, np.int32),
        candidates=[np.array(tokens, np.int32) for tokens in candidates],
    )


@given(REQUESTS, REQUESTS)
def test_names_are_of_model_prompt_and_candidate(one, other):
    (first,), (second,) = (keys_of(model, request(p, c)) for model, p, c in (one, other))
    assert (first == second) == (one == other)


@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True), max_size=30))
def test_it_forgets_the_longest_unused_and_nothing_else(asked):
    """Beside a list of the same order, worked out anew."""
    cache, order = ScoreCache(6), []
    for numbers in asked:
        keys = [bytes([number]) for number in numbers]
        found = cache.find(keys)
        assert (found is not None) == all(number in order for number in numbers)
        if found is None:
            cache.keep(keys, np.array(numbers, np.float32) / 3)
        else:
            assert found.tobytes() == (np.array(numbers, np.float32) / 3).tobytes()
        order = ([n for n in order if n not in numbers] + numbers)[-6:]
        assert len(cache) == len(order)


def test_what_holds_nothing_and_what_is_too_large_is_not_kept():
    cache = ScoreCache(0)
    cache.keep([b"a"], np.zeros(1, np.float32))
    assert len(cache) == 0 and cache.find([b"a"]) is None
    cache = ScoreCache(2)
    cache.keep([b"a"], np.zeros(1, np.float32))
    cache.keep([b"b", b"c", b"d"], np.zeros(3, np.float32))
    assert cache.find([b"a"]) is not None, "a request that is larger than all drives nothing out"


@pytest.fixture(scope="module")
def model_dir(toy_records, tmp_path_factory):
    return save_served_model(toy_records, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(model_dir, tmp_path_factory):
    with Served(model_dir, tmp_path_factory.mktemp("state"), cached_candidates=100) as service:
        yield service


def ranked(served, **changes):
    answer = served.ask("POST", "/v1/rank", BODY | {"id": "x"} | changes)
    assert answer.status == 200, answer.text
    return answer.json


def counted(served):
    """Hits, misses, batches that were scored."""
    text = served.ask("GET", "/metrics").text
    names = (
        r'cache_requests_total{result="hit"}',
        r'cache_requests_total{result="miss"}',
        "batch_requests_count",
    )
    return [float(re.search(re.escape(f"instructrec_{n}") + r" (\S+)", text)[1]) for n in names]


def test_a_repeated_request_is_answered_to_the_bit_and_scored_once(served):
    hits, misses, batches = counted(served)
    first, again = ranked(served), ranked(served)
    assert again == first
    assert counted(served) == [hits + 1, misses + 1, batches + 1]
    without = served.service.cache
    served.service.cache = ScoreCache(0)
    assert ranked(served) == first
    served.service.cache = without


def test_known_candidates_in_another_order_are_known_and_a_new_one_has_all_scored(served):
    scores = {c["candidate"]: c["score"] for c in ranked(served)["candidates"]}
    hits, _, batches = counted(served)
    some = ranked(served, candidates=TITLES[:0:-1])["candidates"]
    assert {c["candidate"]: c["score"] for c in some} == {t: scores[t] for t in TITLES[1:]}
    assert counted(served)[::2] == [hits + 1, batches]
    ranked(served, candidates=[*TITLES, "Halo"])
    assert counted(served)[::2] == [hits + 1, batches + 1]
    by_sum = ranked(served, normaliser="sum")["candidates"]
    assert [c["score"] for c in by_sum] == [c["log_likelihood"] for c in by_sum]


def test_an_exchanged_model_is_not_answered_for_by_the_one_before_it(served, model_dir):
    before, old = ranked(served), served.service.engines[0]
    other = jax.tree.map(
        lambda leaf: leaf[..., ::-1],
        tiny_model(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1),
    )
    store = CheckpointStore(model_dir / "checkpoints", keep=1)
    store.save(6, {"model": other})
    store.close()

    async def exchange():
        served.service.reload()
        while served.service.engines[0] is old:
            await asyncio.sleep(0.05)

    served.run(exchange())
    _, misses, _ = counted(served)
    after = ranked(served)
    assert counted(served)[1] == misses + 1
    assert [c["score"] for c in after["candidates"]] != [c["score"] for c in before["candidates"]]
