"""Asking a teacher: each question paid for once, whatever the server and the user do."""

import base64
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
from pathlib import Path

import pytest
from openai_server import Faults, OpenAIServer
from teacher_toy import MODEL, PRICES, question, questions, settings

from instructrec_jax.errors import UserError
from instructrec_jax.settings import SettingError
from instructrec_jax.teacher import claiming, online
from instructrec_jax.teacher.api_key import ApiKey, is_local
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.prices import Price, known_models, price_of
from instructrec_jax.teacher.server import Dialect, _retry_after
from instructrec_jax.teacher.settings import ClientSettings

ROOT = Path(__file__).parents[1]
FAULTY = Faults(
    dropped_before=0.03,
    dropped_after=0.03,
    rate_limited=0.03,
    retry_after_seconds=0.01,
    server_errors=0.03,
    half_json=0.03,
    wrong_schema=0.03,
    refusals=0.03,
)
KEY = "sk-planted+/key%7E=0123456789abcdef"


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite", fingerprint="toy") as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_key_and_small_steps(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(online, "_FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(claiming, "_AHEAD", 50)


def bill(server):
    return Price(**PRICES[MODEL]).usd(server.input_tokens, server.output_tokens)


def test_every_question_is_answered_once_by_a_faulty_server(ledger, tmp_path):
    with OpenAIServer(faults=FAULTY) as server:
        counts = ask_all(questions(200), ledger, settings(server, tmp_path, max_usd=1.0))
    assert counts["answered"] == 200 and not counts["failed"]
    answers = ledger.answers([q.key for q in questions(200)])
    assert len(answers) == 200
    assert len({a.text for a in answers.values() if a.finish_reason == "stop"}) > 180
    assert server.wasted and sum(server.billed.values()) == 200 + sum(server.wasted.values())
    assert bill(server) <= ledger.spent() <= 1.0
    some = answers[question(0).key]
    assert some.model == "tiny-teacher-2026-01-01" and some.usd == pytest.approx(
        (some.input_tokens + 2 * some.output_tokens) / 1e6
    )


def test_asking_again_asks_nothing(ledger, tmp_path):
    with OpenAIServer() as server:
        ask_all(questions(30), ledger, settings(server, tmp_path))
        counts = ask_all(questions(32), ledger, settings(server, tmp_path))
    assert (counts["answered_before"], counts["answered"]) == (30, 2)
    assert server.billed.total() == 32


