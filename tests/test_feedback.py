"""Feedback: kept before it is acknowledged, by whom it concerns, and turned into data."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from raw_logs import named_events, read_logs
from serve_toy import Served, save_served_model

from instructrec_jax.errors import UserError
from instructrec_jax.requests.request_files import RequestFile
from instructrec_jax.requests.row_files import RowFile
from instructrec_jax.serving.feedback import (
    FILE_NAME,
    FeedbackStore,
    Impression,
    ShownItem,
    shown_order,
)
from instructrec_jax.serving.learning import export_feedback, plan_comparison, report_feedback
from instructrec_jax.serving.tokens import make_token

TITLES = ["Quiet Fox", "Red Moon", "Tiny River", "Blue Bee"]
BODY = {
    "history": ["Halo"],
    "candidates": TITLES,
    "item_ids": ["a", "b", "c", "d"],
    "user_id": "u1",
    "record": True,
}


@pytest.fixture(scope="module")
def served(toy_records, tmp_path_factory):
    model = save_served_model(toy_records, tmp_path_factory.mktemp("served"))
    with Served(model, tmp_path_factory.mktemp("state"), explore=0.5) as service:
        yield service


def say(served, shown, index, verdict, **given):
    body = {"impression_id": shown["impression_id"], "index": index, "verdict": verdict}
    return served.ask("POST", "/v1/feedback", body, **given)


def test_feedback_becomes_logs_requests_and_figures(served, tmp_path):
    shown = served.ask("POST", "/v1/rank", BODY).json
    first = shown["candidates"][0]["index"]
    assert say(served, shown, first, "down").status == 200
    assert say(served, shown, first, "up").json == {"status": "kept"}  # the last word counts
    nobody = served.ask("POST", "/v1/rank", {**BODY, "user_id": None, "top_n": 2}).json
    assert len(nobody["candidates"]) == 2
    assert say(served, nobody, nobody["candidates"][1]["index"], "taken").status == 200
    hidden = ({0, 1, 2, 3} - {each["index"] for each in nobody["candidates"]}).pop()
    assert say(served, nobody, hidden, "up").json["error"]["code"] == "not_shown"
    for number in range(8):
        served.ask("POST", "/v1/rank", BODY | {"user_id": f"v{number}"})
    state, logs = str(served.state_dir), tmp_path / "logs"
    export_feedback(state_dir=state, output_dir=str(logs))
    (interaction,) = map(json.loads, (logs / "interactions.jsonl").read_text().splitlines())
    assert (interaction["user_id"], interaction["item_id"]) == ("u1", "abcd"[first])
    assert 0 < interaction["propensity"] <= 1 and interaction["position"] == 1
    read = read_logs(logs)  # as `prepare` does
    assert {item.title for item in read.items} == set(TITLES)
    assert [event[:2] for event in named_events(read)] == [("u1", "abcd"[first])]
    requests = RequestFile(RowFile(logs / "examples.jsonl"), [])
    first_example, other = map(requests.parse, requests.rows())
    assert first_example.target == TITLES[first]
    assert other.history == ("Halo",)
    lines = "\n".join(report_feedback(state_dir=state))
    assert "rankings: 10, with feedback 2" in lines and "up 1, down 1, taken 1" in lines
    assert re.search(r"order of the model: \S+ \[.*\]; \S+ \[", lines)


def test_only_who_was_shown_a_ranking_may_speak_of_it(served):
    shown = served.ask("POST", "/v1/rank", BODY).json
    state = str(served.state_dir)
    other = make_token(state_dir=state, name="other")
    assert say(served, shown, 0, "up", token=other).status == 404
    assert say(served, {"impression_id": "x"}, 0, "up").status == 404
    assert say(served, shown, -1, "up").status == say(served, shown, 0, "best").status == 422
    reader = make_token(state_dir=state, name="reader", scopes=["rank"])
    refused = served.ask("POST", "/v1/rank", BODY, token=reader)
    assert refused.status == 403 and "no ranking is kept" in refused.text
    short = served.ask("POST", "/v1/rank", BODY | {"item_ids": ["a"]})
    assert short.status == 422 and "1 item_ids for 4 candidates" in short.text
    assert "impression_id" not in served.ask("POST", "/v1/rank", BODY | {"record": False}).json


def test_rankings_are_in_the_models_order_or_now_and_then_in_any():
    orders = [tuple(shown_order(3, 0.5, f"id {n}")) for n in range(600)]
    assert len(set(orders)) == 6
    assert np.mean([order == (0, 1, 2) for order in orders]) == pytest.approx(
        0.5 + 0.5 / 6, abs=0.06
    )
    assert orders[:9] == [tuple(shown_order(3, 0.5, f"id {n}")) for n in range(9)]
    assert shown_order(3, 0.0, "x") == [0, 1, 2]


SPEAKER = """
import sys, time
from instructrec_jax.serving.feedback import FeedbackStore, Impression, ShownItem
store = FeedbackStore(sys.argv[1])
item = ShownItem(position=1, candidate=0, item_id="a", title="A", model_position=1, score=0.5)
for number in range(10**6):
    store.add(Impression(impression_id=str(number), time=1.0, token="t", user_id=None, model="m",
        template="A7", num_candidates=1, explored=0.0, request={}, items=(item,)))
    assert store.say(str(number), 0, "up", token="t")
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    speaker = subprocess.Popen(
        [sys.executable, "-c", SPEAKER, tmp_path / FILE_NAME], stdout=subprocess.PIPE, text=True
    )
    said = [speaker.stdout.readline() for _ in range(20)]
    speaker.send_signal(signal.SIGKILL)
    said += speaker.stdout.readlines()
    speaker.wait()
    store = FeedbackStore(tmp_path / FILE_NAME)
    kept = {each.impression_id: each.items[0].verdicts for each in store.impressions()}
    store.close()
    assert len(said) >= 20
    assert all(kept[line.strip()] == ("up",) for line in said if line.endswith("\n"))


