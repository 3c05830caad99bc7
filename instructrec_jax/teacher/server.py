"""One request to an OpenAI-compatible server, and what its replies and failures mean."""

import dataclasses
import datetime
import email.utils
import json
import logging
import re
import time
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.teacher import likelihoods
from instructrec_jax.teacher.api_key import ApiKey, is_local
from instructrec_jax.teacher.prices import Price
from instructrec_jax.teacher.questions import Answer, Question

logger = logging.getLogger(__name__)
_SCHEMA_REFUSED = re.compile(r"response_format|json_schema|schema|grammar", re.IGNORECASE)
_NO_MONEY = re.compile(r"insufficient_quota|billing", re.IGNORECASE)
_SHOWN = 300  # characters of what a server said


class TryAgainError(Exception):
    """One try failed in a way that another may not.

    Attributes:
      reason: a word or two, for the counts.
      said: what came in place of an answer.
      billed: "no", "perhaps" or "yes".
      wait_seconds: what the server asked for; None if it did not.
      is_unreachable: whether no connection could be made.
    """

    def __init__(
        self,
        reason: str,
        said: str,
        *,
        billed: str,
        wait_seconds: float | None = None,
        is_unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.said, self.billed = reason, said, billed
        self.wait_seconds, self.is_unreachable = wait_seconds, is_unreachable


class RefusedError(Exception):
    """The server will never answer this question, such as one that is too long for it."""


@dataclasses.dataclass
class Dialect:
    """What a server turned out to understand.

    Attributes:
      has_schemas: whether it takes `response_format`; else the schema goes into the prompt.
      limit_name: what it calls the longest answer.
      has_temperature: whether it takes another than its own.
    """

    has_schemas: bool = True
    limit_name: str = "max_tokens"
    has_temperature: bool = True

    def body(self, question: Question) -> dict[str, Any]:
        """Returns the body of a request."""
        system = question.system
        body: dict[str, Any] = {"model": question.model}
        if question.schema is not None and self.has_schemas:
            schema = {"name": question.kind, "schema": dict(question.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif question.schema is not None:
            schema_text = json.dumps(question.schema)
            system += f"\n\nAnswer with JSON alone, of this JSON schema: {schema_text}"
        messages = [{"role": "system", "content": system.strip()}] if system else []
        body["messages"] = [*messages, {"role": "user", "content": question.user}]
        body[self.limit_name] = question.max_tokens
        if self.has_temperature:
            body["temperature"] = question.temperature
        return body

    def learn(self, body: dict[str, Any], said: str) -> bool:
        """Returns whether a refused request is worth another form, which is used from now on."""
        if "max_tokens" in body and "max_completion_tokens" in said:
            self.limit_name = "max_completion_tokens"
            return True
        if "temperature" in body and "temperature" in said:
            if self.has_temperature:
                logger.warning("the model takes its own temperature alone: %s", said[:_SHOWN])
            self.has_temperature = False
            return True
        if "response_format" in body and _SCHEMA_REFUSED.search(said):
            if self.has_schemas:
                logger.warning(
                    "the server takes no JSON schema; it is asked in words instead: %s",
                    said[:_SHOWN],
                )
            self.has_schemas = False
            return True
        return False


def answer_of(
    question_key: str,
    body: Any,
    *,
    price: Price | None,
    is_batch: bool,
    key: ApiKey,
    continuation: str | None = None,
) -> Answer:
    """Returns the answer that the body of a reply holds.

    Raises:
      ValueError: if it holds none.
      UserError: if it lacks the log-probabilities of the continuation.
    """
    try:
        (choice, *_), usage = body["choices"], body.get("usage") or {}
        reason = str(choice.get("finish_reason"))
        message = choice["message"] if continuation is None else {"content": ""}
        text = message.get("content")
        if text is None and (refusal := message.get("refusal")):
            text, reason = refusal, "refusal"
        used, made = (
            None if usage.get(name) is None else int(usage[name])
            for name in ("prompt_tokens", "completion_tokens")
        )
        model = str(body.get("model", ""))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"it is no chat completion ({error!r})") from None
    if not isinstance(text, str):
        if reason not in ("content_filter", "length"):
            raise ValueError("it holds no text")
        text = ""
    if continuation is not None:
        text = likelihoods.kept_text(choice, used, continuation)
    usd = None
    if price is not None and used is not None and made is not None:
        usd = price.usd(used, made, is_batch=is_batch)
    return Answer(
        key=question_key,
        text=key.hidden_in(text),
        input_tokens=used,
        output_tokens=made,
        usd=usd,
        model=model,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        finish_reason=reason,
    )


class Server:
    """A server, spoken to by OpenAI's client, whose own retries are off. An async context."""

    def __init__(self, base_url: str, key: ApiKey, *, timeout_seconds: float) -> None:
        import httpx2
        import openai  # it takes a second, and nothing offline needs it

        self._raw = httpx2.Response
        self.base_url, self.key, self.dialect = base_url, key, Dialect()
        self.client = openai.AsyncOpenAI(
            api_key=key.for_header(),
            base_url=base_url,
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=timeout_seconds,
                trust_env=not is_local(base_url),  # no proxy leads back to this machine
                event_hooks={"response": [self._check_no_page]},
            ),
        )

    async def __aenter__(self) -> "Server":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def ask(self, question: Question, price: Price | None) -> Answer:
        """Sends one question and returns its answer.

        Raises:
          TryAgainError: if this try failed.
          RefusedError: if every try would.
          UserError: if every question would: no such model, a wrong key.
        """
        is_chat = question.continuation is None
        body = self.dialect.body(question) if is_chat else likelihoods.body_of(question)
        path = "/chat/completions" if is_chat else "/completions"
        # The raw reply: it is kept where it cannot be read, and the typed call takes twice as long.
        call = self.client.post(path, cast_to=self._raw, body=body)
        try:
            reply = await self.translated(call)
        except RefusedError as error:
            if is_chat and self.dialect.learn(body, str(error)):
                return await self.ask(question, price)
            raise
        text = reply.text
        try:
            found = files.parse_json(text)
            return answer_of(
                question.key,
                found,
                price=price,
                is_batch=False,
                key=self.key,
                continuation=question.continuation,
            )
        except ValueError:
            said = self.key.hidden_in(text)
            raise TryAgainError("unreadable answer", said, billed="yes") from None

    async def batch(self, name: str) -> Any:
        """Returns a batch as OpenAI's client has it; None where the server knows none of the name.

        To be awaited by `translated`.
        """
        import openai

        try:
            return await self.client.batches.retrieve(name)
        except openai.NotFoundError:
            return None

    async def translated(self, call: Any) -> Any:
        """Awaits a call of the client; its errors become ours, without the key."""
        import openai

        try:
            return await call
        except openai.APIStatusError as error:
            raise self._status_problem(error) from None
        except openai.APITimeoutError:
            raise TryAgainError("timeout", "no answer in time", billed="perhaps") from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            said = self.key.hidden_in(f"{cause}: {error.__cause__}")
            if cause in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol"):
                raise TryAgainError(
                    "unreachable server", said, billed="no", is_unreachable=True
                ) from None
            raise TryAgainError("dropped connection", said, billed="perhaps") from None
        except openai.OpenAIError as error:
            said = self.key.hidden_in(str(error))
            raise UserError(f"OpenAI's client cannot ask {self.base_url}: {said}") from None

    async def _check_no_page(self, response: Any) -> None:
        """Raises UserError if a server replies with a web page; one that is down may do so."""
        is_down = response.status_code >= 500 or response.status_code == 429
        if "text/html" in response.headers.get("content-type", "") and not is_down:
            raise UserError(
                f"{self.base_url} answers with a web page, no JSON; expected the address of an "
                "OpenAI-compatible server, which mostly ends in /v1"
            )

    def unreachable(self, said: str) -> UserError:
        """Returns the error for a server that nobody can connect to."""
        return UserError(
            f"cannot reach {self.base_url} ({said[:_SHOWN]}); start the server, or mend --base_url"
        )

    def _status_problem(self, error: Any) -> Exception:
        """Returns what a reply other than 200 means."""
        status, text = error.status_code, error.response.text
        said = self.key.hidden_in(_message(text))[:_SHOWN]
        if status == 429 and _NO_MONEY.search(text):
            return UserError(f"{self.base_url} says that the account has no money left: {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            reason = {429: "rate limit", 408: "timeout"}.get(status, "server error")
            wait = _retry_after(error.response.headers)
            return TryAgainError(reason, said, billed="no", wait_seconds=wait)
        if status in (401, 403):
            return UserError(
                f"{self.base_url} refuses the API key ({status}: {said}); check the variable that "
                "holds it, and what the key may do"
            )
        if status == 404:
            return UserError(
                f"{self.base_url} knows no such model or address (404: {said}); check --model and "
                "--base_url, which mostly ends in /v1"
            )
        if 300 <= status < 400:
            return UserError(f"{self.base_url} has moved ({status}); name its new address")
        return RefusedError(f"{status}: {said}")


def _message(text: str) -> str:
    """Returns the message in the body of an error."""
    try:
        return str(files.parse_json(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text


def _retry_after(headers: Any) -> float | None:
    """Returns the seconds that a server asks to wait: a number of them, or a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(float(value) * unit, 0.0)
        except ValueError:
            pass
        try:
            date = email.utils.parsedate_to_datetime(value)
            return max(date.timestamp() - time.time(), 0.0)
        except ValueError:
            pass
    return None
