"""Candidates of a whole catalogue: by words, by a history, by both; as the service gives them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_toy import Served, save_served_model

from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.titles import path_labels
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.serving import vectors
from instructrec_jax.serving.retrieval import NOTHING, RetrievalRequest, Retriever, fused
from instructrec_jax.serving.service import ServeSettings
from instructrec_jax.serving.vectors import EmbeddedIndex, TowerSource, TrainedMatcher


@pytest.fixture(scope="module")
def data(toy_prepared):
    return read_prepared(toy_prepared)


@pytest.fixture(scope="module")
def retriever(data):
    return Retriever(data)


def test_ids_are_fused_by_the_ranks_that_sources_give_them():
    assert fused([[1, 2], [2, 3]]) == [2, 1, 3]
    assert fused([np.array([4, 0, 5])]) == [4, 0, 5] and fused([]) == fused([NOTHING]) == []
    # Rank 9 in two sources is better than rank 1 in one.
    assert fused([[7, *range(10, 17), 8], [*range(20, 28), 8]])[0] == 8


@given(st.lists(st.permutations(range(9)).map(lambda ids: ids[:5]), min_size=1, max_size=4))
def test_fusing_adds_reciprocal_ranks(lists):
    share = {
        each: sum(1 / (60 + own.index(each) + 1) for own in lists if each in own)
        for each in set().union(*lists)
    }
    assert fused(lists) == sorted(share, key=lambda each: (-round(share[each], 12), each))


def test_words_find_titles_and_histories_find_what_occurs_with_them(data, retriever):
    item = data.items[5]
    first, *others = retriever.find(item.title, [], number=8)
    assert first == item and len(others) == 7
    history = [data.items[index].title for index in data.histories[0].item_ids[:6]]
    found = retriever.find("", history, number=len(data.items))
    assert not {each.title for each in found} & set(history)
    assert len({each.title for each in found}) == len(found)
    unknown = retriever.find("", [f"{item.title} the second"], number=3)
    assert unknown[0] == item  # a title that the catalogue does not know counts as words
    popular = retriever.find("zzz", [], number=5)
    assert len(popular) == 5


def test_labels_and_exclusions_are_kept(data, retriever):
    label = path_labels(data.items[0].category)[-1]
    found = retriever.find("", [], number=50, labels=[label.upper()])
    assert found and all(label in path_labels(item.category) for item in found)
    left = retriever.find("", [], number=50, labels=[label], exclude=[found[0].title])
    assert [item.item_id for item in left] == [item.item_id for item in found[1:]]
    with pytest.raises(UserError, match="has 0 items with no such label"):
        retriever.find("", [], number=5, labels=["no such label"])


@pytest.fixture(scope="module")
def matcher(toy_matched, toy_prepared, data):
    return TrainedMatcher(toy_matched, toy_prepared, data)


def asked(data, row, user_id=None, among=None):
    history = data.histories[row].item_ids[:-1]
    return RetrievalRequest(words=(), history=history, user_id=user_id, among=among)


def test_the_towers_give_the_scores_of_the_run_that_trained_them(toy_matched, matcher, data):
    scores = read_scores(toy_matched / "test")
    for row, (ids, values) in enumerate(
        zip(scores.candidate_ids[:5], scores.log_likelihood[:5], strict=True)
    ):
        example = data.evaluation(LEAVE_ONE_OUT, TEST)[row]
        history = data.histories[row].item_ids[: example.position]
        batch = matcher.rows.request_batch(history, example.user_id)
        products = matcher.vectors.items[ids] @ matcher.vectors.users(batch)[0]
        assert products == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("exact_items", [1000, 0], ids=["all compared", "graph"])
def test_an_index_answers_as_comparing_all_vectors_does(matcher, data, exact_items):
    items = matcher.vectors.items
    index = EmbeddedIndex(items, exact_items=exact_items)
    tower = TowerSource(matcher.vectors, matcher.rows, index)
    some = np.arange(0, len(items), 3)
    for row, history in enumerate(data.histories):
        request = asked(data, row, history.user_id)
        vector = matcher.vectors.users(
            matcher.rows.request_batch(request.history, request.user_id)
        )[0]
        best_first = np.argsort(-(items.astype(np.float64) @ vector), kind="stable")
        for number in (1, 10, 100):
            assert tower.find(request, number).tolist() == best_first[:number].tolist()
        within = [each for each in best_first if each in set(some)][:5]
        assert tower.find(asked(data, row, history.user_id, some), 5).tolist() == within


def test_the_graph_of_a_large_catalogue_finds_nearly_all_of_the_nearest():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(1500, 16)).astype(np.float32)
    items *= rng.lognormal(size=(1500, 1)).astype(np.float32)
    graph, request = EmbeddedIndex(items, exact_items=0), RetrievalRequest(words=(), history=[0])
    shares = []
    for asked_for in rng.normal(size=(20, 16)).astype(np.float32):
        nearest = set(np.argsort(-(items @ asked_for))[:100].tolist())
        shares.append(len(nearest & set(graph.nearest(asked_for, 100, request).tolist())) / 100)
    assert np.mean(shares) > 0.98


def test_somebody_without_an_id_is_read_by_the_history_alone(matcher, data):
    tower = TowerSource(matcher.vectors, matcher.rows, EmbeddedIndex(matcher.vectors.items))
    rows = matcher.rows
    history = data.histories[0].item_ids[:3]
    of = {
        user: matcher.vectors.users(rows.request_batch(history, user))[0]
        for user in (data.histories[0].user_id, data.histories[1].user_id, None, "a stranger")
    }
    first, second, nobody, stranger = of.values()
    assert np.array_equal(nobody, stranger)
    assert not np.allclose(first, second) and not np.allclose(first, nobody)
    assert (
        len(tower.find(RetrievalRequest(words=("red",), history=[], user_id="a stranger"), 5)) == 0
    )


def test_a_matcher_of_other_data_or_another_system_is_named(
    toy_matched, toy_prepared, data, monkeypatch
):
    with pytest.raises(UserError, match="holds the output of 'prepare'"):
        TrainedMatcher(toy_prepared, toy_prepared, data)
    monkeypatch.setattr(vectors, "hashes_of", lambda folder: ("of other data",))
    with pytest.raises(UserError, match="trained on other data"):
        TrainedMatcher(toy_matched, toy_prepared, data)
    with pytest.raises(UserError, match="--prepared_dir too"):
        ServeSettings(model="m", state_dir="s", matcher_dir=str(toy_matched))


def test_the_service_recommends_from_its_catalogue(
    toy_records, toy_prepared, data, toy_matched, tmp_path
):
    model = save_served_model(toy_records, tmp_path / "model")
    titles = {item.raw_id: item.title for item in data.items}
    catalogue = {"prepared_dir": str(toy_prepared), "matcher_dir": str(toy_matched)}
    with Served(model, tmp_path / "state", **catalogue) as served:
        assert served.ask("GET", "/v1/models").json["data"][0]["has_catalogue"]
        request = {"history": [data.items[3].title], "intention": data.items[5].title}
        answer = served.ask("POST", "/v1/recommend", request | {"top_n": 3, "record": True})
        assert answer.status == 200, answer.text
        found = answer.json["candidates"]
        assert len(found) == 3 and answer.json["template"] == "C4.specific"  # no room for 20
        assert all(titles[each["item_id"]] == each["candidate"] for each in found)
        body = {"impression_id": answer.json["impression_id"], "index": found[0]["index"]}
        assert served.ask("POST", "/v1/feedback", body | {"verdict": "up"}).status == 200
        known = request | {"user_id": data.histories[0].user_id}
        assert served.ask("POST", "/v1/recommend", known).status == 200
        few = served.ask("POST", "/v1/recommend", {"intention": "a game", "num_candidates": 2})
        assert few.json["template"] == "B7.specific"
        nothing = served.ask("POST", "/v1/recommend", {})
        assert nothing.status == 422 and "say what is wanted" in nothing.text
        labels = {"intention": "x", "labels": ["nothing has this"]}
        assert served.ask("POST", "/v1/recommend", labels).status == 422
