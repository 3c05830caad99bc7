"""Every baseline finds what was planted in an invented world, to within 2 % of a stated bound."""

import dataclasses
import os

import forked
import numpy as np
import planted_world
import pytest

from instructrec_jax.baselines.bm25 import Bm25
from instructrec_jax.baselines.cooccurrence import Cooccurrence
from instructrec_jax.baselines.ease import Ease
from instructrec_jax.baselines.popularity import Popularity
from instructrec_jax.data.columnar import LEAVE_ONE_OUT, PRODUCT_SEARCH, TEST
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.data.synthetic import write_log
from instructrec_jax.metrics import ranking
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.baseline.scores import scenario_of
from instructrec_jax.stages.prepare import prepare

CLOSE = 0.98
SMALL = [
    "--gin.TRAIN_STEPS=400",
    "--gin.EVAL_PERIOD=200",
    "--gin.DROPOUT_RATE=0.1",
    "--gin.LEARNING_RATE=3e-3",
    *(
        f"--gin.item_transformer.TransformerSizes.{size}"
        for size in ("emb_dim=32", "mlp_dim=32", "max_length=20")
    ),
]
LONG = ["--gin.TRAIN_STEPS=2000", "--gin.PATIENCE=2"]

BY_HAND = pytest.mark.skipif(
    "INSTRUCTREC_LONG" not in os.environ, reason="takes minutes; INSTRUCTREC_LONG=1 runs it"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Artefact A of the invented world."""
    root = tmp_path_factory.mktemp("world")
    write_log(root / "logs", planted_world.WORLD)
    whole = PrepareSettings(k_core=1, max_history=1000)
    prepare(dataset="world", input_dir=root / "logs", output_dir=root / "prepared", settings=whole)
    return root / "prepared"


@pytest.fixture(scope="module")
def data(world):
    return read_prepared(world)


def listed(data, protocol=LEAVE_ONE_OUT):
    examples = list(data.evaluation(protocol, TEST))
    return examples, np.array([example.candidate_ids for example in examples], np.int32)


def trained(name, prepared, folder, *words):
    """Returns the test scores of a baseline, trained by a process that compiles as users do.

    Hundreds of steps of unoptimised programs on 8 devices would take five times as long.
    """
    log = folder.with_suffix(".log")
    words = ["baseline", name, f"--prepared_dir={prepared}", f"--output_dir={folder}", *words]
    process = forked.start("verb.py", *words, log=log, environment={"XLA_FLAGS": ""})
    process.join()
    assert process.exitcode == 0, log.read_text()
    return read_scores(folder / TEST)


def ndcg(examples, scores):
    """Returns NDCG@5, in expectation over the order of equal candidates."""
    targets = [example.candidate_ids.index(example.target_id) for example in examples]
    rank, num_tied = ranking.ranks_and_ties(scores, targets)
    return ranking.expected_per_example(rank, num_tied)["ndcg@5"].mean()


def test_popularity_is_as_good_as_the_true_probabilities_of_items(data):
    examples, ids = listed(data)
    best = planted_world.popular_scores(data, examples, ids)
    found = Popularity(data, seed=0).score(examples, ids)
    assert ndcg(examples, found) >= CLOSE * ndcg(examples, best)


@pytest.mark.parametrize("make", [Cooccurrence, Ease])
def test_what_adds_up_items_is_as_good_as_the_true_probabilities_of_pairs(data, make):
    examples, ids = listed(data)
    best = planted_world.pair_scores(data, examples, ids)
    found = make(data, seed=0).score(examples, ids)
    assert ndcg(examples, found) >= CLOSE * ndcg(examples, best)


def test_bm25_finds_all_items_of_the_category_that_is_asked_for(data):
    examples, ids = listed(data, PRODUCT_SEARCH)
    asked = scenario_of("product_search.specific", TEST, data, None)
    found = Bm25(data).score(examples, ids, asked.queries)
    category = np.array([item.category for item in data.items])
    is_right = category[ids] == np.array(asked.queries)[:, None]
    targets = [example.candidate_ids.index(example.target_id) for example in examples]
    assert np.take_along_axis(is_right, np.array(targets)[:, None], axis=1).all()
    above = np.where(is_right, found, np.inf).min(axis=1)
    below = np.where(is_right, -np.inf, found).max(axis=1)
    assert np.mean(above > below) >= CLOSE


def test_nothing_is_above_bayes_rule_over_all_tastes(data):
    examples, ids = listed(data)
    best = ndcg(examples, planted_world.best_scores(data, examples, ids))
    for make in (Popularity, Cooccurrence, Ease, Bm25):
        assert ndcg(examples, make(data, seed=0).score(examples, ids)) < best


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sasrec", "sasrec_softmax", "bert4rec", pytest.param("matcher", marks=BY_HAND)]
)
def test_what_is_trained_is_as_good_as_the_true_probabilities_of_pairs(data, world, name, tmp_path):
    words = [*SMALL, *LONG] if name == "matcher" else SMALL
    scores = trained(name, world, tmp_path / name, *words)
    examples, ids = listed(data)
    best = planted_world.pair_scores(data, examples, ids)
    assert scores.example_id == [example.example_id for example in examples]
    assert ndcg(examples, np.stack(scores.log_likelihood)) >= CLOSE * ndcg(examples, best)


@BY_HAND
def test_tem_is_as_good_as_the_true_category_and_then_the_true_probabilities_of_pairs(
    data, world, tmp_path
):
    scores = trained("tem", world, tmp_path / "tem", *SMALL, *LONG, "--gin.BATCH_SIZE=256")
    examples, ids = listed(data)
    category = np.array([item.category for item in data.items])
    is_right = category[ids] == category[[example.target_id for example in examples]][:, None]
    best = 1e3 * is_right + planted_world.pair_scores(data, examples, ids)
    found = np.stack(scores.log_likelihood)
    assert ndcg(examples, found) >= CLOSE * ndcg(examples, best)


@BY_HAND
def test_dssm_is_as_good_as_the_true_kind_of_a_title(tmp_path):
    """Titles tell the kind, the second label of a category, and never the style, the third."""
    many = dataclasses.replace(
        planted_world.WORLD, num_items=6000, num_users=3000, num_interactions=30_000
    )
    write_log(tmp_path / "logs", many)
    shop = tmp_path / "prepared"
    whole = PrepareSettings(k_core=1, max_history=1000)
    prepare(dataset="shop", input_dir=tmp_path / "logs", output_dir=shop, settings=whole)
    scores = trained("dssm", shop, tmp_path / "dssm", "--gin.EVAL_PERIOD=100", "--gin.PATIENCE=2")
    data = read_prepared(shop)
    examples, ids = listed(data, PRODUCT_SEARCH)
    kind = np.array([item.category.split(", ")[1] for item in data.items])
    is_right = kind[ids] == kind[[example.target_id for example in examples]][:, None]
    found = np.stack(scores.log_likelihood)
    assert ndcg(examples, found) >= CLOSE * ndcg(examples, is_right.astype(float))
