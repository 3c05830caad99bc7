"""Whom to ask for texts, how fast, and for how much money."""

import dataclasses
from typing import Annotated

from instructrec_jax.settings import (
    Count,
    NotNegative,
    OneOf,
    Positive,
    Range,
    WebAddress,
    check_fields,
)

ONLINE, BATCH = "online", "batch"
OPENAI_URL = "https://api.openai.com/v1"
BATCH_REQUESTS = 50_000  # of one file of the Batch API
BATCH_BYTES = 200_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How a teacher LLM is asked; nothing here decides what it is asked.

    Attributes:
      base_url: address of an OpenAI-compatible server: OpenAI's own, vLLM's, llama.cpp's.
      key_variable: the environment variable that holds the API key.
      mode: "online", or "batch": the Batch API, slower and cheaper.
      max_in_flight: requests under way at a time; at most so many are lost where the run is killed.
      requests_per_minute: that the server allows; without it any number.
      tokens_per_minute: likewise, read and written, estimated before they are sent.
      max_usd: what the whole ledger may cost, requests in flight at their most; without it no
        limit.
      timeout_seconds: after which a request counts as lost.
      max_tries: of one question.
      prices: a JSON file of prices, which comes before the table of the package.
      batch_size: requests of one batch.
      poll_seconds: between two looks at a batch.
      give_up_batches: count batches that the server does not know as lost, at the most that they
        can cost, and ask their questions again: they may be paid for twice.
    """

    base_url: WebAddress = OPENAI_URL
    key_variable: str = "OPENAI_API_KEY"
    mode: Annotated[str, OneOf((ONLINE, BATCH))] = ONLINE
    max_in_flight: Annotated[int, Range(1, 1024)] = 32
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_usd: NotNegative | None = None
    timeout_seconds: Positive = 120.0
    max_tries: Count = 8
    prices: str | None = None
    batch_size: Annotated[int, Range(1, BATCH_REQUESTS)] = BATCH_REQUESTS
    poll_seconds: Positive = 30.0
    give_up_batches: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
