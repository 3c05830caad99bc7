"""Generation from a catalogue against brute force: every title scored, all of them sorted."""

import functools

import jax
import numpy as np
import pytest
from tiny_model import EOS, packed_arrays, random_tokens, tiny_config, tiny_model

from instructrec_jax.errors import UserError
from instructrec_jax.generation import beam_search
from instructrec_jax.generation.beam_search import generate_from_catalogue
from instructrec_jax.generation.catalogue_trie import build_trie
from instructrec_jax.metrics import ranking
from instructrec_jax.models.objectives import candidate_log_likelihood
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh, shardings

NUM_ITEMS = 40


@functools.cache
def titles():
    """Titles of few different tokens, so that they share beginnings; 7 and 11 are one title."""
    rng = np.random.default_rng(2)
    bodies = {tuple(rng.integers(3, 7, rng.integers(1, 6)).tolist()): None for _ in range(200)}
    found = [np.array([*body, EOS], np.int32) for body in list(bodies)[:NUM_ITEMS]]
    found[11] = found[7]
    return found


def instructions(number=5, seed=0):
    rng = np.random.default_rng(seed)
    return [random_tokens(rng, [n], n)[0] for n in rng.integers(2, 20, number)]


@functools.cache
def all_log_likelihoods():
    """Brute force, [instructions, items]: one row a title."""
    rows, width = instructions(), max(map(len, instructions()))
    tokens = np.zeros((len(rows), NUM_ITEMS, max(map(len, titles()))), np.int32)
    for item, title in enumerate(titles()):
        tokens[:, item, : len(title)] = title
    inputs = np.stack([np.pad(row, (0, width - len(row))) for row in rows])
    batch = packed_arrays({"encoder_input_tokens": inputs, "candidate_tokens": tokens})
    return np.asarray(jax.jit(candidate_log_likelihood)(tiny_model(), batch))


def by_brute_force(row, excluded=()):
    """(item ids of each title, log-likelihoods), best first."""
    groups = {}
    for item, title in enumerate(titles()):
        if item not in excluded:
            groups.setdefault(tuple(title.tolist()), []).append(item)
    values = all_log_likelihoods()[row]
    found = sorted(groups.values(), key=lambda ids: -values[ids[0]])
    return found, values[[ids[0] for ids in found]]


def generate(model=None, rows=None, *, num_titles, **kwargs):
    kwargs = {"num_titles": num_titles, "num_beams": num_titles} | kwargs
    model = tiny_model() if model is None else model
    rows = instructions() if rows is None else rows
    return generate_from_catalogue(model, rows, build_trie(titles()), **kwargs)


def ids_of(generated):
    return [ids.tolist() for ids in generated.item_ids]


