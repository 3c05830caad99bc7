"""The matcher's vectors in Qdrant, by the client's local mode: no server is to be had here.

That mode has the same calls, in this process and exact. What goes over HTTP is tested with a small
server of the six paths that are used, which has local mode answer: it is not Qdrant's.
"""

import contextlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from serve_toy import Served, save_served_model

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.serving import qdrant
from instructrec_jax.serving.retrieval import RetrievalRequest, Retriever, labels_of
from instructrec_jax.serving.service import ServeSettings
from instructrec_jax.serving.vectors import EmbeddedIndex, TowerSource, TrainedMatcher

qdrant_client = pytest.importorskip("qdrant_client")
pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect")


@pytest.fixture(scope="module")
def data(toy_prepared):
    return read_prepared(toy_prepared)


@pytest.fixture(scope="module")
def matcher(toy_matched, toy_prepared, data):
    return TrainedMatcher(toy_matched, toy_prepared, data)


@pytest.fixture
def client():
    return qdrant_client.QdrantClient(":memory:")


@contextlib.contextmanager
def serving(client, keys):
    """Yields the address of a server that has a client answer, and notes the keys it is shown."""
    models, lock = qdrant_client.models, threading.Lock()

    def answer(path, body):
        match path.partition("?")[0].split("/")[2:]:
            case [name, "exists"]:
                return {"exists": client.collection_exists(name)}
            case [name, "index"]:
                return {"operation_id": 0, "status": "completed"}
            case [name, "points", "count"]:
                return {"count": client.count(name).count}
            case [name, "points", "query"]:
                asked = models.QueryRequest.model_validate(body)
                found = client.query_points(
                    name, query=asked.query, query_filter=asked.filter, limit=asked.limit
                )
                return {
                    "points": [{"id": p.id, "version": 0, "score": p.score} for p in found.points]
                }
            case [name, "points"]:
                client.upsert(name, models.PointsBatch.model_validate(body).batch)
                return {"operation_id": 0, "status": "completed"}
            case [name]:
                return client.create_collection(
                    name, models.CreateCollection.model_validate(body).vectors
                )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            keys.add(self.headers.get("api-key"))
            with lock:
                result = answer(self.path, json.loads(raw or "null"))
            sent = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_PUT = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def filled(client, matcher, data):
    vectors = matcher.vectors.items
    name = qdrant.filled_collection(client, matcher.fingerprint, vectors, data.items)
    return qdrant.QdrantIndex(client, name)


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
@pytest.mark.parametrize("way", ["in this process", "over HTTP"])
def test_it_finds_what_the_embedded_index_finds(client, matcher, data, way, monkeypatch):
    embedded, keys = EmbeddedIndex(matcher.vectors.items), set()
    monkeypatch.setenv(qdrant.API_KEY, "k3y")
    with contextlib.ExitStack() as opened:
        if way == "over HTTP":
            client = qdrant.connected(opened.enter_context(serving(client, keys)))
        check_alike(client, matcher, data, embedded)
    assert keys == ({"k3y"} if way == "over HTTP" else set())


def check_alike(client, matcher, data, embedded):
    both = [
        Retriever(data, TowerSource(matcher.vectors, matcher.rows, index))
        for index in (filled(client, matcher, data), embedded)
    ]
    for history in data.histories[:10]:
        titles = [data.items[each].title for each in history.item_ids[:-1]]
        first, second = (each.find("", titles, number=30) for each in both)
        assert first == second
        label = sorted(labels_of(data.items[history.item_ids[-1]]))[0]
        first, second = (each.find("", titles, number=9, labels=[label]) for each in both)
        assert first == second and all(label in labels_of(item) for item in first)


def test_a_collection_is_filled_once_and_a_half_filled_one_again(
    client, matcher, data, monkeypatch
):
    monkeypatch.setattr(qdrant, "_BLOCK", 7)
    index = filled(client, matcher, data)
    name = index._name
    client.delete(name, [3, 4])
    assert filled(client, matcher, data)._name == name
    assert client.count(name).count == len(data.items)
    monkeypatch.setattr(client, "upsert", None)  # would fail if it were called
    filled(client, matcher, data)
    other = qdrant.filled_collection  # of other vectors: beside it, not in its place
    with pytest.raises(UserError, match="Qdrant takes no vectors"):
        other(client, "f" * 64, matcher.vectors.items, data.items)
    assert {each.name for each in client.get_collections().collections} == {
        name,
        f"instructrec_{'f' * 32}",
    }


def test_without_an_answer_the_other_sources_go_on_and_the_log_says_so_once(
    client, matcher, data, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, qdrant.__name__)
    index, asked = filled(client, matcher, data), client.query_points
    request, vector = (
        RetrievalRequest(words=(), history=[0]),
        np.zeros(matcher.vectors.items.shape[1], np.float32),
    )

    def fails(*_, **__):
        raise ConnectionError("a secret")

    monkeypatch.setattr(client, "query_points", fails)
    assert [len(index.nearest(vector, 5, request)) for _ in range(2)] == [0, 0]
    title = data.items[0].title
    retriever = Retriever(data, TowerSource(matcher.vectors, matcher.rows, index))
    assert retriever.find("", [title], number=9) == Retriever(data).find("", [title], number=9)
    monkeypatch.setattr(client, "query_points", asked)
    assert len(index.nearest(vector, 5, request)) == 5
    assert [each.message for each in caplog.records][-2:] == [
        "Qdrant does not answer (ConnectionError): the matcher finds nothing",
        "Qdrant answers again",
    ]


def test_the_service_takes_it_and_a_server_that_is_not_there_is_named(
    client, toy_records, toy_prepared, toy_matched, data, tmp_path, monkeypatch
):
    catalogue = {"prepared_dir": str(toy_prepared), "matcher_dir": str(toy_matched)}
    given = catalogue | {"qdrant": "http://127.0.0.1:1"}
    with pytest.raises(UserError, match="--matcher_dir too"):
        ServeSettings(model="m", state_dir="s", qdrant=given["qdrant"])
    model = save_served_model(toy_records, tmp_path / "model")
    with pytest.raises(UserError, match=r"Qdrant takes no vectors .*refused"):
        Served(model, tmp_path / "none", **given).__enter__()
    monkeypatch.setattr(qdrant, "connected", lambda url: client)
    with Served(model, tmp_path / "state", **given) as served:
        request = {"history": [data.items[3].title], "top_n": 3}
        answer = served.ask("POST", "/v1/recommend", request)
        assert answer.status == 200 and len(answer.json["candidates"]) == 3
    assert client.get_collections().collections