def test_a_question_that_comes_twice_is_asked_once(ledger, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with OpenAIServer(faults=Faults(delay_seconds=0.01)) as server:
        stream = [asked for asked in questions(40) for _ in range(3)]
        counts = ask_all(stream, ledger, settings(server, tmp_path))
    assert (counts["answered"], counts["answered_before"]) == (40, 80)
    assert server.billed.total() == 40 and "another run" not in caplog.text


@pytest.mark.slow
def test_two_kills_lose_no_more_than_what_is_in_flight(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "teacher_storm.py")]
    arguments = ["--num_questions=400", "--num_kills=2", "--max_in_flight=4"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 of 400 answered" in done.stdout and "the money ended" in done.stdout


def test_two_runs_on_one_ledger_ask_each_question_once(tmp_path):
    path, found = tmp_path / "ledger.sqlite", []

    def run(server):
        with Ledger(path, fingerprint="toy") as ledger:
            found.append(ask_all(questions(120), ledger, settings(server, tmp_path)))

    with OpenAIServer(faults=Faults(delay_seconds=0.01)) as server:
        settings(server, tmp_path)
        threads = [threading.Thread(target=run, args=(server,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(counts["answered"] for counts in found) == 120
    assert all(counts["answered"] + counts["answered_before"] == 120 for counts in found)
    assert set(server.billed.values()) == {1}


def test_money_is_a_hard_stop_and_more_of_it_goes_on(ledger, tmp_path):
    with OpenAIServer(faults=FAULTY) as server:
        limit = 20 * Price(**PRICES[MODEL]).worst_usd(question(0))
        with pytest.raises(UserError, match=r"max_usd=0.\d+ is reached: .* of 100 answers are"):
            ask_all(questions(100), ledger, settings(server, tmp_path, max_usd=limit), total=100)
        assert 20 <= ledger.counts()["answered"] < 100
        assert bill(server) <= ledger.spent() <= limit
        assert "in_flight" not in ledger.counts()
        ask_all(questions(100), ledger, settings(server, tmp_path, max_usd=10.0))
    assert ledger.counts()["answered"] == 100


def test_a_model_without_a_price_is_told_and_refused_where_money_is_limited(
    ledger, tmp_path, caplog
):
    with OpenAIServer() as server:
        bare = ClientSettings(base_url=server.base_url)
        ask_all(questions(1), ledger, bare)
        assert "no price is known for model 'tiny-teacher'" in caplog.text
        limited = ClientSettings(base_url=server.base_url, max_usd=1.0)
        with pytest.raises(UserError, match=r"so max_usd cannot be kept; name a JSON file"):
            ask_all(questions(2), ledger, limited)
    assert server.billed.total() == 1 and ledger.spent() == 0.0


def test_a_server_without_schemas_is_asked_in_words(ledger, tmp_path):
    seen = []

    def say(request):
        seen.append(request)
        return "text"

    with OpenAIServer(faults=Faults(refuses_schemas=True), answer=say) as server:
        counts = ask_all(questions(20), ledger, settings(server, tmp_path))
    assert counts["answered"] == 20
    assert all("response_format" not in request for request in seen)
    assert '"properties": {"text"' in seen[0]["messages"][0]["content"]


def test_a_model_gets_the_names_that_it_knows():
    dialect = Dialect()
    assert dialect.learn(dialect.body(question(0)), "use 'max_completion_tokens' instead")
    assert dialect.body(question(0))["max_completion_tokens"] == 50
    assert dialect.learn(dialect.body(question(0)), "'temperature' does not support 0.0")
    assert "temperature" not in dialect.body(question(0))
    assert not dialect.learn(dialect.body(question(0)), "context is too long")


def test_a_question_the_server_refuses_is_counted_and_the_others_go_on(ledger, tmp_path):
    with OpenAIServer(models=(MODEL,)) as server:
        server.refused = {"What does customer 3 like?"}
        counts = ask_all(questions(6), ledger, settings(server, tmp_path))
    assert counts["answered"] == 5
    assert counts["failed: refused by the server"] == 1
    assert ledger.counts() == {"answered": 5}


def test_many_failures_in_a_row_end_the_run(ledger, tmp_path):
    with (
        OpenAIServer(faults=Faults(server_errors=1.0)) as server,
        pytest.raises(UserError, match=r"last 2. questions got no answer .*server error"),
    ):
        ask_all(questions(60), ledger, settings(server, tmp_path, max_tries=2))
    assert ledger.counts() == {} and ledger.spent() == pytest.approx(0.0)


def test_answers_without_room_for_text_are_paid_once_and_many_in_a_row_end_the_run(
    ledger, tmp_path
):
    said = r"the last 5\d answers ended at their most tokens before any text.* larger --max_tokens"
    with (
        OpenAIServer(faults=Faults(no_room=1.0)) as server,
        pytest.raises(UserError, match=said),
    ):
        ask_all(questions(200), ledger, settings(server, tmp_path))
    assert set(server.billed.values()) == {1} and server.billed.total() < 70
    assert ledger.counts() == {"answered": server.billed.total()}


@pytest.mark.parametrize(
    ("faults", "changes", "message"),
    [
        ({"is_html": True}, {}, "answers with a web page, no JSON"),
        ({}, {"key": "sk-another-key"}, "refuses the API key .401: Incorrect API key"),
        ({}, {"models": ("other",)}, "knows no such model or address .404: The model `tiny-t"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_message(ledger, tmp_path, faults, changes, message):
    with (
        OpenAIServer(faults=Faults(**faults), **changes) as server,
        pytest.raises(UserError, match=message),
    ):
        ask_all(questions(50), ledger, settings(server, tmp_path))
    assert ledger.counts() == {} and ledger.spent() == 0.0


def test_a_server_that_is_not_there_is_one_message(ledger, tmp_path):
    with OpenAIServer() as server:
        gone = settings(server, tmp_path)
    with pytest.raises(UserError, match=r"cannot reach http://127.0.0.1.*start the server"):
        ask_all(questions(50), ledger, gone)
    assert ledger.counts() == {}


def test_a_server_far_away_needs_a_key(ledger):
    with pytest.raises(UserError, match=r"variable MY_KEY is not set; https://api.openai.com/v1"):
        ask_all(questions(1), ledger, ClientSettings(key_variable="MY_KEY"))


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:80/v1", True),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example.com", False),
    ],
)
def test_local_servers_are_known_by_their_address(address, is_here):
    assert is_local(address) == is_here


@pytest.mark.parametrize("address", ["gs://bucket", "https://me:secret@host/v1", "host/v1"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(SettingError, match=r"expected the address of a server"):
        ClientSettings(base_url=address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_and_what_was_sent_is_paid_and_kept(ledger, tmp_path, number):
    with OpenAIServer(faults=Faults(delay_seconds=0.05)) as server:

        def stream():
            for index, asked in enumerate(questions(600)):
                if index == 120:  # long after the first answers
                    os.kill(os.getpid(), number)
                yield asked

        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                ask_all(stream(), ledger, settings(server, tmp_path, max_in_flight=64))
        else:
            counts = ask_all(stream(), ledger, settings(server, tmp_path, max_in_flight=64))
            assert counts["stopped"] == 1
    answered = ledger.counts().pop("answered")
    assert 0 < answered < 600
    assert ledger.counts() == {"answered": answered}
    assert server.billed.total() == answered


def test_a_mistake_in_the_stream_loses_no_answer(ledger, tmp_path):
    def stream():
        yield from questions(120)
        raise UserError("the reviews are damaged")

    with OpenAIServer() as server, pytest.raises(UserError, match=r"the reviews are damaged"):
        ask_all(stream(), ledger, settings(server, tmp_path, max_in_flight=64))
    assert server.billed.total() == ledger.counts()["answered"] > 0
    assert "in_flight" not in ledger.counts()


def test_questions_are_taken_as_they_are_needed(ledger, tmp_path):
    ahead = []
    with OpenAIServer() as server:

        def stream():
            for index, asked in enumerate(questions(200)):
                ahead.append(index - server.billed.total())
                yield asked

        ask_all(stream(), ledger, settings(server, tmp_path, max_in_flight=32))
    assert max(ahead) <= 50 + 32


def test_a_full_disk_ends_the_run_and_every_paid_answer_is_kept(ledger, tmp_path):
    from test_ledger import Reserve

    ledger._database._reserve = Reserve(ledger)
    with OpenAIServer() as server, pytest.raises(UserError, match=r"disk is full; make room"):
        ask_all(questions(500), ledger, settings(server, tmp_path))
    assert 0 < ledger.counts()["answered"] == server.billed.total() < 500


def test_requests_are_spread_over_the_minute(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    pace = online._Pace(requests=60, tokens=None)
    assert [pace.seconds_for(question(n)) for n in range(3)] == [0.0, 1.0, 2.0]
    pace = online._Pace(requests=None, tokens=600)
    cheap = question(0, system="", user="x" * 40, max_tokens=10)  # about 20 tokens
    assert [pace.seconds_for(cheap) for _ in range(2)] == [0.0, 2.0]
    pace.pause(30.0)
    assert pace.seconds_for(cheap) == 30.0


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert _retry_after({"retry-after": "1.5"}) == 1.5
    assert _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert _retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert _retry_after({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}) > 1e6
    assert _retry_after({"retry-after": "soon"}) is None and _retry_after({}) is None


def test_prices_come_from_the_users_table_first(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text('{"gpt-4o-mini": {"input_usd": 9, "output_usd": 9}}')
    assert price_of("gpt-4o-mini", path).input_usd == 9
    assert price_of("gpt-4o-mini-2024-07-18") == price_of("gpt-4o-mini")
    assert price_of("nobody-knows") is None and "gpt-4o-mini" in known_models()
    assert Price(input_usd=1, output_usd=3).usd(1e6, 1e6, is_batch=True) == 2.0
    path.write_text('{"gpt-4o-mini": {"input_usd": -1, "output_usd": 9}}')
    with pytest.raises(UserError, match=r"gpt-4o-mini: input_usd is -1; expected"):
        price_of("gpt-4o-mini", path)


def test_offline_work_imports_no_client():
    code = "import sys, instructrec_jax.teacher.client; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def written_forms(key):
    """Every form in which a key may have been written."""
    yield from (key, urllib.parse.quote(key), urllib.parse.quote(key, safe=""), repr(key)[1:-1])
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + key.encode()).decode()[4:-4]


@pytest.mark.parametrize("is_right", [True, False])
def test_the_key_is_written_nowhere(tmp_path, monkeypatch, caplog, capfd, is_right):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    encoded = base64.b64encode(f"x{KEY}".encode()).decode()
    told = f"you sent {KEY}, {urllib.parse.quote(KEY, safe='')}, {encoded}"
    said = [""]
    with (
        OpenAIServer(
            key=KEY if is_right else "another",
            answer=lambda _: told,
            faults=Faults(echoes_key=True, half_json=0.2, dropped_after=0.1),
        ) as server,
        Ledger(tmp_path / "ledger.sqlite", fingerprint="toy") as ledger,
    ):
        try:
            ask_all(questions(40), ledger, settings(server, tmp_path))
            ask_all(questions(50), ledger, settings(server, tmp_path, mode="batch"))
        except UserError as error:
            said[0] = "".join(traceback.format_exception(error))
        assert bool(said[0]) != is_right
        out = capfd.readouterr()
        logged = [f"{r.getMessage()} {r.exc_text}" for r in caplog.records]
        texts = [*said, *logged, out.out, out.err, repr(ApiKey(KEY))]
        if is_right:
            assert "you sent [key], [key], " in ledger.answer(question(0).key).text
        texts += [p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file()]
    texts += [p.read_bytes().decode("latin-1") for p in tmp_path.rglob("*") if p.is_file()]
    for form in written_forms(KEY):
        assert not any(form in text for text in texts), form
