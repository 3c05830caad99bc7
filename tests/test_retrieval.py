"""Candidates of a whole catalogue: by words, by a history, by both; as the service gives them."""

import pytest
from serve_toy import Served, save_served_model

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.titles import path_labels
from instructrec_jax.errors import UserError
from instructrec_jax.serving.retrieval import Retriever, _fused


@pytest.fixture(scope="module")
def data(toy_prepared):
    return read_prepared(toy_prepared)


@pytest.fixture(scope="module")
def retriever(data):
    return Retriever(data)


def test_ranks_are_fused_and_scores_of_nothing_count_for_nothing():
    import numpy as np

    by_words, by_history = np.array([0.0, 3.0, 2.0, 0.0]), np.array([1.0, 2.0, 4.0, 3.0])
    assert _fused([by_words])[:2] == [1, 2]
    assert _fused([by_words, by_history]) == [2, 1, 3, 0]


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


def test_the_service_recommends_from_its_catalogue(toy_records, toy_prepared, data, tmp_path):
    model = save_served_model(toy_records, tmp_path / "model")
    titles = {item.raw_id: item.title for item in data.items}
    with Served(model, tmp_path / "state", prepared_dir=str(toy_prepared)) as served:
        assert served.ask("GET", "/v1/models").json["data"][0]["has_catalogue"]
        wish = {"history": [data.items[3].title], "intention": data.items[5].title}
        answer = served.ask("POST", "/v1/recommend", wish | {"top_n": 3, "record": True})
        assert answer.status == 200, answer.text
        found = answer.json["candidates"]
        assert len(found) == 3 and answer.json["template"] == "C4.specific"  # no room for 20
        assert all(titles[each["item_id"]] == each["candidate"] for each in found)
        body = {"impression_id": answer.json["impression_id"], "index": found[0]["index"]}
        assert served.ask("POST", "/v1/feedback", body | {"verdict": "up"}).status == 200
        few = served.ask("POST", "/v1/recommend", {"intention": "a game", "num_candidates": 2})
        assert few.json["template"] == "B7.specific"
        nothing = served.ask("POST", "/v1/recommend", {})
        assert nothing.status == 422 and "say what is wanted" in nothing.text
        labels = {"intention": "x", "labels": ["nothing has this"]}
        assert served.ask("POST", "/v1/recommend", labels).status == 422
