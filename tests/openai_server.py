"""A server on loopback that speaks the OpenAI protocol, badly where it is told to, and keeps books.

    with OpenAIServer(faults=Faults(dropped_after=0.01)) as server:
        ...  # server.base_url, server.billed

    python tests/openai_server.py --dropped_after=0.01    (prints its address, serves until killed)

It speaks chat completions with and without a JSON schema, completions with log-probabilities and
echo, models, files and batches. What goes wrong is drawn from the seed, the question and how often
it came, so that neither order nor time decides. `billed` counts, per question, what a real server
would have put on the bill; `wasted` those of them whose answer the server itself broke.
`GET /counts` gives the same to another process.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import dataclasses
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from http_replies import JSON_HEADERS, Reply, as_error, as_json, file_of_form, head_of
from openai_answers import LogProb, echo, log_prob, num_tokens, question_of, some_words

from instructrec_jax.seeds import stable_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, each as a share of the requests."""

    seed: int = 0
    delay_seconds: float = 0.0  # of every answer, on average
    dropped_before: float = 0.0  # the connection ends; nothing is billed
    dropped_after: float = 0.0  # billed, then the connection ends
    rate_limited: float = 0.0  # 429, every second one with Retry-After
    retry_after_seconds: float = 0.1
    server_errors: float = 0.0  # 500, and 502 with a web page
    half_json: float = 0.0  # billed; a body that ends in the middle
    wrong_schema: float = 0.0  # billed; JSON of another shape, or no JSON
    refusals: float = 0.0  # billed; a `refusal` in place of content
    no_room: float = 0.0  # billed; ends at the most tokens before any text
    refuses_schemas: bool = False  # 400 for every response_format
    has_no_echo: bool = False  # completions leave their log-probabilities out
    is_html: bool = False  # every reply is a web page
    echoes_key: bool = False  # error messages quote the key
    duplicated: float = 0.0  # lines of a batch's output that come twice


