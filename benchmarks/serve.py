"""Load on `instructrec serve` over loopback: latencies, requests/s, and what overload does.

    python benchmarks/serve.py --model=runs/model --json=serve.json

Two services of one model run side by side, one that scores batches and one that scores requests
one by one; each measurement asks one of them, in turns. A number of clients ask again as soon as
they are answered; then requests come to the batching service at twice the rate at which 64 clients
were answered, whatever it answers. Clients and services share the machine's cores. A request has
six titles of history and ten candidates, invented.
"""

import argparse
import asyncio
import collections
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from instructrec_jax.serving.tokens import make_token

CLIENTS = (1, 8, 64)
LOOKS = 6  # at the memory, while there is too much to do
WAYS = {"batching": [], "one by one": ["--max_batch=1", "--batch_milliseconds=0"]}
FIRST = ["Red", "Blue", "Tiny", "Wooden", "Flying", "Quiet", "Old", "Last"]
SECOND = ["Fox", "Moon", "River", "Castle", "Bee", "Road", "Winter", "Song"]
THIRD = ["Kite", "Doll", "Puzzle", "Engine", "Story", "Garden"]


class Service:
    """A service in a process of its own."""

    def __init__(self, model: str, state: Path, flags: list[str]) -> None:
        """Starts it, and waits until it is ready."""
        token = make_token(state_dir=str(state), name="load", requests_per_minute=10**9)
        self.log = (state / "log").open("w+")
        words = [sys.executable, "-m", "instructrec_jax", "serve", f"--model={model}"]
        # Without a cache: some of the invented requests come again.
        words += [f"--state_dir={state}", "--bind=127.0.0.1:0", "--cached_candidates=0", *flags]
        self.process = subprocess.Popen(words, stderr=self.log, stdout=self.log)
        while not (found := re.search(r"127\.0\.0\.1:(\d+);", (state / "log").read_text())):
            if self.process.poll() is not None:
                sys.exit((state / "log").read_text())
            time.sleep(0.1)
        self.port = int(found[1])
        self.head = (
            "POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\n"
        )

    def memory(self) -> float:
        """Returns its resident memory in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


class Client:
    """One connection, which asks one request after another."""

    def __init__(self, service: Service) -> None:
        self.service, self.reader, self.writer = service, None, None

    async def ask(self, body: bytes) -> int:
        """Returns the status of the answer."""
        if self.writer is None or self.writer.is_closing() or self.reader.at_eof():
            opened = await asyncio.open_connection("127.0.0.1", self.service.port)
            self.reader, self.writer = opened
        head = f"{self.service.head}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        await self.reader.readexactly(int(re.search(r"content-length: (\d+)", answer)[1]))
        if "connection: close" in answer:
            self.writer.close()
        return int(answer[9:12])


def body(draw: random.Random) -> bytes:
    """Returns an invented request."""
    titles = [f"{draw.choice(FIRST)} {draw.choice(SECOND)} {t}" for t in THIRD * 8]
    titles = list(dict.fromkeys(draw.sample(titles, len(titles))))
    return json.dumps({"history": titles[:6], "candidates": titles[6:16]}).encode()


async def closed_loop(service: Service, number: int, seconds: float) -> dict[str, float]:
    """Has clients ask for some seconds, each again as soon as it is answered."""
    end = time.monotonic() + seconds
    taken: list[float] = []
    statuses: collections.Counter[int] = collections.Counter()

    async def one(seed: int) -> None:
        client, draw = Client(service), random.Random(seed)
        while (began := time.monotonic()) < end:
            statuses[await client.ask(body(draw))] += 1
            taken.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(one(seed) for seed in range(number)))
    rate = len(taken) / (time.monotonic() - began)
    return {"requests_per_second": rate, **percentiles(taken), "statuses": dict(statuses)}


async def open_loop(service: Service, rate: float, seconds: float) -> dict[str, float]:
    """Sends requests at a rate, whatever is answered."""
    accepted: list[float] = []
    refused: list[float] = []
    statuses: collections.Counter[int] = collections.Counter()
    idle: list[Client] = []
    draw, tasks = random.Random(0), set[asyncio.Task[None]]()

    async def one(sent: bytes) -> None:
        client = idle.pop() if idle else Client(service)
        began = time.monotonic()
        status = await client.ask(sent)
        statuses[status] += 1
        (accepted if status == 200 else refused).append(time.monotonic() - began)
        idle.append(client)

    memory, began, number = list[float](), time.monotonic(), 0
    while (now := time.monotonic()) < began + seconds:
        if len(memory) <= (now - began) / seconds * LOOKS:
            memory.append(round(service.memory(), 1))
        while number < (now - began) * rate:
            number += 1
            tasks.add(task := asyncio.create_task(one(body(draw))))
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return {
        "sent_per_second": number / seconds,
        "accepted": percentiles(accepted),
        "refused": percentiles(refused),
        "statuses": dict(statuses),
        "mib": [*memory, round(service.memory(), 1)],
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Returns milliseconds of the median, the 95th and the 99th part of a hundred."""
    ordered = sorted(seconds) or [float("nan")]
    at = {name: ordered[int(part * (len(ordered) - 1))] for name, part in PARTS.items()}
    return {name: round(1000 * value, 1) for name, value in at.items()}


PARTS = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--deadline", type=float, default=2.0)
    parser.add_argument("--json")
    given = parser.parse_args()
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--deadline_seconds={given.deadline}"]
        services = {}
        try:
            for way, own in WAYS.items():
                state = Path(folder) / way.replace(" ", "_")
                services[way] = Service(given.model, state, [*flags, *own])
            for service in services.values():
                while asyncio.run(Client(service).ask(body(random.Random(0)))) != 200:
                    time.sleep(0.5)
            for number in CLIENTS:
                for way, service in services.items():
                    name = f"{way}, {number} clients"
                    found[name] = asyncio.run(closed_loop(service, number, given.seconds))
                    print(name, json.dumps(found[name]), flush=True)
            service = services["batching"]
            rate = 2 * found[f"batching, {CLIENTS[-1]} clients"]["requests_per_second"]
            found["overload"] = asyncio.run(open_loop(service, rate, 4 * given.seconds))
            print("overload", json.dumps(found["overload"]), flush=True)
        finally:
            for service in services.values():
                service.process.terminate()
            print("exit codes", [service.process.wait(60) for service in services.values()])
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
