"""The service as a process of its own: started, asked, stopped by a signal."""

import re
import signal
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from serve_toy import save_served_model

from instructrec_jax.serving.tokens import make_token

BODY = {"history": ["Halo"], "candidates": ["Quiet Fox", "Blue Bee"]}


class Process:
    """`instructrec serve`, and a client of it."""

    def __init__(self, model, state_dir, log, *flags):
        self.token = make_token(
            state_dir=str(state_dir),
            name=f"t{time.time_ns()}",
            scopes=["rank", "feedback", "metrics"],
        )
        words = [sys.executable, "-m", "instructrec_jax", "serve", f"--model={model}"]
        words += [f"--state_dir={state_dir}", "--bind=127.0.0.1:0", *flags]
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(words, stdout=stream, stderr=stream)
        try:
            while not (found := re.search(r"http://\S+:\d+", log.read_text())):
                assert self.process.poll() is None, log.read_text()
                time.sleep(0.05)
            headers = {"authorization": f"Bearer {self.token}"}
            self.client = httpx2.Client(base_url=found[0], headers=headers, timeout=60)
            while self.client.get("/readyz").status_code != 200:
                time.sleep(0.05)
        except BaseException:
            self.process.kill()
            raise


@pytest.mark.slow
def test_a_signal_stops_the_service_when_it_has_answered_what_it_took(toy_records, tmp_path):
    model = save_served_model(toy_records, tmp_path / "model")
    log, answers = tmp_path / "log", []
    served = Process(model, tmp_path / "state", log, "--batch_milliseconds=1000")

    def ask():
        answers.append(served.client.post("/v1/rank", json=BODY))

    try:
        asking = threading.Thread(target=ask)
        asking.start()
        while not (line := re.search(r"^instructrec_taken_requests 1", metrics(served), re.M)):
            time.sleep(0.01)
        served.process.send_signal(signal.SIGTERM)
        asking.join()
        assert served.process.wait(60) == 0
    finally:
        served.process.kill()
    assert line and answers[0].status_code == 200
    assert len(answers[0].json()["candidates"]) == 2
    said = log.read_text()
    assert "what was taken is answered" in said
    assert served.token not in said and "Quiet Fox" not in said and "Traceback" not in said


def metrics(served):
    return served.client.get("/metrics").text
