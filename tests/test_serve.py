"""The service: its numbers, its refusals, its figures, and who is let in."""

import asyncio
import base64
import json
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_toy import Served, save_served_model
from test_ranked_file import ROWS, TITLES
from test_request_files import write

from instructrec_jax.errors import UserError
from instructrec_jax.serving import tokens
from instructrec_jax.serving.bodies import RankRequest, RerankRequest
from instructrec_jax.serving.service import ServeSettings
from instructrec_jax.serving.tokens import RateLimiter, Token, TokenStore, make_token
from instructrec_jax.stages.score.ranked_file import RankedFile, rank_file

RANK, RERANK = "/v1/rank", "/v1/rerank"
BODY = {"history": ["Halo", "Myst"], "candidates": TITLES}
# Without a cache: each request is to be scored here.
LIMITS = {"max_candidates": 50, "max_body_bytes": 50_000, "cached_candidates": 0}


@pytest.fixture(scope="module")
def model_dir(toy_records, tmp_path_factory):
    return save_served_model(toy_records, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(model_dir, tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    with Served(model_dir, state, **LIMITS) as service:
        yield service


@pytest.mark.parametrize("template", ["instruction", "C10.specific"])
def test_ranks_and_numbers_are_those_of_score_whatever_is_batched_together(
    model_dir, served, template, tmp_path
):
    rows = [{k: v for k, v in row.items() if k != "target_index"} for row in ROWS[template]][:8]
    path, output = write(tmp_path / "r.jsonl", rows), tmp_path / "ranked.jsonl"
    name = None if template == "instruction" else template
    rank_file(RankedFile(model=str(model_dir), input=str(path), output=str(output), template=name))
    expected = {}
    for line in output.read_text().splitlines():
        expected[json.loads(line)["id"]] = json.loads(line)["candidates"]
    bodies = [{**row, "id": str(row["id"])} | ({"template": name} if name else {}) for row in rows]
    compiled = num_compiled(served)
    alone = [served.ask("POST", RANK, body) for body in bodies[:1]]
    together = served.ask_all(*(("POST", RANK, body) for body in bodies))
    for answer in (*alone, *together):
        assert answer.status == 200, answer.text
        theirs, ours = expected[answer.json["id"]], answer.json["candidates"]
        assert [each["candidate"] for each in ours] == [each["candidate"] for each in theirs]
        assert [each["rank"] for each in ours] == [each["rank"] for each in theirs]
        for field in ("score", "log_likelihood"):
            np.testing.assert_allclose(
                [each[field] for each in ours], [each[field] for each in theirs], rtol=1e-5
            )
    assert num_compiled(served) == compiled  # all shapes were known at the start


def num_compiled(served):
    text = served.ask("GET", "/metrics").text
    return float(re.search(r"^instructrec_compiled_shapes (\S+)$", text, re.MULTILINE)[1])


def test_a_ranking_tells_places_numbers_and_what_was_read(served):
    ids = {"candidate_ids": [5, 9, 7, 3], "exclude": [9], "top_n": 2, "explain": True, "id": "u"}
    found = served.ask("POST", RANK, BODY | ids).json
    assert found["id"] == "u" and found["template"] == "A7" and found["normaliser"] == "mean"
    assert len(found["candidates"]) == 2
    for each in found["candidates"]:
        assert ids["candidate_ids"][each["index"]] == each["candidate_id"] != 9
        assert TITLES[each["index"]] == each["candidate"]
    assert "Halo" in found["explanation"]["instruction"]
    assert "explanation" not in served.ask("POST", RANK, BODY).json


def test_documents_are_reranked_as_clients_of_cohere_and_jina_ask(served):
    """Their bodies, with fields that we do not know; equal documents are two results."""
    texts = ["Quiet Fox", "Blue Bee", "Quiet Fox", "Tiny River"]
    cohere = {"model": "rerank-v3.5", "query": "a fox", "documents": texts, "top_n": 3}
    found = served.ask("POST", "/v2/rerank", cohere | {"max_tokens_per_doc": 4096}).json
    scores = [each["relevance_score"] for each in found["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    jina = {"query": "a fox", "documents": [{"text": text} for text in texts]}
    found = served.ask("POST", RERANK, jina | {"return_documents": True}).json
    by_index = {each["index"]: each for each in found["results"]}
    assert by_index[0]["relevance_score"] == by_index[2]["relevance_score"]
    assert [by_index[n]["document"]["text"] for n in range(4)] == texts
    assert found["usage"]["total_tokens"] > 0
    many = [f"Fox number {n}" for n in range(50)]  # no prompt has room for so many
    found = served.ask("POST", RERANK, {"query": "a fox", "documents": many}).json
    assert sorted(each["index"] for each in found["results"]) == list(range(50))
    alone = served.ask("POST", RERANK, {"query": "a fox", "documents": ["one"]}).json
    assert alone["results"] == [{"index": 0, "relevance_score": 1.0}]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 10_000, 400, "not JSON"),
        (b'{"candidates": ["a\\ud800", "b"], "history": ["c"]}', 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        ({}, 422, "candidates: Field required"),
        ([], 422, "object"),
        (BODY | {"candidates": "Halo"}, 422, "valid array"),
        (BODY | {"candidates": ["a", 1]}, 422, "candidates.1: Input should be a valid string"),
        (BODY | {"histroy": []}, 422, "histroy"),
        (BODY | {"candidates": ["a"]}, 422, "has 1 candidates, expected at least 2"),
        (BODY | {"candidates": ["a", " a "]}, 422, "cannot tell them apart"),
        (BODY | {"candidates": ["a", "\u200b"]}, 422, "empty title"),
        (BODY | {"candidates": ["a", "\u0000"]}, 422, "empty title"),
        (BODY | {"template": "A99"}, 422, "A99"),
        (BODY | {"template": "../../etc/passwd"}, 422, "unknown template"),
        (BODY | {"instruction": "x", "template": "A7"}, 422, "leave out either"),
        (BODY | {"normaliser": "pmi"}, 422, "normaliser"),
        (BODY | {"top_n": 0}, 422, "top_n"),
        (BODY | {"candidate_ids": [1, 1, 2, 3]}, 422, "candidate_ids"),
        (BODY | {"candidate_ids": [10**30] * 4}, 422, "candidate_ids"),
        ({"candidates": TITLES}, 422, "no instruction, history, preference or intention"),
        (BODY | {"candidates": [f"t{n}" for n in range(51)]}, 422, "at most 50"),
        (BODY | {"candidates": ["x" * 60_000, "y"]}, 413, "longer than 50000 bytes"),
        (BODY | {"candidates": [f"Title {n}" for n in range(50)]}, 422, "fewer candidates"),
    ],
)
def test_a_broken_request_gets_its_status_and_one_message(served, body, status, says):
    answer = served.ask("POST", RANK, body)
    assert (answer.status, says in answer.json["error"]["message"]) == (status, True), answer.text
    assert len(answer.text) < 1500


def test_hostile_titles_are_texts_like_any_other(served):
    titles = ["'; DROP TABLE x; --", "</data><script>alert(1)</script>", "{{7*7}}", "ل‮x", "🦊" * 9]
    answer = served.ask("POST", RANK, BODY | {"candidates": titles, "template": "A1"})
    assert answer.status == 200
    assert {each["candidate"] for each in answer.json["candidates"]} == set(titles)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz/../v1/rank", 401),
        ("//healthz", 401),
        ("/healthz/", 401),
        ("/%68ealthz", 401),
        ("/../../etc/passwd", 401),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/", 401),
        ("/healthz", 200),
        ("/healthz?token=x", 200),
    ],
)
def test_nothing_but_health_is_told_without_a_token(served, path, status):
    for method in ("GET", "HEAD", "OPTIONS", "POST"):
        answer = served.ask(method, path, token=None)
        right = 405 if status == 200 and method in ("OPTIONS", "POST") else status
        assert answer.status == right
        assert not any(name.startswith("access-control") for name in answer.headers)
        if right == 401:
            assert answer.json["error"]["code"] == "no_token" and answer.headers["connection"]


