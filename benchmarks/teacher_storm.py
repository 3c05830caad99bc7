"""Kills runs that ask a teacher at random moments, and counts what was paid for.

    python benchmarks/teacher_storm.py --num_questions=20000 --num_kills=20
    python benchmarks/teacher_storm.py --num_kills=0 --max_in_flight=64 --is_well [--delay=0.05]

Protocol: a server on loopback (tests/openai_server.py, a process of its own) delays, drops
connections before and after it has billed, answers 429 with and without Retry-After, 500, half JSON
and JSON of another schema, on a seeded schedule, and counts what it bills. A process asks it every
question through one ledger. It gets SIGKILL after a random number of further requests and a random
moment more, and is started again, until it was killed so many times; then it may finish. Its
`max_usd` is half of what all will cost, until it ends for that reason; then it is enough.

At the end every question must have exactly one answer. The server's bill, by its own tokens, must
never exceed what the ledger says is spent, nor `max_usd`. Requests billed beyond the least (one per
question, and those whose answers the server itself broke) were in flight at a kill: at most
max_in_flight x num_kills, 160 of 20,000 by default; more than 1 % of the questions is a failure.

With --is_well nothing fails, nobody is killed, and the rate and the processor time per request are
what counts; both processes share the machine.
"""

import argparse
import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from instructrec_jax.errors import UserError
from instructrec_jax.teacher.client import ask_all
from instructrec_jax.teacher.ledger import Ledger
from instructrec_jax.teacher.prices import Price
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.settings import ClientSettings

ROOT = Path(__file__).parents[1]
MODEL, PRICE = "tiny-teacher", Price(input_usd=1.0, output_usd=2.0)
FAULTS = {
    "delay_seconds": 0.01,
    "dropped_before": 0.005,
    "dropped_after": 0.005,
    "rate_limited": 0.01,
    "retry_after_seconds": 0.05,
    "server_errors": 0.01,
    "half_json": 0.005,
    "wrong_schema": 0.01,
    "refusals": 0.005,
}
SCHEMA = {
    "type": "object",
    "properties": {"preference": {"type": "string"}},
    "required": ["preference"],
    "additionalProperties": False,
}


def questions(number: int) -> Iterator[Question]:
    """Yields invented questions."""
    for index in range(number):
        draw = random.Random(index)
        titles = "\n".join(f"- toy {draw.randrange(10**6)}" for _ in range(10))
        yield Question(
            kind="preference",
            prompt_version="storm",
            model=MODEL,
            system="You describe a taste.",
            user=f"What does customer {index} like?\n{titles}",
            schema=SCHEMA,
            max_tokens=60,
            temperature=0.0,
        )


def ask(options: argparse.Namespace) -> None:
    """Asks everything; exit code 3 where the money ends."""
    logging.basicConfig(level=logging.WARNING)
    settings = ClientSettings(
        base_url=options.url,
        max_in_flight=options.max_in_flight,
        max_usd=options.max_usd,
        prices=str(options.folder / "prices.json"),
        timeout_seconds=20.0,
    )
    began, number = time.monotonic(), options.num_questions
    with Ledger(options.folder / "ledger.sqlite", fingerprint="storm") as ledger:
        try:
            counts = ask_all(questions(number), ledger, settings, total=number)
        except UserError as error:
            sys.exit(3 if "max_usd" in str(error) else str(error))
    used = os.times()
    rate = counts["answered"] / (time.monotonic() - began)
    cpu = 1000 * (used.user + used.system) / max(counts["answered"], 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{dict(counts)}: {rate:.0f} requests/s, {cpu:.2f} ms of processor time each, at most "
        f"{memory} MiB",
        flush=True,
    )


