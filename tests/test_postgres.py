"""Feedback in a real PostgreSQL server: kept through kills, shared, and no password told."""

import json
import logging
import signal
import subprocess
import sys

import pytest
from postgres_server import IS_THERE, PASSWORD, PostgresServer
from serve_toy import Served, save_served_model
from test_feedback import BODY, SPEAKER, TITLES, kept, say

from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.serving.feedback import FeedbackStore
from instructrec_jax.serving.learning import export_feedback, report_feedback
from instructrec_jax.serving.service import ServeSettings
from instructrec_jax.settings import masked, shown

needs_server = pytest.mark.skipif(not IS_THERE, reason="no PostgreSQL server is installed")
SECRETS = (PASSWORD, "s3cret", "word@", "%2Fword")


@pytest.fixture(scope="module")
def server():
    found = PostgresServer()
    yield found
    found.close()


@needs_server
def test_what_was_acknowledged_survives_kills_of_the_service_and_of_the_server(server):
    words = [sys.executable, "-c", SPEAKER, server.url]
    speaker = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = [speaker.stdout.readline() for _ in range(20)]
    speaker.send_signal(signal.SIGKILL)
    said += speaker.communicate()[0].splitlines(keepends=True)
    again = [*words[:2], SPEAKER.replace("range(10**6)", "range(10**7, 2 * 10**7)"), server.url]
    speaker = subprocess.Popen(again, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said += [speaker.stdout.readline() for _ in range(20)]
    server.kill()
    rest, error = speaker.communicate()
    server.start()
    assert speaker.returncode and not any(secret in error for secret in SECRETS)
    acknowledged = [line.strip() for line in [*said, *rest.splitlines(True)] if line[-1:] == "\n"]
    store = FeedbackStore(server.url)
    found = {each.impression_id: each.items[0].verdicts for each in store.impressions()}
    assert store.counts()["up"] >= len(acknowledged) >= 40
    store.close()
    assert all(found[name] == ("up",) for name in acknowledged)


@needs_server
def test_the_service_keeps_feedback_there_and_says_so_where_it_cannot(
    server, toy_records, tmp_path, caplog, capsys
):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("jax").setLevel(logging.WARNING)
    model = save_served_model(toy_records, tmp_path / "model")
    with Served(model, tmp_path / "state", feedback=server.url) as served:
        assert PASSWORD not in repr(served.settings) and "s3cret" not in repr(served.settings)
        ranking = served.ask("POST", "/v1/rank", BODY | {"user_id": "u\0 1"}).json
        first = ranking["candidates"][0]["index"]
        assert say(served, ranking, first, "taken").json == {"status": "kept"}
        assert say(served, {"impression_id": "\0"}, 0, "up").status == 404
        assert say(served, ranking, 2**31, "up").status == 422
        server.kill()
        lost = say(served, ranking, first, "down")
        assert lost.status == 503 and lost.headers["retry-after"] == "5"
        assert lost.json["error"]["code"] == "not_kept"
        assert served.ask("POST", "/v1/rank", BODY).status == 503
        assert served.ask("POST", "/v1/rank", BODY | {"record": False}).status == 200
        server.start()
        assert say(served, ranking, first, "up").status == 200  # by a new connection
    assert not (tmp_path / "state" / "feedback.sqlite").exists()
    export_feedback(feedback=server.url, output_dir=str(tmp_path / "logs"))
    lines = (tmp_path / "logs" / "interactions.jsonl").read_text().splitlines()
    (own,) = [each for each in map(json.loads, lines) if each["user_id"] == "u\ufffd 1"]
    assert (own["item_id"], own["verdict"]) == ("abcd"[first], "up")
    assert set(TITLES) <= {
        json.loads(line)["title"] for line in (tmp_path / "logs" / "items.jsonl").open()
    }
    assert main.main(["feedback", "report", f"--feedback={server.url}"]) == 0
    written = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    told = capsys.readouterr()
    everything = "".join([written, caplog.text, told.out, told.err, lost.text])
    assert "feedback is not kept: cannot use postgresql://shop@127.0.0.1" in everything
    assert not any(secret in everything for secret in SECRETS)


@needs_server
def test_services_share_a_database_and_other_ones_are_refused(server):
    first, second = FeedbackStore(server.url), FeedbackStore(server.url)
    impression = kept(0, "A7 shared", 1)[0]
    first.add(impression)
    assert second.say(impression.impression_id, 0, "down", token="t")
    assert not second.say(impression.impression_id, 0, "down", token="other")
    assert impression.impression_id in {each.impression_id for each in first.impressions()}
    with pytest.raises(UserError, match="duplicate key"):
        second.add(impression)
    assert second.counts()["impressions"] == first.counts()["impressions"]
    first._database.write(lambda: first._database.run("UPDATE meta SET value = ?", '"other"'))
    with pytest.raises(UserError, match="is no file of feedback of format 1"):
        FeedbackStore(server.url)
    first._database.write(
        lambda: [
            first._database.run("UPDATE meta SET value = ? WHERE name = ?", value, name)
            for name, value in {"format": "1", "fingerprint": '"feedback"'}.items()
        ]
    )
    first.close()
    second.close()


@needs_server
def test_a_wrong_password_is_named_without_it(server):
    with pytest.raises(UserError, match="password authentication failed") as refused:
        FeedbackStore(server.url.replace("s3cret", "guess3d"))
    assert "guess3d" not in str(refused.value)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/x: .*refused") as refused:
        FeedbackStore("postgresql://u:guess3d@127.0.0.1:1/x")
    assert "guess3d" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:gue/ss3d@ss3d@host/db",
        "postgresql://u:ss3d@host:ss3d/db",
        "postgresql://u:ss3d@host",
        "postgresql+psycopg://u:ss3d@/?password=ss3d",
    ],
)
def test_an_address_that_cannot_be_read_is_not_shown(url):
    with pytest.raises(UserError, match="expected postgresql://USER:PASSWORD@HOST") as refused:
        FeedbackStore(url)
    assert "ss3d" not in str(refused.value)


def test_other_addresses_are_refused_and_no_message_shows_a_password(tmp_path):
    with pytest.raises(UserError, match="expected a path, or a database such as") as refused:
        ServeSettings(model="m", state_dir="s", feedback="mysql://u:p@ss3d@host/db")
    assert "ss3d" not in str(refused.value) and "u:***@host" in str(refused.value)
    assert shown("https://u:ss3d@h/x?password=ss3d&a=1") == "'https://u:***@h/x?password=***&a=1'"
    assert masked("run --a=http://h:80/v1 b@c") == "run --a=http://h:80/v1 b@c"
    with pytest.raises(UserError, match="name --state_dir of `serve`, or its --feedback"):
        report_feedback()
    with pytest.raises(UserError, match="holds no feedback"):
        report_feedback(feedback=str(tmp_path / "none.sqlite"))
    store = FeedbackStore(tmp_path / "own.sqlite")
    store.add(kept(0, "A7", 1)[0])
    store.close()
    assert "rankings: 1" in report_feedback(feedback=str(tmp_path / "own.sqlite"))[0]