class OpenAIServer:
    """The server, in a thread of its own. A context."""

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        key: str | None = None,
        models: tuple[str, ...] = ("tiny-teacher",),
        answer: Callable[[dict[str, Any]], str] = some_words,
        log_prob: LogProb = log_prob,
        batch_seconds: float = 0.0,
    ) -> None:
        self.faults, self.key, self.models = faults or Faults(), key, models
        self.answer, self.log_prob, self.batch_seconds = answer, log_prob, batch_seconds
        self.billed: collections.Counter[str] = collections.Counter()
        self.wasted: collections.Counter[str] = collections.Counter()
        self.visits: collections.Counter[str] = collections.Counter()
        self.refused: set[str] = set()  # user messages that get 400
        self.seen: list[str] = []  # method and path of every request
        self.in_flight = self.most_in_flight = 0
        self.input_tokens = self.output_tokens = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[str, Any]:
        billed, questions = sum(self.billed.values()), len(self.billed)
        wasted = sum(self.wasted.values())
        return {
            "billed": billed,
            "questions": questions,
            "wasted": wasted,
            "requests": sum(self.visits.values()),
            "most_in_flight": self.most_in_flight,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        server = self._loop.run_until_complete(listening)
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                self.seen.append(f"{method} {path}")
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    reply = await self._reply(method, path, headers, body)
                finally:
                    self.in_flight -= 1
                if not reply.ends or reply.body:
                    writer.write(head_of(reply) + reply.body)
                    await writer.drain()
                if reply.ends:
                    break
        writer.close()

    async def _reply(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        path, _, query = path.partition("?")
        if path == "/counts":
            return as_json(self.counts())
        if self.faults.is_html:
            page = b"<!DOCTYPE html><html><body>Welcome to the router</body></html>"
            return Reply(200, page, (("content-type", "text/html"),))
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and given != self.key:
            encoded = base64.b64encode(given.encode()).decode()
            said = f": {given}, {encoded}" if self.faults.echoes_key else ""
            return as_error(401, f"Incorrect API key provided{said}", "invalid_api_key")
        if path in ("/v1/chat/completions", "/v1/completions") and method == "POST":
            return await self._completion(path, json.loads(body))
        for prefix, handle in {
            "/v1/models": self._models,
            "/v1/files": self._files,
            "/v1/batches": self._batches,
        }.items():
            if path == prefix or path.startswith(f"{prefix}/"):
                rest = path.removeprefix(prefix).strip("/")
                return handle(method, rest, query, headers, body)
        return as_error(404, f"Invalid URL ({method} {path})", "not_found")

    # Completions

    async def _completion(self, path: str, request: dict[str, Any]) -> Reply:
        if request["model"] not in self.models:
            name = request["model"]
            return as_error(404, f"The model `{name}` does not exist", "model_not_found")
        if self.faults.refuses_schemas and "response_format" in request:
            return as_error(400, "Unknown field: response_format", "invalid_request_error")
        if request.get("messages", [{}])[-1].get("content") in self.refused:
            return as_error(400, "This question is too long", "context_length_exceeded")
        question = question_of(request)
        draw = self._draw(question)
        kind = self._fault(draw)
        if self.faults.delay_seconds:
            await asyncio.sleep(draw.uniform(0, 2 * self.faults.delay_seconds))
        if kind == "dropped_before":
            return Reply(0, b"", ends=True)
        if kind == "rate_limited":
            wait = (("retry-after", str(self.faults.retry_after_seconds)),)
            headers = wait if draw.random() < 0.5 else ()
            return as_error(429, "Rate limit reached", "rate_limit_exceeded", headers)
        if kind == "server_errors":
            if draw.random() < 0.5:  # what stands before a server says so as a page
                return Reply(502, b"<html>Bad Gateway</html>", (("content-type", "text/html"),))
            return as_error(500, "The server had an error", "server_error")
        body = self._bill(path, question, request, kind)
        if kind in ("dropped_after", "half_json"):
            self.wasted[question] += 1
        if kind == "dropped_after":
            return Reply(0, b"", ends=True)
        if kind == "half_json":
            text = json.dumps(body).encode()
            return Reply(200, text[: len(text) // 2], JSON_HEADERS)
        return as_json(body)

    def _draw(self, question: str) -> random.Random:
        self.visits[question] += 1
        return random.Random(stable_seed(self.faults.seed, question, self.visits[question]))

    def _fault(self, draw: random.Random) -> str:
        left = draw.random()
        for name in (
            *("dropped_before", "dropped_after", "rate_limited", "server_errors"),
            *("half_json", "wrong_schema", "refusals", "no_room"),
        ):
            left -= getattr(self.faults, name)
            if left < 0:
                return name
        return ""

    def _bill(self, path: str, question: str, request: dict[str, Any], kind: str) -> dict[str, Any]:
        """Counts a request as billed, and returns what it paid for."""
        self.billed[question] += 1
        if path == "/v1/completions":
            choice, used = echo(request, self.log_prob)
            if self.faults.has_no_echo:
                choice["logprobs"] = None
            made = request.get("max_tokens", 16)
            return self._object("text_completion", request, used, made, choice)
        text = self.answer(request)
        if kind == "wrong_schema":
            text = "Sure! " + text[: len(text) // 2]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if kind == "refusals":
            message |= {"content": None, "refusal": "I cannot help with that."}
        reason = "length" if kind == "no_room" else "stop"
        if kind == "no_room":
            message |= {"content": None, "reasoning_content": text}
        used = sum(num_tokens(message["content"]) for message in request["messages"])
        return self._object(
            *("chat.completion", request, used, num_tokens(text)),
            {"message": message, "finish_reason": reason},
        )

    def _object(
        self, kind: str, request: dict[str, Any], used: int, made: int, choice: dict[str, Any]
    ) -> dict[str, Any]:
        self.input_tokens += used
        self.output_tokens += made
        usage = {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made}
        return {
            "id": f"cmpl-{sum(self.billed.values())}",
            "object": kind,
            "created": 1_700_000_000,
            "model": f"{request['model']}-2026-01-01",
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, **choice}],
            "usage": usage,
        }

    # Models, files, batches

    def _models(self, method: str, rest: str, *_: object) -> Reply:
        found = [
            {"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in self.models
        ]
        if not rest:
            return as_json({"object": "list", "data": found})
        chosen = [model for model in found if model["id"] == rest]
        return as_json(chosen[0]) if chosen else as_error(404, "no such model", "model_not_found")

    def _files(self, method: str, rest: str, _: str, headers: dict[str, str], body: bytes) -> Reply:
        if method == "POST":
            return as_json(self._file(file_of_form(headers["content-type"], body), "batch"))
        name, _, tail = rest.partition("/")
        if name not in self.files:
            return as_error(404, f"No such File object: {name}", "not_found")
        if method == "DELETE":
            del self.files[name]
            return as_json({"id": name, "object": "file", "deleted": True})
        if tail == "content":
            return Reply(200, self.files[name], (("content-type", "application/octet-stream"),))
        return as_json({"id": name, "object": "file", "bytes": len(self.files[name])})

    def _file(self, content: bytes, purpose: str) -> dict[str, Any]:
        name = f"file-{len(self.files) + 1}-{hashlib.sha256(content).hexdigest()[:8]}"
        self.files[name] = content
        about = {"object": "file", "bytes": len(content), "created_at": 1, "status": "processed"}
        return {"id": name, "purpose": purpose, "filename": f"{name}.jsonl", **about}

    def _batches(self, method: str, rest: str, query: str, _: object, body: bytes) -> Reply:
        if method == "POST" and not rest:
            asked = json.loads(body)
            if asked["input_file_id"] not in self.files:
                return as_error(400, "no such input file", "invalid_request_error")
            name = f"batch_{len(self.batches) + 1}"
            self.batches[name] = {
                "id": name,
                "object": "batch",
                "created_at": int(time.time()),
                "ready": time.time() + self.batch_seconds,
                "status": "in_progress",
                **asked,
            }
            self._work_on(self.batches[name])
        if rest:
            name = rest.split("/")[0]
            if name not in self.batches:
                return as_error(404, f"No batch found with id {name!r}", "not_found")
            return as_json(self._shown(self.batches[name]))
        if method == "POST":
            return as_json(self._shown(self.batches[name]))
        after = re.search(r"after=([^&]+)", query)
        names = sorted(self.batches, key=lambda n: -int(n.split("_")[1]))
        names = names[names.index(after[1]) + 1 :] if after else names
        page = [self._shown(self.batches[name]) for name in names[:20]]
        ends = {"first_id": names[0], "last_id": page[-1]["id"]} if page else {}
        return as_json({"object": "list", "data": page, "has_more": len(names) > 20, **ends})

    def _shown(self, batch: dict[str, Any]) -> dict[str, Any]:
        hidden = {"ready", "later"}
        shown = {name: value for name, value in batch.items() if name not in hidden}
        return shown | (batch["later"] if time.time() >= batch["ready"] else {})

    def _work_on(self, batch: dict[str, Any]) -> None:
        """Answers the lines of a batch: in another order, some twice, some not at all."""
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        done, failed = [], []
        draw = random.Random(stable_seed(self.faults.seed, batch["id"]))
        for line in lines:
            request, question = line["body"], question_of(line["body"])
            kind = self._fault(self._draw(question))
            shell = {"id": f"r-{question[:8]}", "custom_id": line["custom_id"], "error": None}
            if kind in ("rate_limited", "server_errors"):
                error = {"message": "The server had an error", "code": "server_error"}
                failed.append({**shell, "response": {"status_code": 500, "body": {"error": error}}})
            elif kind not in ("dropped_before", "dropped_after"):  # that line is forgotten
                body = self._bill(batch["endpoint"], question, request, kind)
                text = json.dumps({**shell, "response": {"status_code": 200, "body": body}})
                done += [text] * (2 if draw.random() < self.faults.duplicated else 1)
        draw.shuffle(done)
        output = self._file("\n".join(done).encode(), "batch_output")["id"] if done else None
        errors = "\n".join(map(json.dumps, failed)).encode()
        batch["later"] = {
            "status": "completed",
            "output_file_id": output,
            "error_file_id": self._file(errors, "batch_output")["id"] if failed else None,
            "request_counts": {
                "total": len(lines),
                "completed": len(done),
                "failed": len(lines) - len(done),
            },
        }


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in dataclasses.fields(Faults):
        if field.type is not bool:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    with OpenAIServer(faults=Faults(**vars(parser.parse_args()))) as server:
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
