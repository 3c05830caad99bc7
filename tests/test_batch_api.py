"""The Batch API: every batch is paid for once, whenever its run ends, and brings what it can."""

import json
import os
import signal

import pytest
from openai_server import Faults, OpenAIServer
from teacher_toy import MODEL, PRICES, questions, settings

from instructrec_jax.errors import UserError
from instructrec_jax.teacher import batch_api, claiming
from instructrec_jax.teacher.batch_api import BatchApi
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.prices import Price

FAULTY = Faults(
    dropped_before=0.05, server_errors=0.05, wrong_schema=0.05, rate_limited=0.05, duplicated=0.3
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(path, number, server, **changes):
    fields = {"mode": "batch", "poll_seconds": 0.01, "batch_size": 40, "max_usd": 1.0, **changes}
    with Ledger(path, fingerprint="toy") as ledger:
        return ask_all(questions(number), ledger, settings(server, path.parent, **fields))


def state_of(path, number):
    with Ledger(path, fingerprint="toy") as ledger:
        answers = ledger.answers([q.key for q in questions(number)])
        return answers, ledger.counts(), ledger.spent()


def test_batches_in_disorder_answer_every_question_once_at_half_the_price(path):
    with OpenAIServer(faults=FAULTY, batch_seconds=0.05) as server:
        counts = ask(path, 150, server)
    answers, states, spent = state_of(path, 150)
    assert counts["answered"] == states["answered"] == len(answers) == 150
    assert set(server.billed.values()) == {1}
    price = Price(**PRICES[MODEL])
    half = price.usd(server.input_tokens, server.output_tokens) / 2
    assert sum(a.usd for a in answers.values()) == pytest.approx(half)
    assert half <= spent <= 1.0
    assert not list(path.with_name("ledger.sqlite.batches").glob("*"))
    assert not server.files  # nothing is left lying at the server


def test_a_file_holds_no_more_requests_and_bytes_than_the_api_takes(path, monkeypatch):
    monkeypatch.setattr(batch_api, "BATCH_BYTES", 6000)
    monkeypatch.setattr(claiming, "_AHEAD", 7)
    sizes = []
    upload = OpenAIServer._file

    def seen(self, content, purpose):
        if purpose == "batch":
            sizes.append((len(content), content.count(b"\n")))
        return upload(self, content, purpose)

    monkeypatch.setattr(OpenAIServer, "_file", seen)
    with OpenAIServer() as server:
        ask(path, 50, server)
    assert len(sizes) > 3 and all(0 < size <= 6000 and lines <= 40 for size, lines in sizes)
    assert sum(lines for _, lines in sizes) == 50


class KilledError(BaseException):
    """Plays kill -9: nothing of the run is tidied up."""


def die(*_):
    raise KilledError


@pytest.mark.parametrize("moment", ["claimed", "written", "created"])
def test_a_run_that_is_killed_around_a_batch_pays_for_none_twice(path, monkeypatch, moment):
    entered = BatchApi._enter

    async def enter(self, part, value):
        if moment == "created" and value["state"] == batch_api.SENT:
            die()
        await entered(self, part, value)
        if moment == "written":
            die()

    with OpenAIServer() as server, monkeypatch.context() as patch:
        patch.setattr(BatchApi, "_enter", enter)
        if moment == "claimed":
            patch.setattr(BatchApi, "_line", die_at_second_call())
        patch.setattr(Ledger, "close", lambda self: self._database.close())
        with pytest.raises(KilledError):
            ask(path, 20, server)
        assert len(server.batches) == (moment == "created")
        patch.undo()
        monkeypatch.setattr("instructrec_jax.teacher.ledger._OPEN", set())
        ask(path, 20, server)
    answers, states, _ = state_of(path, 20)
    assert len(answers) == 20 and states == {"answered": 20}
    assert set(server.billed.values()) == {1}


def die_at_second_call():
    real, calls = BatchApi._line, []

    def line(self, question):
        calls.append(question)
        return real(self, question) if len(calls) <= 25 else die()

    return line


def test_a_batch_goes_on_at_the_server_when_its_run_ends(path):
    with OpenAIServer(batch_seconds=3600.0) as server:

        def stream():
            yield from questions(20)
            os.kill(os.getpid(), signal.SIGTERM)

        fields = {"mode": "batch", "poll_seconds": 0.01}
        with Ledger(path, fingerprint="toy") as ledger:
            counts = ask_all(stream(), ledger, settings(server, path.parent, **fields))
        assert counts["stopped"] == 1
        online = ask(path, 22, server, mode="online")
        assert (online["in_batches"], online["answered"]) == (20, 2)
        for batch in server.batches.values():
            batch["ready"] = 0.0
        ask(path, 22, server)
    assert len(state_of(path, 22)[0]) == 22 and len(server.batches) == 1
    assert set(server.billed.values()) == {1}


def test_a_batch_that_the_server_forgot_is_given_up_only_on_demand(path, monkeypatch):
    def stop(self, part, batch):
        raise KilledError

    with OpenAIServer() as server:
        with monkeypatch.context() as patched:
            patched.setattr(BatchApi, "_collect", stop)
            with pytest.raises(KilledError):
                ask(path, 60, server, batch_size=60)
        server.batches.clear()
        with pytest.raises(
            UserError, match=r"does not know batch batch_1, which holds 60 .*give_up"
        ):
            ask(path, 60, server, batch_size=60)
        assert state_of(path, 60)[1] == {"in_flight": 60} and server.billed.total() == 60
        counts = ask(path, 60, server, batch_size=60, give_up_batches=True)
        assert counts["answered"] == 60
    assert server.billed.total() == 120  # said before, not silently
    _, states, spent = state_of(path, 60)
    assert states == {"answered": 60, "lost": 60}
    assert spent > Price(**PRICES[MODEL]).usd(server.input_tokens, server.output_tokens) / 2
    assert not list(path.with_name("ledger.sqlite.batches").glob("*"))


def test_money_ends_batches_too(path):
    limit = 10 * Price(**PRICES[MODEL]).worst_usd(questions(1)[0], is_batch=True)
    with OpenAIServer() as server:
        with pytest.raises(UserError, match=r"max_usd=.* is reached"):
            ask(path, 200, server, max_usd=limit)
        price = Price(**PRICES[MODEL])
        bill = price.usd(server.input_tokens, server.output_tokens) / 2
    answers, _, spent = state_of(path, 200)
    assert 10 <= len(answers) < 200 and bill <= spent <= limit


def test_a_batch_that_the_server_will_not_begin_says_why(path, monkeypatch):
    def fail(self, batch):
        error = {"code": "invalid_json", "message": "line 3 is no JSON"}
        batch["later"] = {"status": "failed", "errors": {"object": "list", "data": [error]}}

    monkeypatch.setattr(OpenAIServer, "_work_on", fail)
    with (
        OpenAIServer() as server,
        pytest.raises(UserError, match=r"would not begin batch batch_1: line 3 is no JSON"),
    ):
        ask(path, 20, server)
    assert state_of(path, 20)[1:] == ({}, pytest.approx(0.0))


@pytest.mark.parametrize(
    ("faults", "changes", "message"),
    [
        ({"is_html": True}, {}, r"answers with a web page, no JSON"),
        ({}, {"key": "sk-another-key"}, r"refuses the API key .401"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_message(path, faults, changes, message):
    with (
        OpenAIServer(faults=Faults(**faults), **changes) as server,
        pytest.raises(UserError, match=message),
    ):
        ask(path, 20, server)
    with OpenAIServer() as server:
        ask(path, 20, server)
    assert len(state_of(path, 20)[0]) == 20


def test_questions_that_fail_in_every_batch_are_given_up(path):
    with OpenAIServer(faults=Faults(server_errors=1.0)) as server:
        counts = ask(path, 10, server, max_tries=3)
    assert counts["failed: failed in batches"] == 10
    assert len(server.batches) == 3 and state_of(path, 10)[1] == {}


def test_the_file_of_a_batch_holds_its_questions_by_their_keys(path):
    with OpenAIServer(batch_seconds=3600.0) as server:

        def stream():
            yield from questions(3)
            os.kill(os.getpid(), signal.SIGTERM)

        with Ledger(path, fingerprint="toy") as ledger:
            ask_all(stream(), ledger, settings(server, path.parent, mode="batch"))
        upload, _ = server.files.values()  # the second: what it will bring
        lines = [json.loads(line) for line in upload.splitlines()]
    assert [line["custom_id"] for line in lines] == [q.key for q in questions(3)]
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}
    assert lines[2]["body"]["messages"][1]["content"] == questions(3)[2].user