class Storm:
    """A server, and the processes that ask it one after another."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._draw = random.Random(options.seed)
        (folder / "prices.json").write_text(json.dumps({MODEL: vars(PRICE)}))
        faults = {} if options.is_well else FAULTS
        faults = {**faults, "seed": options.seed, "delay_seconds": options.delay}
        self._server = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "openai_server.py")),
                *(f"--{name}={value}" for name, value in faults.items()),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self._server.stdout is not None
        self._url = self._server.stdout.readline().strip()
        worst = sum(PRICE.worst_usd(question) for question in questions(100)) / 100
        self._max_usd = worst * options.num_questions / 8 if not options.is_well else None
        self._most_usd = 2 * worst * options.num_questions
        self.num_kills = 0

    def run(self) -> None:
        """Asks, kills and asks again until all is answered."""
        try:
            while True:
                process = self._start()
                if self.num_kills < self._options.num_kills:
                    self._kill(process)
                if process.wait() == 0:
                    break
                if process.returncode == 3:
                    self._check_money()
                    print(f"the money ended at {self._max_usd:.4f} USD, as it should", flush=True)
                    self._max_usd = self._most_usd
                elif process.returncode > 0:
                    raise SystemExit("a run failed")
            self._check_money()
            self._check_answers()
        finally:
            self._server.kill()
            self._server.wait()

    def counts(self) -> dict[str, int]:
        """Returns the server's books."""
        address = self._url.removesuffix("/v1") + "/counts"
        with urllib.request.urlopen(address, timeout=30) as reply:
            return json.load(reply)

    def _start(self) -> subprocess.Popen:
        arguments = {
            "url": self._url,
            "folder": self._folder,
            "num_questions": self._options.num_questions,
            "max_in_flight": self._options.max_in_flight,
            **({} if self._max_usd is None else {"max_usd": self._max_usd}),
        }
        flags = [f"--{name}={value}" for name, value in arguments.items()]
        return subprocess.Popen(
            [sys.executable, __file__, *flags], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def _kill(self, process: subprocess.Popen) -> None:
        """Kills a process after a random number of requests, if it lives so long."""
        left = self._options.num_kills - self.num_kills
        counts = self.counts()
        mean = (self._options.num_questions - counts["questions"]) / (left + 1)
        wanted = counts["questions"] + self._draw.uniform(0, 1.2) * mean
        while process.poll() is None and self.counts()["questions"] < wanted:
            time.sleep(0.02)
        time.sleep(self._draw.uniform(0, 0.05))
        if process.poll() is None:
            process.kill()
            self.num_kills += 1
            print(f"kill {self.num_kills}: {self.counts()}", flush=True)

    def _check_money(self) -> None:
        """Raises where the server's bill is more than the ledger knows of or the limit allows."""
        counts = self.counts()
        bill = PRICE.usd(counts["input_tokens"], counts["output_tokens"])
        with Ledger(self._folder / "ledger.sqlite", fingerprint="storm") as ledger:
            spent = ledger.spent()
        print(f"the server's bill {bill:.4f}, the ledger's {spent:.4f} USD", flush=True)
        limit = float("inf") if self._max_usd is None else self._max_usd
        if not bill <= spent + 1e-9 or not spent <= limit + 1e-9:
            raise SystemExit(f"more was spent than is allowed ({limit:.4f}) or known")

    def _check_answers(self) -> None:
        """Raises where an answer is missing, or too many were paid for."""
        number = self._options.num_questions
        keys = [question.key for question in questions(number)]
        with Ledger(self._folder / "ledger.sqlite", fingerprint="storm") as ledger:
            answered, states = ledger.answered(keys), ledger.counts()
        counts = self.counts()
        beyond = counts["billed"] - number - counts["wasted"]
        print(f"server {counts}\nledger {states}")
        print(
            f"{len(answered)} of {number} answered; billed beyond the least of "
            f"{number} + {counts['wasted']}: {beyond} ({beyond / number:.2%}), after "
            f"{self.num_kills} kills with {self._options.max_in_flight} in flight"
        )
        most = max(0.01 * number, self.num_kills * self._options.max_in_flight)
        if not len(answered) == states["answered"] == number or beyond > most:
            raise SystemExit("answers are missing, or too many were paid for")


def main() -> None:
    """Prints what was done, and ends with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_questions", type=int, default=20_000)
    parser.add_argument("--num_kills", type=int, default=20)
    parser.add_argument("--max_in_flight", type=int, default=8)
    parser.add_argument("--is_well", action="store_true", help="a server without faults")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds of an answer")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in {"url": str, "folder": Path, "max_usd": float}.items():
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.url:
        ask(options)
        return
    with tempfile.TemporaryDirectory() as name:
        storm = Storm(options, Path(name))
        storm.run()


if __name__ == "__main__":
    main()
