"""What a run would ask, and what that costs: tokens, USD and hours, estimated from the questions.

Tokens are estimated: `CHARS_PER_TOKEN` characters of English are one, and a request has
`REQUEST_TOKENS` beside its texts. An answer is taken to have the tokens that its prompt expects;
at most it has the prompt's `max_tokens`.
"""

import dataclasses
import json
import math
from collections.abc import Iterable

from instructrec_jax.teacher.prices import Price
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.settings import BATCH_BYTES, ClientSettings

CHARS_PER_TOKEN = 4.0
REQUEST_TOKENS = 8
SECONDS_AN_ANSWER = 2.0  # of a hosted model, usually
BATCH_HOURS = 24  # within which OpenAI answers a batch
_LINE_BYTES = 300  # of a batch's file, around the texts of a request


@dataclasses.dataclass(kw_only=True)
class Volume:
    """Requests and their tokens.

    Attributes:
      requests: that would be sent.
      repeated: texts whose question is that of another text; it is asked once.
      answered: questions that the ledger has an answer for.
      input_tokens: that the model reads.
      output_tokens: that it writes, as expected.
      most_output_tokens: that it writes at most.
      num_bytes: of the requests.
    """

    requests: int = 0
    repeated: int = 0
    answered: int = 0
    input_tokens: float = 0.0
    output_tokens: int = 0
    most_output_tokens: int = 0
    num_bytes: int = 0

    def add(self, question: Question, *, expected_tokens: int) -> None:
        """Counts a question that would be sent, and the usual tokens of its answer."""
        num_chars = _num_chars(question)
        self.requests += 1
        self.input_tokens += num_chars / CHARS_PER_TOKEN + REQUEST_TOKENS
        self.output_tokens += expected_tokens
        self.most_output_tokens += question.max_tokens
        self.num_bytes += num_chars + _LINE_BYTES

    def usd(self, price: Price, *, is_batch: bool = False, at_most: bool = False) -> float:
        """Returns what the requests cost."""
        written = self.most_output_tokens if at_most else self.output_tokens
        return price.usd(self.input_tokens, written, is_batch=is_batch)

    def online_hours(self, client: ClientSettings) -> float:
        """Returns how long the requests take, by the limits that are set."""
        minutes = [self.requests * SECONDS_AN_ANSWER / 60 / client.max_in_flight]
        if client.requests_per_minute is not None:
            minutes.append(self.requests / client.requests_per_minute)
        if client.tokens_per_minute is not None:
            tokens = self.input_tokens + self.output_tokens
            minutes.append(tokens / client.tokens_per_minute)
        return max(minutes) / 60

    def batches(self, client: ClientSettings) -> int:
        """Returns how many batches the requests fill."""
        by_size = math.ceil(self.num_bytes / BATCH_BYTES)
        return max(math.ceil(self.requests / client.batch_size), by_size)


def total(volumes: Iterable[Volume]) -> Volume:
    """Returns the sum of volumes."""
    names = [field.name for field in dataclasses.fields(Volume)]
    found = list(volumes)
    return Volume(**{name: sum(getattr(volume, name) for volume in found) for name in names})


def _num_chars(question: Question) -> int:
    schema = len(json.dumps(question.schema)) if question.schema else 0
    return len(question.text) + schema