def test_unknown_paths_and_methods_are_named_after_the_token(served):
    assert served.ask("GET", "/v1/secrets").json["error"]["code"] == "no_such_path"
    assert served.ask("GET", RANK).json["error"]["code"] == "wrong_method"
    assert served.ask("GET", "/v1/models").json["data"][0]["max_candidates"] == 50


def test_tokens_have_scopes_rates_and_an_end(served, monkeypatch):
    state = str(served.state_dir)
    reader = make_token(state_dir=state, name="reader", scopes=["metrics"])
    slow = make_token(state_dir=state, name="slow", requests_per_minute=2)
    assert served.ask("GET", "/metrics", token=reader).status == 200
    refused = served.ask("POST", RANK, BODY, token=reader)
    assert refused.status == 403 and "does not allow 'rank'" in refused.text
    statuses = [served.ask("POST", RANK, BODY, token=slow) for _ in range(3)]
    assert [each.status for each in statuses] == [200, 200, 429]
    assert 1 <= int(statuses[-1].headers["retry-after"]) <= 30
    password = base64.b64encode(f"me:{served.token}".encode()).decode()
    basic = {"authorization": f"Basic {password}"}
    assert served.ask("POST", RANK, BODY, headers=basic).status == 200
    for header in ("Bearer", "Bearer x", "Basic x", f"Token {served.token}", "Basic \xe9"):
        answer = served.ask("POST", RANK, BODY, headers={"authorization": header})
        assert answer.status == 401 and served.token not in answer.text
    assert tokens.list_tokens(state_dir=state)[1].startswith("reader\tmetrics\t600/min\tuntil ")
    tokens.revoke_token(state_dir=state, name="reader")
    assert served.ask("GET", "/metrics", token=reader).json["error"]["code"] == "unknown_token"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 91 * 24 * 3600)
    assert served.ask("POST", RANK, BODY).json["error"]["code"] == "expired_token"


