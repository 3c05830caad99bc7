"""The service as a process of its own: started, asked by clients, stopped by a signal."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest
from serve_toy import save_served_model

from instructrec_jax.serving.tokens import make_token

BODY = {"history": ["Halo"], "candidates": ["Quiet Fox", "Blue Bee"]}


def started(model, state_dir, log):
    """A process of `instructrec serve`, and its port."""
    words = [sys.executable, "-m", "instructrec_jax", "serve", f"--model={model}"]
    words += [f"--state_dir={state_dir}", "--bind=127.0.0.1:0"]
    with log.open("w") as stream:
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}  # one device, as users have
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)
    while not (found := re.search(r"http://127.0.0.1:(\d+);", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return process, int(found[1])


@pytest.mark.slow
def test_a_signal_stops_the_service_when_it_has_answered_what_it_took(toy_records, tmp_path):
    model, log = save_served_model(toy_records, tmp_path / "model"), tmp_path / "log"
    token = make_token(state_dir=str(tmp_path / "state"), name="somebody")
    process, port = started(model, tmp_path / "state", log)
    try:
        headers = {"authorization": f"Bearer {token}"}
        client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        expected = client.post("/v1/rank", json=BODY).json()["candidates"]
        body = json.dumps(BODY).encode()
        head = (
            "POST /v1/rank HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # it is taken now
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx2.TransportError):  # nothing new is taken
                while True:
                    httpx2.get(f"http://127.0.0.1:{port}/healthz")
            connection.sendall(body)
            answer = connection.makefile("rb").read()
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["candidates"] == expected
    said = log.read_text()
    assert "what was taken is answered" in said
    assert token not in said and "Quiet Fox" not in said and "Traceback" not in said
