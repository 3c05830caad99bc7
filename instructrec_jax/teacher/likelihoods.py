"""Log-probabilities of a given text, from servers that echo a prompt with those of its tokens.

Completions with `echo` and `logprobs`, as vLLM has them, read a prompt and return every token of
it. Which tokens are of the prompt and which of its continuation only the server's tokenizer knows:
the prompt is sent alone once too, and its number of tokens counts off those before. A continuation
begins with a blank, where tokenizers begin a token.
"""

import json
from typing import Any

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.teacher.questions import Answer, Question


class NoLogProbsError(UserError):
    """The server bills a request, and gives no log-probabilities of what it reads."""


def body_of(question: Question) -> dict[str, Any]:
    """Returns the body of a request for the log-probabilities of a continuation."""
    return {
        "model": question.model,
        "prompt": question.text,
        "max_tokens": 1,  # servers take 0 for no limit, or for an error
        "temperature": question.temperature,
        "echo": True,
        "logprobs": 1,
    }


def kept_text(choice: Any, num_read: int | None, continuation: str) -> str:
    """Returns what is kept of a reply: the last tokens that were read, as JSON.

    Args:
      choice: of the completion.
      num_read: tokens that the server read, as it counts them.
      continuation: no tokenizer makes more tokens of it than it has bytes.

    Raises:
      NoLogProbsError: if the server gives no log-probabilities of what it reads.
    """
    try:
        found = choice["logprobs"]
        pairs = list(zip(found["tokens"], found["token_logprobs"], strict=True))
    except (TypeError, KeyError, ValueError):
        pairs = []
    if num_read is None or not 0 < num_read <= len(pairs):
        raise NoLogProbsError(
            "the server gives no log-probabilities of a given text (completions with echo and "
            "logprobs, as vLLM has them); rank by the model's answers: --by=answer"
        )
    most = min(num_read, len(continuation.encode()))
    return json.dumps(pairs[num_read - most : num_read])


def log_likelihood(prompt: Answer, whole: Answer) -> tuple[np.float32, int] | None:
    """Returns the log-probability of a continuation, and its tokens.

    Args:
      prompt: the answer to the prompt alone.
      whole: the answer to the prompt with the continuation.

    Returns:
      Natural log, the sum over its tokens; None where there are none of them.
    """
    assert prompt.input_tokens is not None and whole.input_tokens is not None
    number = whole.input_tokens - prompt.input_tokens
    values = [value for _, value in json.loads(whole.text)]
    if not 0 < number <= len(values) or None in values[-number:]:
        return None
    return np.float32(np.sum(values[-number:], dtype=np.float64)), number
