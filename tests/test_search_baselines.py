"""`baseline dssm`, `tem`, `matcher`: texts as features, rows, losses, runs, and runs on others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_trained_baselines import SIZES

from instructrec_jax.baselines.dssm import CosineLoss, Dssm
from instructrec_jax.baselines.matcher import InBatchLoss, Matcher
from instructrec_jax.baselines.tem import ChoiceLoss, Tem
from instructrec_jax.baselines.text_tower import TextEncoder, in_batch_nll, text_features
from instructrec_jax.cli import main
from instructrec_jax.cli.baseline_verbs import _fitting
from instructrec_jax.data.candidate_lists import read_lists
from instructrec_jax.data.columnar import HELD_OUT, LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages import candidates
from instructrec_jax.stages.baseline import trained
from instructrec_jax.stages.baseline.scores import BaselineSettings, choices_of, scenario_of
from instructrec_jax.training import optimizers
from instructrec_jax.training.loop import Periods
from instructrec_jax.training.metrics_log import read_metrics

SYSTEMS = {
    "dssm": (Dssm(emb_dim=16), CosineLoss(), "product_search.specific"),
    "tem": (Tem(sizes=SIZES), ChoiceLoss(), "personalized_search.specific"),
    "matcher": (Matcher(sizes=SIZES), InBatchLoss(), "sequential"),
}


def train(prepared, folder, name, *, trained_dir=None, scenarios=None, **changes):
    system, objective, scenario = SYSTEMS[name]
    learning = trained.Learning(
        name=name,
        system=system,
        objective=objective,
        optimizer=optimizers.adamw(learning_rate=optimizers.constant(learning_rate=1e-2)),
        batch_size=16,
        patience=9,
        **changes,
    )
    asked = BaselineSettings(
        prepared_dir=str(prepared), output_dir=str(folder), scenarios=scenarios or (scenario,)
    )
    periods = Periods(train_steps=2, log=1, evaluate=2, checkpoint=2)
    trained.train_and_score(
        learning=learning,
        asked=asked,
        periods=periods,
        trained_dir=None if trained_dir is None else str(trained_dir),
    )


@pytest.fixture(scope="module")
def data(toy_prepared):
    return read_prepared(toy_prepared)


def test_a_text_has_its_words_and_their_trigrams_once():
    red, doubled, none, both = text_features(["Red", "red, RED", "...", "red ted"])
    assert np.count_nonzero(red) == 4  # the word, "#re", "red", "ed#"
    assert set(red) == set(doubled) and not none.any()
    assert set(red) - {0} < set(both)
    assert len(set(both) - set(red)) == 3  # "ed#" is in both words


def test_texts_are_encoded_alike_one_by_one_and_none_is_zero():
    encoder = TextEncoder(8, jax.random.key(0))
    features = jnp.array(text_features(["red", "blue kite", "", "red"])).reshape(2, 2, -1)
    all_at_once = encoder(features)
    assert np.allclose(all_at_once, encoder.one_by_one(features), atol=1e-6)
    assert np.allclose(all_at_once[0, 0], all_at_once[1, 1]) and not all_at_once[1, 0].any()


def test_the_loss_is_a_softmax_over_what_is_not_excluded_and_takes_back_how_common_items_are():
    rows, items = jnp.eye(3), jnp.array([[1.0, 0, 0], [2.0, 1, 0], [3.0, 0, 1]])
    nothing = jnp.zeros((3, 3), bool)
    plain = in_batch_nll(rows, items, is_excluded=nothing)
    assert float(plain[0]) == pytest.approx(np.log(np.exp([1, 2, 3]).sum()) - 1)
    third = nothing.at[0, 2].set(True).at[0, 0].set(True)  # its own item always counts
    assert float(in_batch_nll(rows, items, is_excluded=third)[0]) == pytest.approx(
        np.log(np.exp([1, 2]).sum()) - 1
    )
    counted = in_batch_nll(rows, items, is_excluded=nothing, counts=jnp.array([1, 2, 4]))
    logits = np.array([1, 2, 3]) - np.log([1, 2, 4])
    assert float(counted[0]) == pytest.approx(np.log(np.exp(logits).sum()) - logits[0], rel=1e-5)


def test_choices_are_those_of_training_with_the_query_of_each_scenario(data):
    names = ["sequential", "personalized_search.specific", "product_search.specific"]
    found = choices_of(names, data, None)
    is_search = found.history_rows < 0
    splits = np.array(data.search_splits)
    assert set(splits[found.item_ids[is_search]]) == {"train"}
    for row, position, item, query in zip(
        found.history_rows, found.positions, found.item_ids, found.queries, strict=True
    ):
        if row >= 0:
            items = data.histories[int(row)].item_ids
            assert items[position] == item and position < len(items) - 2
        assert query in ("", data.items[item].category)
    assert sum(query == "" for query in found.queries) == sum(  # sequential
        max(len(history.item_ids) - 3, 0) for history in data.histories
    )
    with pytest.raises(UserError, match="texts_dir"):
        choices_of(["product_search.vague"], data, None)


def test_tem_reads_the_query_and_what_was_before_the_choice(data):
    scenario = scenario_of("personalized_search.specific", TEST, data, None)
    rows = SYSTEMS["tem"][0].open(data, lambda: choices_of([scenario.name], data, None))
    examples, ids = list(scenario.examples), np.array([e.candidate_ids for e in scenario.examples])
    batch = rows.scoring_batch(examples, ids.astype(np.int32), scenario.queries)
    for tokens, features, example in zip(
        batch["tokens"], batch["query_features"], examples, strict=True
    ):
        (history,) = (h for h in data.histories if h.user_id == example.user_id)
        before = [item + 1 for item in history.item_ids[: example.position]]
        assert tokens[tokens > 0].tolist() == before
        assert np.array_equal(features, text_features([data.items[example.target_id].category])[0])
    model = SYSTEMS["tem"][0].init(data, jax.random.key(0))
    asked = model.candidate_scores(batch)
    other = model.candidate_scores({**batch, "query_features": batch["query_features"][::-1]})
    assert not np.allclose(asked, other)


def test_the_matcher_retrieves_by_the_vectors_that_it_scores_by(data):
    system = SYSTEMS["matcher"][0]
    rows, model = system.open(data), system.init(data, jax.random.key(0))
    examples = list(data.evaluation(LEAVE_ONE_OUT, TEST))[:4]
    ids = np.array([example.candidate_ids for example in examples], np.int32)
    batch = rows.scoring_batch(examples, ids)
    users = model.last_user_vectors(batch)
    tokens = jnp.arange(1, len(data.items) + 1)
    items = model.item_vectors(tokens, model.title(jnp.array(rows.titles[1:])))
    found = np.take_along_axis(np.asarray(users @ items.T), ids, axis=1)
    assert found == pytest.approx(np.asarray(model.candidate_scores(batch)), abs=1e-4)


@pytest.mark.parametrize("name", ["dssm", "tem"])
def test_each_is_trained_and_ranks_its_scenario(toy_prepared, tmp_path, name):
    train(toy_prepared, tmp_path / name, name)
    scores = read_scores(tmp_path / name / "test")
    assert np.isfinite(np.concatenate(scores.log_likelihood)).all()
    family, _, query = SYSTEMS[name][2].partition(".")
    assert (scores.metadata["family"], scores.metadata["query"]) == (family, query)


def test_a_run_on_split_parameters_learns_what_one_on_copies_learns(
    toy_prepared, tmp_path, toy_matched
):
    train(toy_prepared, tmp_path / "split", "matcher", mesh=MeshSettings(fsdp=2, tensor=2))
    losses, values = [], []
    for folder in (toy_matched, tmp_path / "split"):
        lines = read_metrics(folder / "metrics.jsonl")
        losses.append([line["loss"] for line in lines if "loss" in line])
        values.append(np.concatenate(read_scores(folder / "test").log_likelihood))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_an_earlier_runs_checkpoint_ranks_the_hard_negatives_that_it_retrieved(
    toy_prepared, data, tmp_path, toy_matched
):
    paths = {f"{split}_file": toy_matched / f"retrieved/{split}.tsv.gz" for split in HELD_OUT}
    hard = tmp_path / "hard"
    candidates.lists(prepared_dir=toy_prepared, output_dir=hard, num_candidates=5, **paths)
    train(hard, tmp_path / "again", "matcher", trained_dir=toy_matched)
    assert not (tmp_path / "again" / "metrics.jsonl").exists()
    scores = read_scores(tmp_path / "again" / "test")
    assert scores.metadata["candidates"] != read_scores(toy_matched / "test").metadata["candidates"]
    lists, _ = read_lists(paths["test_file"], data)
    assert len(scores.example_id) == len(data.histories)
    for row, (ids, values) in enumerate(
        zip(scores.candidate_ids, scores.log_likelihood, strict=True)
    ):
        found = dict(zip(ids.tolist(), values.tolist(), strict=True))
        target = data.histories[row].item_ids[-1]
        assert set(lists[row]).isdisjoint(data.seen_items[row].tolist())
        assert set(found) == {target, *lists[row][:4]}
        best_first = [found[item] for item in lists[row][:4]]
        assert best_first == pytest.approx(sorted(best_first, reverse=True), abs=1e-4)
    with pytest.raises(UserError, match="has the output of 'baseline matcher'"):
        train(hard, tmp_path / "other", "tem", trained_dir=toy_matched)


def test_dssm_refuses_a_scenario_where_nobody_asks(toy_prepared, tmp_path):
    with pytest.raises(UserError, match="leave out sequential"):
        train(toy_prepared, tmp_path / "dssm", "dssm", scenarios=("sequential",))
    assert not (tmp_path / "dssm").exists()


def test_the_verb_takes_scenarios_and_all_leaves_out_those_that_a_system_cannot_rank(
    toy_prepared, tmp_path
):
    words = ["baseline", "dssm", f"--prepared_dir={toy_prepared}", f"--output_dir={tmp_path / 'a'}"]
    tiny = ["--gin.TRAIN_STEPS=2", "--gin.EVAL_PERIOD=2", "--gin.BATCH_SIZE=16"]
    asked = ["--scenarios", "personalized_search.specific"]
    assert main.main([*words, *asked, *tiny, "--gin.dssm.Dssm.emb_dim=16"]) == 0
    assert read_scores(tmp_path / "a" / "test").metadata["family"] == "personalized_search"
    names = ["sequential", "product_search.specific", "personalized_search.vague"]
    assert _fitting("dssm", names) == names[1:]
    assert _fitting("ease", names) == [names[0], names[2]]
    assert _fitting("tem", names) == names