def assert_equal(found, other):
    for one, two in zip(found, other, strict=True):
        assert ids_of(one) == ids_of(two)
        np.testing.assert_allclose(one.log_likelihood, two.log_likelihood, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_titles", [1, NUM_ITEMS - 1])
def test_with_a_beam_for_each_title_the_result_is_exact(num_titles):
    found = generate(num_titles=num_titles, num_beams=NUM_ITEMS)
    for row, generated in enumerate(found):
        ids, values = by_brute_force(row)
        assert ids_of(generated) == ids[:num_titles]
        assert generated.log_likelihood.dtype == np.float32
        np.testing.assert_allclose(
            generated.log_likelihood, values[:num_titles], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("num_beams", [1, 5])
def test_with_fewer_beams_every_title_has_its_own_log_likelihood(num_beams):
    found = generate(num_titles=num_beams)
    for row, generated in enumerate(found):
        exact = {tuple(ids): value for ids, value in zip(*by_brute_force(row), strict=True)}
        own = [tuple(ids) for ids in ids_of(generated)]
        assert len(set(own)) == num_beams and set(own) <= set(exact)
        values = generated.log_likelihood
        np.testing.assert_allclose(values, [exact[ids] for ids in own], rtol=1e-5, atol=1e-5)
        assert (np.diff(values) <= 0).all()
        best = np.array(list(exact.values()))[:num_beams]
        assert (values <= best + 1e-5).all()


def test_items_of_one_title_come_together_and_are_excluded_one_by_one():
    everything = {"num_titles": 30, "num_beams": NUM_ITEMS}
    together = generate(**everything)
    apart = generate(**everything, excluded=[[7]] * 5)
    for one, other in zip(together, apart, strict=True):
        assert [[11] if ids == [7, 11] else ids for ids in ids_of(one)] == ids_of(other)
        np.testing.assert_array_equal(one.log_likelihood, other.log_likelihood)
    assert any([7, 11] in ids_of(one) for one in together)


def test_excluded_items_are_never_returned():
    excluded = [by_brute_force(row)[0][place][0] for row in range(5) for place in (0, 1, 3)]
    excluded = [set(excluded[3 * row : 3 * row + 3]) | {7, 11, 999} for row in range(5)]
    found = generate(num_titles=10, num_beams=NUM_ITEMS, excluded=excluded)
    for row, generated in enumerate(found):
        ids, values = by_brute_force(row, excluded[row])
        assert ids_of(generated) == ids[:10]
        np.testing.assert_allclose(generated.log_likelihood, values[:10], rtol=1e-5, atol=1e-5)


def test_excluded_items_take_no_place_in_the_beam():
    """A search that excludes items is the search in a catalogue that never held them."""
    gone = {*range(0, NUM_ITEMS, 2), 11}
    rest = [item for item in range(NUM_ITEMS) if item not in gone]
    smaller = build_trie([titles()[item] for item in rest], rest)
    found = generate(num_titles=2, excluded=[gone] * 5)
    sizes = {"num_titles": 2, "num_beams": 2}
    other = generate_from_catalogue(tiny_model(), instructions(), smaller, **sizes)
    assert_equal(found, other)


def test_neither_the_batch_nor_its_padding_changes_the_result():
    alone = [generate(rows=[row], num_titles=4, batch_size=1)[0] for row in instructions()]
    assert_equal(generate(num_titles=4, batch_size=3), alone)
    assert_equal(generate(num_titles=4, batch_size=8), alone)


@pytest.mark.parametrize("settings", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_devices_that_share_a_batch_give_the_result_of_one(settings):
    mesh = make_mesh(MeshSettings(**settings))
    model = jax.device_put(tiny_model(), shardings(tiny_model(), mesh))
    excluded = [[row, 7, 11] for row in range(5)]
    found = generate(model, num_titles=4, excluded=excluded, mesh=mesh)
    assert_equal(found, generate(num_titles=4, excluded=excluded))


def test_searches_of_one_shape_compile_once():
    generate(num_titles=3)
    compiled = beam_search._search._cache_size()
    generate(num_titles=3, rows=instructions(19, seed=4), excluded=[[5]] * 19)
    assert beam_search._search._cache_size() == compiled


def test_bfloat16_stays_near():
    model = jax.tree.map(lambda leaf: leaf, tiny_model())
    model.config = tiny_config(dtype="bfloat16")
    model.token_embedder.dtype = "bfloat16"
    exact = generate(num_titles=NUM_ITEMS - 1)
    near = generate(model, num_titles=NUM_ITEMS - 1)
    for one, other in zip(exact, near, strict=True):
        values = dict(zip(map(tuple, ids_of(one)), one.log_likelihood, strict=True))
        expected = [values[tuple(ids)] for ids in ids_of(other)]
        np.testing.assert_allclose(other.log_likelihood, expected, rtol=0.05, atol=0.3)


def test_ranks_give_hr_and_ndcg_over_the_whole_catalogue():
    found = generate(num_titles=5, num_beams=NUM_ITEMS)
    targets = [by_brute_force(row)[0][place][0] for row, place in enumerate((0, 2, 4, 5, 30))]
    ranks = [generated.rank_of(target) for generated, target in zip(found, targets, strict=True)]
    assert ranks == [1, 3, 5, 6, 6], "behind the last generated one it is the same rank for all"
    measured = ranking.evaluate(ranks)
    assert measured["hr@1"] == 0.2 and measured["hr@5"] == 0.6
    assert measured["ndcg@5"] == pytest.approx((1 + 1 / np.log2(4) + 1 / np.log2(6)) / 5)


def test_a_tie_counts_against_the_target():
    generated = beam_search.Generated(
        item_ids=[np.array([4]), np.array([2, 9]), np.array([3])],
        log_likelihood=np.array([-1.0, -2.0, -2.0], np.float32),
    )
    assert [generated.rank_of(item) for item in (4, 2, 9, 3, 8)] == [1, 3, 3, 3, 4]


MISTAKES = {
    "more than there are": (
        {"num_titles": NUM_ITEMS},
        r"num_titles is 40, but instruction 0 leaves 39 of the catalogue's 39 different titles",
    ),
    "more than are left": (
        {"num_titles": 39, "excluded": [[], [], [0, 7], [], []]},
        r"instruction 2 leaves 38 of the catalogue's 39 different titles, 1 being excluded",
    ),
    "none": ({"num_titles": 0}, "num_titles is 0"),
    "fewer beams than titles": ({"num_titles": 5, "num_beams": 4}, "5 and num_beams 4; expected"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_found_is_refused(name):
    arguments, message = MISTAKES[name]
    with pytest.raises(UserError, match=message):
        generate(**arguments)