def kept(number, template, reward, model="m"):
    """A ranking of one item that a user of its own liked or not."""
    item = ShownItem(position=1, candidate=0, item_id="a", title="A", model_position=1, score=0.5)
    return Impression(
        impression_id=f"{number} {template}",
        time=1.0,
        token="t",
        user_id=f"{number} {template}",
        model=model,
        template=template,
        num_candidates=2,
        explored=0.0,
        request={},
        items=(item,),
    ), reward


def test_templates_are_compared_with_intervals_that_hold_at_every_look(tmp_path):
    store = FeedbackStore(tmp_path / FILE_NAME)
    for number in range(60):
        for template, reward in (("A7", number % 3 == 0), ("A8", number % 10 != 0)):
            impression, is_liked = kept(number, template, reward)
            store.add(impression)
            if is_liked:
                store.say(impression.impression_id, 0, "up", token="t")
    store.add(kept(0, "A9", 0)[0])
    store.close()
    lines = report_feedback(state_dir=str(tmp_path))
    at = next(n for n, line in enumerate(lines) if "minus that of m, A8" in line)
    low, high = map(float, re.findall(r"[-+]0\.\d+", lines[at + 1])[1:])
    assert low < -0.567 < high < 0 and lines[at + 1].startswith("  m, A7: 60 users, -0.567")
    assert lines[at + 2] == "  m, A9: 1 users, fewer than 30 users, too early to say"
    assert "no order was drawn at random" in lines[-1]
    assert plan_comparison(rate=0.3, difference=0.03).startswith("3760 users")


def test_a_way_that_annoys_more_is_told_though_it_earns_as_much(tmp_path):
    store = FeedbackStore(tmp_path / FILE_NAME)
    for number in range(120):
        own, _ = kept(number, ("A8", "A7")[number % 2], 0)
        store.add(own)
        if number % 2 and number % 3:
            store.say(own.impression_id, 0, "up", token="t")  # a slip, taken back
            store.say(own.impression_id, 0, "down", token="t")
    store.close()
    lines = report_feedback(state_dir=str(tmp_path))
    reward, guardrail = [line for line in lines if line.startswith("  m, A7: 60 users")]
    assert reward == "  m, A7: 60 users, +0.000 [+0.000, +0.000]"
    assert guardrail.startswith("  m, A7: 60 users, +0.667") and "take it back" in guardrail


def test_a_folder_without_feedback_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no feedback"):
        report_feedback(state_dir=str(tmp_path))
    FeedbackStore(tmp_path / FILE_NAME).close()
    with pytest.raises(UserError, match='"record": true'):
        report_feedback(state_dir=str(tmp_path))
    with pytest.raises(UserError, match="nothing that was liked"):
        export_feedback(state_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
