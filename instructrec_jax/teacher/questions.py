"""Requests to a teacher LLM and its answers, as they pass between prompts, client and ledger."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One request to a teacher LLM: everything that decides the answer.

    Attributes:
      kind: what is asked for, such as "preference" or "intention".
      prompt_version: version of the prompt's wording.
      model: the LLM's name, as the server knows it.
      system: the system message; "" for none.
      user: the user message, data blocks included.
      schema: JSON schema of the answer; None: plain text.
      max_tokens: longest answer, in tokens.
      temperature: of the sampling.
      attempt: 0; 1 for the one retry with a firmer prompt.
      continuation: a text whose log-probability after the messages is asked; None: an answer is.
    """

    kind: str
    prompt_version: str
    model: str
    system: str
    user: str
    schema: Mapping[str, Any] | None
    max_tokens: int
    temperature: float
    attempt: int = 0
    continuation: str | None = None

    @property
    def text(self) -> str:
        """All that the model reads, but for the schema."""
        return self.system + self.user + (self.continuation or "")

    @functools.cached_property
    def key(self) -> str:
        """The sha256 of all fields: two questions of one key are one, and are paid for once."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["temperature"] = float(self.temperature)
        if self.continuation is None:  # as before there were any: paid answers keep their keys
            del fields["continuation"]
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a teacher LLM answered to one question.

    Attributes:
      key: that of the question.
      text: the answer as it came; JSON, with luck, where the question has a schema. Of a question
        with a continuation a JSON list of (token, log-probability), the last ones of all that was
        read, as many at least as the continuation has.
      input_tokens: tokens that were read, as the server counted them; None if it does not say.
      output_tokens: tokens that were written; None if the server does not say.
      usd: what it cost; None where no price is known.
      model: the model as the server named it.
      date: day on which it came, "2026-11-26", in UTC.
      finish_reason: why the answer ends: "stop", "length", "content_filter" or a word of the
        server's; "refusal" where the model refused to answer in the schema.
    """

    key: str
    text: str
    input_tokens: int | None
    output_tokens: int | None
    usd: float | None
    model: str
    date: str
    finish_reason: str
