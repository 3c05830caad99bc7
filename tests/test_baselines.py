"""Random, popularity and co-occurrence scorers on small and planted data."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec_jax.baselines import chance, cooccurrence, popularity
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking, statistics
from instructrec_jax.records import CandidateList

GAMES = Path(__file__).parents[2] / "shared" / "data" / "amazon-games" / "sequences.tsv.gz"
CANDIDATES = np.array([[0, 1, 2], [2, 0, -1]], dtype=np.int32)


def examples(*names):
    """Examples that nothing is known of but their names."""
    known = {"protocol": "leave_one_out", "split": "test", "user_id": "u", "position": 4}
    return [
        CandidateList(example_id=name, target_id=0, candidate_ids=(), **known) for name in names
    ]


def test_training_histories_leave_out_validation_and_test_targets():
    found = popularity.training_histories([[5, 6, 7], [0, 1, 2, 3], [1, 2]])
    assert [items.tolist() for items in found] == [[5], [0, 1], []]


def test_popularity_counts_training_choices_only():
    training = popularity.training_histories([[0, 1, 2, 2], [0, 3, 3]])
    assert popularity.count_items(training, num_items=5).tolist() == [2, 1, 0, 0, 0]


def test_popularity_of_no_users_is_zero_everywhere():
    assert popularity.count_items([], num_items=3).tolist() == [0, 0, 0]


def test_popularity_scores_are_the_logarithm_of_counts_and_mask_padding():
    scores = popularity.score_by_popularity(CANDIDATES, np.array([3, 0, 7]))
    expected = [[math.log(4), 0.0, math.log(8)], [math.log(8), math.log(4), -math.inf]]
    assert scores == pytest.approx(np.array(expected, dtype=np.float32))


def test_random_scores_of_an_example_do_not_depend_on_its_neighbours():
    both = chance.Chance(seed=1).score(examples("a", "b"), CANDIDATES)
    alone = chance.Chance(seed=1).score(examples("b"), CANDIDATES[1:])
    assert np.array_equal(both[1], alone[0])
    assert not np.array_equal(both, chance.Chance(seed=2).score(examples("a", "b"), CANDIDATES))
    assert np.isneginf(both[1, 2]) and np.isfinite(both[0]).all()


def test_random_scores_are_at_chance():
    candidates = np.tile(np.arange(10, dtype=np.int32), (3000, 1))
    scores = chance.Chance(seed=0).score(examples(*(f"user{i}:4" for i in range(3000))), candidates)
    rank = ranking.ranks(scores, np.zeros(3000, dtype=int))
    interval = statistics.bootstrap_intervals(rank, seed=0)["hr@1"]
    assert interval.low <= 0.1 <= interval.high


def test_vectors_of_ids_that_share_sequences_are_alike():
    sequences = [np.array(ids) for ids in ([0, 1, 2], [1, 0, 2], [3, 4, 5], [5, 3, 4])] * 3
    unit = _unit(cooccurrence.cooccurrence_embeddings(sequences, 6, dim=2, seed=0))
    likeness = unit @ unit.T
    assert likeness[0, 1] > 0.9 and likeness[3, 5] > 0.9
    assert abs(likeness[0, 3]) < 1e-3


def test_mutual_information_agrees_with_hand_computation():
    # Pairs: {0,1} twice, {1,2} once; six ordered pairs, of which id 1 takes three.
    sequences = [np.array([0, 1]), np.array([1, 0, 0]), np.array([1, 2])]
    counts = cooccurrence._count_pairs(sequences, 3)
    assert counts.toarray().tolist() == [[0, 2, 0], [2, 0, 1], [0, 1, 0]]
    found = cooccurrence.positive_mutual_information(counts).toarray()
    assert found[0, 1] == found[1, 0] == pytest.approx(math.log(2 * 6 / (2 * 3)))
    assert found[1, 2] == pytest.approx(math.log(1 * 6 / (3 * 1)))
    assert found[0, 2] == 0


def test_ids_never_seen_get_a_zero_vector_and_seen_ones_unit_norm_on_average():
    sequences = [np.array([0, 1, 3]), np.array([1, 3, 4])]
    vectors = cooccurrence.cooccurrence_embeddings(sequences, 7, dim=3, seed=0)
    norms = np.linalg.norm(vectors, axis=1)
    assert vectors.dtype == np.float32 and vectors.shape == (7, 3)
    assert norms[[2, 5, 6]].tolist() == [0, 0, 0]
    assert norms[norms > 0].mean() == pytest.approx(1.0, abs=1e-5)


def test_the_same_seed_gives_the_same_vectors():
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 40, size=8) for _ in range(60)]
    first = cooccurrence.cooccurrence_embeddings(sequences, 40, dim=8, seed=3)
    assert np.array_equal(first, cooccurrence.cooccurrence_embeddings(sequences, 40, 8, 3))


def test_a_log_of_low_rank_gives_the_same_bounded_vectors_whatever_was_solved_before():
    kinds = [np.arange(30) + 30 * kind for kind in range(4)]  # 120 ids, at most rank 4 and a bit
    sequences = [np.concatenate([kinds[a], kinds[b]]) for a in range(4) for b in range(a)]
    first = cooccurrence.cooccurrence_embeddings(sequences, 400, dim=64, seed=0)
    for size in (700, 400):  # a sparse solver, then a dense one
        other = [np.random.default_rng(size).integers(0, size, 9) for _ in range(50)]
        cooccurrence.cooccurrence_embeddings(other, size, dim=64, seed=1)
        again = cooccurrence.cooccurrence_embeddings(sequences, 400, dim=64, seed=0)
        assert np.array_equal(first, again)
    larger = cooccurrence.cooccurrence_embeddings(sequences, 700, dim=64, seed=0)
    for vectors in (first, larger):
        norms = np.linalg.norm(vectors, axis=1)
        assert norms.max() < 2, "rounding errors do not count as rows"
        assert np.count_nonzero(np.linalg.norm(vectors, axis=0)) <= 8
    assert larger[:400] @ larger[:400].T == pytest.approx(first @ first.T, abs=1e-5)


def _sparse_log():
    """Sequences of 60 small groups that nothing joins, in three shapes, and of a larger one."""
    shapes = ([[0, 1], [2, 3]], [[0, 1, 2]], [[0, 1], [1, 2], [2, 3]])
    groups = [[np.array(ids) + 4 * i for ids in shapes[i % 3]] for i in range(60)]
    return [np.arange(240, 250), *(ids for group in groups for ids in group)]


@pytest.mark.parametrize("dim", [3, 30, 60])
def test_equal_eigenvalues_are_all_found_and_likeness_depends_on_no_seed(monkeypatch, dim):
    sequences = _sparse_log()
    exact = cooccurrence.cooccurrence_embeddings(sequences, 250, dim, seed=2)
    monkeypatch.setattr(cooccurrence, "_DENSE_SIZE", 0)
    for seed in (0, 1):
        vectors = cooccurrence.cooccurrence_embeddings(sequences, 250, dim, seed)
        assert vectors @ vectors.T == pytest.approx(exact @ exact.T, abs=1e-5)


def test_a_solver_that_takes_no_generator_gives_the_same_vectors(monkeypatch):
    generator = np.random.default_rng(0)
    sequences = [generator.integers(0, 600, size=8) for _ in range(900)]
    newer = cooccurrence.cooccurrence_embeddings(sequences, 600, dim=8, seed=3)
    eigsh = cooccurrence.linalg.eigsh

    def older(matrix, k, v0, tol):
        return eigsh(matrix, k=k, v0=v0, tol=tol)

    monkeypatch.setattr(cooccurrence.linalg, "eigsh", older)
    found = cooccurrence.cooccurrence_embeddings(sequences, 600, dim=8, seed=3)
    assert found == pytest.approx(newer, abs=1e-5)


def test_ids_outside_the_vocabulary_are_named():
    with pytest.raises(UserError, match=r"id 9 is outside 0 \.\. 4"):
        cooccurrence.cooccurrence_embeddings([np.array([0, 9])], 5, dim=2, seed=0)
    with pytest.raises(UserError, match="id -1"):
        cooccurrence.cooccurrence_embeddings([np.array([0, -1])], 5, dim=2, seed=0)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=6), st.integers(1, 9))
def test_any_sequences_give_finite_vectors_of_the_asked_shape(sequences, dim):
    arrays = [np.array(sequence, dtype=np.int64) for sequence in sequences]
    vectors = cooccurrence.cooccurrence_embeddings(arrays, 6, dim=dim, seed=0)
    assert vectors.shape == (6, dim) and np.isfinite(vectors).all()


def test_likeness_to_the_history_decides_between_equally_popular_candidates():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    scores = cooccurrence.score_by_cooccurrence(
        CANDIDATES, [[0], [2]], vectors=vectors, counts=np.zeros(3, dtype=np.int64)
    )
    assert scores[0, 1] > scores[0, 2] and scores[1, 0] > scores[1, 1]
    assert np.isneginf(scores[1, 2])


def test_candidates_that_nothing_joins_to_the_history_are_equal():
    sequences = _sparse_log()
    vectors = cooccurrence.cooccurrence_embeddings(sequences, 250, dim=150, seed=0)
    far = np.arange(40, 240, 7, dtype=np.int32)[None]
    scores = cooccurrence.score_by_cooccurrence(
        far, [[0, 1, 8, 9]], vectors=vectors, counts=np.ones(250, dtype=np.int64)
    )
    assert len(np.unique(scores)) == 1


def test_without_a_history_co_occurrence_falls_back_on_popularity():
    counts = np.array([3, 0, 7])
    scores = cooccurrence.score_by_cooccurrence(
        CANDIDATES, [[], []], vectors=np.ones((3, 2), dtype=np.float32), counts=counts
    )
    assert np.array_equal(scores, popularity.score_by_popularity(CANDIDATES, counts))


def test_co_occurrence_finds_planted_taste_where_popularity_cannot():
    generator = np.random.default_rng(0)
    tastes = [generator.permutation(np.arange(20) + 20 * (user % 2))[:10] for user in range(200)]
    training = popularity.training_histories(tastes)
    counts = popularity.count_items(training, num_items=40)
    vectors = cooccurrence.cooccurrence_embeddings(training, 40, dim=8, seed=0)
    other = [(items + 20) % 40 for items in tastes]
    candidates = np.stack(
        [np.concatenate([items[-1:], far[:9]]) for items, far in zip(tastes, other, strict=True)]
    ).astype(np.int32)
    histories = [items[:-1].tolist() for items in tastes]
    ours = cooccurrence.score_by_cooccurrence(candidates, histories, vectors=vectors, counts=counts)
    target = np.zeros(200, dtype=int)
    assert ranking.hit_rate(ranking.ranks(ours, target), 1) > 0.95
    by_count = popularity.score_by_popularity(candidates, counts)
    assert ranking.hit_rate(ranking.ranks(by_count, target), 1) < 0.4


@pytest.mark.real_data
@pytest.mark.skipif(not GAMES.exists(), reason="the shared Games data is not beside this checkout")
def test_games_is_scored_far_above_popularity():
    with gzip.open(GAMES, "rt") as stream:
        rows = [line.rstrip("\n").split("\t")[2].split() for line in stream.readlines()[1:]]
    histories = [[int(item) for item in row[-20:]] for row in rows]
    training = popularity.training_histories(histories)
    num_items = 16_859
    counts = popularity.count_items(training, num_items=num_items)
    vectors = cooccurrence.cooccurrence_embeddings(training, num_items, dim=64, seed=0)
    negatives = np.random.default_rng(0).integers(0, num_items, size=(len(histories), 9))
    targets = np.array([[items[-1]] for items in histories])
    candidates = np.concatenate([targets, negatives], axis=1).astype(np.int32)
    ours = cooccurrence.score_by_cooccurrence(
        candidates, [items[:-1] for items in histories], vectors=vectors, counts=counts
    )
    first = np.zeros(len(histories), dtype=int)
    assert ranking.hit_rate(ranking.ranks(ours, first), 1) > 0.55
    by_count = ranking.ranks(popularity.score_by_popularity(candidates, counts), first)
    assert 0.25 < ranking.hit_rate(by_count, 1) < 0.5


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