def test_the_files_of_a_service_hold_no_token_and_no_text(served):
    served.ask("POST", RANK, BODY | {"intention": "call 555-0123-4567"})
    for path in served.state_dir.iterdir():
        held = path.read_bytes()
        assert served.token.encode() not in held and b"Halo" not in held
    *_, line = (served.state_dir / "audit.jsonl").read_text().splitlines()
    noted = json.loads(line)
    assert (noted["token"], noted["route"], noted["status"]) == ("all", RANK, 200)
    assert noted["candidates"] == 4
    assert (served.state_dir / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_bodies_are_json_of_bounded_size_and_come_from_no_other_site(served):
    form = {"content-type": "text/plain"}
    assert served.ask("POST", RANK, BODY, headers=form).status == 415
    assert served.ask("POST", "/v1/models", headers=form).status == 405
    other = {"sec-fetch-site": "cross-site"}
    assert served.ask("POST", RANK, BODY, headers=other).json["error"]["code"] == "other_site"
    parts = [b"x" * 30_000] * 3  # in pieces, its length untold
    assert served.ask("POST", RANK, parts=parts).status == 413
    too_long = {"content-length": "9" * 5000}
    assert served.ask("POST", RANK, b"{}", headers=too_long).status == 413


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4), max_leaves=6)
FIELDS = st.sampled_from([*RankRequest.model_fields, *RerankRequest.model_fields, "unknown"])


@settings(max_examples=12)
@given(
    st.dictionaries(FIELDS, VALUES, max_size=6),
    st.lists(st.text(max_size=30), min_size=2, max_size=5),
    st.sampled_from([RANK, RERANK]),
)
def test_no_body_breaks_the_service(served, body, titles, path):
    usual = {"candidates": titles, "history": titles} if path == RANK else {"documents": titles}
    for sent in (body, usual | {"query": "x"} if path == RERANK else usual, usual | body):
        answer = served.ask("POST", path, json.dumps(sent).encode())
        assert answer.status in (200, 400, 422), answer.text
        assert answer.status == 200 or answer.json["error"]["message"]


