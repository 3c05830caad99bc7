"""Asks through the Batch API: files of many requests, answered within a day at a lower price.

A batch is a part of the questions. Its questions are claimed and kept in a file beside the ledger
before it is sent, and it carries its part's name as metadata: so a run that was killed at any
moment finds it again, sent or not, and no batch is paid for twice.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.progress import Stop
from instructrec_jax.teacher.claiming import Claiming
from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.server import RefusedError, Server, TryAgainError, answer_of
from instructrec_jax.teacher.settings import BATCH_BYTES, ClientSettings

logger = logging.getLogger(__name__)
_CLAIMED_AT_A_TIME = 1000
_OPEN_PARTS = 4  # batches at a time; servers limit the tokens that wait
_TICK_SECONDS = 0.25  # between two looks for a signal
_CLOCKS_DIFFER = 3600.0  # seconds, at most, between this machine and the server
_ENDED = {"completed", "failed", "expired", "cancelled"}
_UNKNOWN = "unknown"  # to the server
PREPARING, READY, SENT = "preparing", "ready", "sent"


class _StopError(Exception):
    """Somebody asked to stop."""


class BatchApi:
    """One run over batches, those of earlier runs included."""

    def __init__(self, claiming: Claiming, settings: ClientSettings, stop: Stop) -> None:
        import tenacity  # nothing offline needs it

        self._tenacity = tenacity
        self._claiming, self._ledger = claiming, claiming.ledger
        self._settings, self._stop = settings, stop
        self._folder = self._ledger.path.with_name(f"{self._ledger.path.name}.batches")
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._open: dict[str, dict[str, Any]] = {}
        self._most_open = _OPEN_PARTS
        self._tries: dict[str, int] = {}  # of questions that failed

    async def run(self, server: Server) -> None:
        """Sends and collects batches until nothing is left or something ends it."""
        self._server = server
        with self._thread, contextlib.suppress(_StopError):
            await self._run()
        if self._open and (self._stop.is_asked or self._claiming.problem):
            logger.info(
                "%d batches go on at the server; the same command collects them", len(self._open)
            )

    async def _run(self) -> None:
        self._open = await self._in_thread(self._ledger.write, self._ledger.take_batches)
        while True:
            for part in list(self._open):
                await self._advance(part)
            if self._claiming.problem:
                return
            has_room = len(self._open) < self._most_open and not self._claiming.is_over
            was_added = has_room and await self._add_part()
            if self._claiming.problem or (self._claiming.is_over and not self._open):
                return
            await self._in_thread(self._ledger.renew)
            await self._sleep(0.0 if was_added else self._settings.poll_seconds)

    async def _advance(self, part: str) -> None:
        """Takes one step with a batch: sends it, or collects it once it has ended."""
        state = self._open[part]["state"]
        if state == PREPARING:  # its run was killed before it was whole
            await self._in_thread(self._drop, part)
        elif state == READY:
            await self._send(part)
        else:
            batch_id = self._open[part]["batch"]
            found = await self._call(lambda: self._server.batch(batch_id))
            if found is None:
                await self._in_thread(self._give_up, part)
            elif found.status in _ENDED:
                await self._collect(part, found)

    def _give_up(self, part: str) -> None:
        """Counts a batch that the server does not know as lost, where the user says so."""
        name, number = (self._open[part][about] for about in ("batch", "number"))
        if not self._settings.give_up_batches:
            raise UserError(
                f"{self._server.base_url} does not know batch {name}, which holds {number} "
                "questions and may be paid for; look for it with the key and the --base_url that "
                "it was sent with. If it is gone for good, --give_up_batches counts it as lost and "
                "asks its questions again, which pays for them twice if it was answered"
            )
        logger.warning("batch %s of %d questions is given up and counted as lost", name, number)
        self._close(part, _UNKNOWN, {})

    # Sending

    async def _add_part(self) -> bool:
        """Claims as many questions as one batch takes and sends them; returns if there were any."""
        part = secrets.token_hex(8)
        path, num_bytes, number = self._file(part), 0, 0
        with files.named_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as out:
                while number < self._settings.batch_size and num_bytes < BATCH_BYTES:
                    room = min(_CLAIMED_AT_A_TIME, self._settings.batch_size - number)
                    skipped = self._claiming.counts["answered_before"]
                    some = await self._in_thread(self._claiming.take, room)
                    fitting = self._fitting(some, BATCH_BYTES - num_bytes)
                    self._claiming.put_back(some[len(fitting) :])
                    claimed = await self._claim(part, fitting, number) if fitting else []
                    for question in claimed:
                        out.write(json.dumps(dataclasses.asdict(question)) + "\n")
                        num_bytes += len(self._line(question))
                    number += len(claimed)
                    has_moved = some or self._claiming.counts["answered_before"] > skipped
                    is_short = len(claimed) < len(some)  # no room, or no money
                    if is_short or not has_moved or self._claiming.problem:
                        break
                out.flush()
                os.fsync(out.fileno())
        if not number:
            path.unlink()
            return False
        await self._enter(part, {"state": READY, "created": time.time(), "number": number})
        await self._send(part)
        return True

    async def _claim(self, part: str, wanted: list[Question], number: int) -> list[Question]:
        """Claims questions for a part that holds `number` so far."""

        def enter() -> None:  # with the first claims: they never stand alone
            self._ledger.put_batch(part, {"state": PREPARING})

        def work() -> list[Question]:
            under_way = len(self._open) + number
            claimed = self._claiming.exchange(enter, wanted, in_flight=under_way, part=part)
            if not claimed and not number:
                self._ledger.write(lambda: self._ledger.put_batch(part, {}, is_done=True))
            return claimed

        return await self._in_thread(work)

    def _fitting(self, questions: list[Question], num_bytes: int) -> list[Question]:
        """Returns the first questions whose lines fit into so many bytes."""
        for number, question in enumerate(questions):
            num_bytes -= len(self._line(question))
            if num_bytes < 0:
                return questions[:number]
        return questions

    def _line(self, question: Question) -> bytes:
        """Returns a question's line in the file of a batch."""
        line = {
            "custom_id": question.key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": self._server.dialect.body(question),
        }
        return json.dumps(line).encode() + b"\n"

    async def _send(self, part: str) -> None:
        """Uploads a batch and starts it, unless an earlier run has done so."""
        state = self._open[part]
        if not self._file(part).exists():
            await self._in_thread(self._drop, part)
            return
        batch = await self._call(lambda: self._find(part, state["created"]))
        while batch is None:
            lines = await self._in_thread(self._lines, part)
            upload = functools.partial(
                self._server.client.files.create,
                file=(f"{part}.jsonl", lines, "application/jsonl"),
                purpose="batch",
            )
            uploaded = await self._call(upload)
            try:
                batch = await self._server.translated(
                    self._server.client.batches.create(
                        input_file_id=uploaded.id,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                        metadata={"part": part},
                    )
                )
            except TryAgainError as error:  # it may have begun all the same
                logger.warning("a batch was not accepted: %s (%s)", error, error.said)
                await self._sleep(error.wait_seconds or 1.0)
                batch = await self._call(lambda: self._find(part, state["created"]))
            except RefusedError as error:
                raise UserError(f"{self._server.base_url} refuses a batch: {error}") from None
        await self._enter(part, {**state, "state": SENT, "batch": batch.id})
        logger.info("sent batch %s of %d requests", batch.id, state["number"])

    async def _find(self, part: str, created: float) -> Any:
        """Returns the batch of a part where the server has it, or None."""
        async for batch in self._server.client.batches.list(limit=100):
            if (batch.metadata or {}).get("part") == part:
                return batch
            if batch.created_at < created - _CLOCKS_DIFFER:
                return None
        return None

    # Collecting

    async def _collect(self, part: str, batch: Any) -> None:
        """Enters what a batch brought; what it did not bring is asked again."""
        refused: dict[str, str] = {}
        for name in (batch.output_file_id, batch.error_file_id):
            if name is not None:
                read = functools.partial(self._server.client.files.content, name)
                content = await self._call(read)
                lines = content.content.splitlines()
                for begin in range(0, len(lines), _CLAIMED_AT_A_TIME):
                    some = lines[begin : begin + _CLAIMED_AT_A_TIME]
                    await self._in_thread(self._enter_lines, part, some, refused)
        if batch.status == "failed" and not refused:
            self._say_why(batch)
        await self._in_thread(self._close, part, batch.status, refused)
        for name in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
            if name is not None:  # reviews are not left lying there
                try:
                    await self._server.translated(self._server.client.files.delete(name))
                except (TryAgainError, RefusedError, UserError):
                    logger.info("the server keeps file %s: it would not delete it", name)

    def _enter_lines(self, part: str, lines: list[bytes], refused: dict[str, str]) -> None:
        """Enters lines of a batch's output; those without an answer are added to `refused`."""
        answers: list[Answer] = []

        def work() -> None:
            answers.clear()
            models = self._ledger.in_flight(part)
            for line in lines:
                key, said = self._enter_line(part, line, models)
                if isinstance(said, Answer):
                    answers.append(said)
                elif said:
                    refused[key] = said
                models.pop(key, None)  # a line may come twice

        self._ledger.write(work)
        for answer in answers:
            self._claiming.enter_answer(answer)

    def _enter_line(
        self, part: str, line: bytes, models: dict[str, str]
    ) -> tuple[str, Answer | str]:
        """Enters one line of a batch's output; returns its key, and the answer or what was said."""
        hidden_in = self._server.key.hidden_in
        try:
            found = files.parse_json(line)
            key, reply = found["custom_id"], found.get("response") or {}
            status, body = reply.get("status_code"), reply.get("body")
        except (ValueError, KeyError, TypeError, AttributeError):
            return "", ""  # its question stays without an answer
        if key not in models:
            return key, ""
        if status != 200:
            self._ledger.give_back(key, part=part)
            return key, hidden_in(json.dumps(reply or found))
        try:
            price = self._claiming.price(models[key])
            answer = answer_of(key, body, price=price, is_batch=True, key=self._server.key)
        except ValueError:
            said = hidden_in(json.dumps(body))
            self._ledger.fail(key, state="broken", raw=said, part=part)
            return key, said
        self._ledger.record(answer, part=part)
        return key, answer

    def _close(self, part: str, status: str, refused: dict[str, str]) -> None:
        """Ends a part: what it owes is asked again, or given up."""
        owed = self._ledger.in_flight(part)

        def work() -> None:
            for key in owed:
                if status in ("completed", _UNKNOWN):  # no line of it is here: it may be billed
                    self._ledger.fail(key, state="lost", raw="no line", part=part)
                else:
                    self._ledger.give_back(key, part=part)
            self._ledger.put_batch(part, {**self._open[part], "status": status}, is_done=True)

        self._ledger.write(work)
        again = []
        wanted = {**dict.fromkeys(owed, "no answer in the batch"), **refused}
        for question in self._questions(part) if wanted else ():
            said = wanted.get(question.key)
            if said is None:
                continue
            self._tries[question.key] = self._tries.get(question.key, 0) + 1
            body = self._server.dialect.body(question)
            is_new_form = self._server.dialect.learn(body, said)
            if is_new_form or self._tries[question.key] < self._settings.max_tries:
                again.append(question)
            else:
                self._claiming.enter_failure("failed in batches", said)
        self._claiming.put_back(again)
        if again:
            logger.info("a batch left %d questions without an answer: asked again", len(again))
        self._forget(part)

    def _say_why(self, batch: Any) -> None:
        """Decides what follows where a server would not begin a batch."""
        errors = [
            (e.code or "", e.message or "") for e in (batch.errors and batch.errors.data) or ()
        ]
        said = self._server.key.hidden_in("; ".join(message for _, message in errors))
        if any("token_limit" in code for code, _ in errors) and len(self._open) > 1:
            self._most_open = len(self._open) - 1
            logger.info("the server takes %d batches at a time: %s", self._most_open, said)
        else:
            self._claiming.problem = UserError(
                f"the server would not begin batch {batch.id}: {said or 'it does not say why'}; "
                "mend that, perhaps with a smaller --batch_size, and run the same command again"
            )

    # Parts

    def _file(self, part: str) -> Path:
        return self._folder / f"{part}.jsonl"

    def _questions(self, part: str) -> Iterator[Question]:
        """Yields the questions of a part; none where its file is lost: the next run asks them."""
        with contextlib.suppress(FileNotFoundError), self._file(part).open("rb") as stream:
            yield from (Question(**json.loads(line)) for line in stream)

    def _lines(self, part: str) -> bytes:
        return b"".join(self._line(question) for question in self._questions(part))

    def _drop(self, part: str) -> None:
        """Gives back the questions of a batch that was never sent."""

        def work() -> None:
            for key in self._ledger.in_flight(part):
                self._ledger.give_back(key, part=part)
            self._ledger.put_batch(part, self._open[part], is_done=True)

        self._ledger.write(work)
        self._forget(part)

    def _forget(self, part: str) -> None:
        self._file(part).unlink(missing_ok=True)
        del self._open[part]

    async def _enter(self, part: str, value: dict[str, Any]) -> None:
        await self._in_thread(self._ledger.write, lambda: self._ledger.put_batch(part, value))
        self._open[part] = value

    # Calls

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Awaits a call of the server that costs nothing, again where it fails."""
        retrying = self._tenacity.AsyncRetrying(
            retry=self._tenacity.retry_if_exception_type(TryAgainError),
            stop=self._tenacity.stop_after_attempt(self._settings.max_tries),
            wait=self._tenacity.wait_random_exponential(multiplier=0.5, max=60),
            sleep=self._sleep,
            reraise=True,
        )

        async def call() -> Any:
            return await self._server.translated(make())

        try:
            return await retrying(call)
        except TryAgainError as error:
            raise self._server.unreachable(error.said) from None
        except RefusedError as error:
            raise UserError(f"{self._server.base_url} refuses the Batch API: {error}") from None

    async def _sleep(self, seconds: float) -> None:
        """Waits; raises _StopError where somebody asks to stop."""
        ends = time.monotonic() + seconds
        while True:
            if self._stop.is_asked:
                raise _StopError
            left = ends - time.monotonic()
            if left <= 0:
                return
            await asyncio.sleep(min(left, _TICK_SECONDS))