def test_an_engine_is_exchanged_without_dropping_a_request(served, monkeypatch, caplog):
    """What began with the old one is answered by it, what comes later by the new one."""
    old = served.service.engines[0]

    async def exchange():
        asked = [asyncio.ensure_future(served.asking("POST", RANK, BODY)) for _ in range(6)]
        served.service.reload()
        while served.service.engines[0] is old:
            asked.append(asyncio.ensure_future(served.asking("POST", RANK, BODY)))
            await asyncio.sleep(0.5)
        asked += [asyncio.ensure_future(served.asking("POST", RANK, BODY)) for _ in range(5)]
        return await asyncio.gather(*asked)

    first, *others = served.run(exchange())
    assert {each.status for each in (first, *others)} == {200}
    scores = [[c["score"] for c in each.json["candidates"]] for each in (first, *others)]
    np.testing.assert_allclose(scores, [scores[0]] * len(scores), rtol=1e-5)

    def fail():
        raise UserError("no finished checkpoint")

    new = served.service.engines[0]
    monkeypatch.setattr(served.service, "_open_engines", fail)

    async def exchange_in_vain():
        await served.service._exchange()

    served.run(exchange_in_vain())
    assert served.service.engines[0] is new and "the engine stays as it was" in caplog.text
    assert served.ask("POST", RANK, BODY).status == 200


def test_the_openapi_document_holds_every_path_and_resolves(served):
    document = served.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert {RANK, RERANK, "/v2/rerank", "/v1/models", "/healthz"} <= set(document["paths"])
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert references and set(references) <= set(document["components"]["schemas"])


def test_the_page_asks_nobody_else_and_writes_no_markup(served):
    page, style, script = (served.ask("GET", path) for path in ("/", "/page.css", "/page.js"))
    assert [each.status for each in (page, style, script)] == [200] * 3
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    addresses = set(re.findall(r"https?://[^\s\"']+", page.text + style.text + script.text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nobody asks
    assert not re.search("innerHTML|outerHTML|insertAdjacent|eval|document.write", script.text)
    assert not re.search(r"\son\w+=|style=|<script(?! src)", page.text)
    fields = re.findall(r'<(?:textarea|input) id="(\w+)"', page.text)
    assert fields and set(fields) == set(re.findall(r'<label for="(\w+)"', page.text))
    assert set(re.findall(r'at\("(\w+)"\)', script.text)) <= set(
        re.findall(r'id="(\w+)"', page.text)
    )
    assert served.ask("GET", "/", token=None).headers["www-authenticate"].startswith("Basic")


def test_a_user_keeps_one_of_the_templates_that_suit(served):
    ranker, texts = served.service.engines[0].ranker, {"history": ["Halo"]}
    names = ["A7", "A8", "C10.specific"]
    chosen = {f"u{n}": ranker.chosen_template(names, texts, f"u{n}") for n in range(40)}
    assert set(chosen.values()) == {"A7", "A8"}  # nobody said what is wanted
    assert chosen["u3"] == ranker.chosen_template(names, texts, "u3")
    wanted = texts | {"intention": "x"}
    assert {ranker.chosen_template(names, wanted, str(n)) for n in range(40)} == set(names)
    assert ranker.chosen_template(["C10.specific"], texts, "u") is None


def test_a_bucket_of_requests_fills_with_time():
    limiter = RateLimiter()
    token = Token(name="a", scopes=frozenset(), requests_per_minute=2, expires=0)
    assert [limiter.seconds_to_wait(token, 0.0) for _ in range(3)] == [0, 0, 30]
    assert limiter.seconds_to_wait(token, 15.0) == 15
    assert limiter.seconds_to_wait(token, 31.0) == 0


def test_mistakes_of_who_serves_are_told(tmp_path, model_dir):
    with pytest.raises(UserError, match="bind"):
        ServeSettings(model="m", state_dir="s", bind="example.com:x")
    with pytest.raises(UserError, match="a certificate and its key"):
        ServeSettings(model="m", state_dir="s", tls_key_path="k")
    with pytest.raises(UserError, match="token make"):
        tokens.list_tokens(state_dir=str(tmp_path))
    make_token(state_dir=str(tmp_path), name="a")
    with pytest.raises(UserError, match="a token named 'a'"):
        make_token(state_dir=str(tmp_path), name="a")
    with pytest.raises(UserError, match="unknown scope"):
        make_token(state_dir=str(tmp_path), name="b", scopes=["all"])
    with pytest.raises(UserError, match="unknown token"):
        tokens.revoke_token(state_dir=str(tmp_path), name="nobody")
    store = TokenStore(tmp_path)
    assert store.find("a") is None
    store.close()
