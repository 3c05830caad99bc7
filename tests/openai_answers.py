"""What the model of a test's OpenAI server says: words, JSON of a schema, log-probabilities."""

import hashlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

from instructrec_jax.seeds import stable_seed

WORDS = ("calm", "bright", "puzzle", "evening", "garden", "river", "story", "warm", "quiet")
_TOKEN = re.compile(r"\s\S+|\S+|\s")  # a word with the blank before it
LogProb = Callable[[str, int], float]  # of a prompt's token, by its number


def question_of(request: dict[str, Any]) -> str:
    """Returns what tells the question of a request from others."""
    asked = request.get("prompt") or request["messages"][-1]["content"]
    return hashlib.sha256(f"{request['model']}\n{asked}".encode()).hexdigest()


def some_words(request: dict[str, Any]) -> str:
    """Writes some words that the question decides, in its schema."""
    draw = random.Random(stable_seed("answer", question_of(request)))
    wanted = request.get("response_format")
    if wanted is None:
        return " ".join(draw.choices(WORDS, k=8)) + f" {draw.randrange(10**9)}."
    return json.dumps(_example(wanted["json_schema"]["schema"], draw))


def tokens_of(text: str) -> list[str]:
    """Returns a text as tokens, which joined are the text."""
    return _TOKEN.findall(text)


def log_prob(prompt: str, number: int) -> float:
    """Returns a log-probability that the token alone decides."""
    return float(random.Random(stable_seed(tokens_of(prompt)[number])).uniform(-6, 0))


def echo(request: dict[str, Any], log_prob: LogProb) -> tuple[dict[str, Any], int]:
    """Returns the choice of a completion, and how many tokens its prompt has.

    After the prompt, where it is echoed, come as many tokens " and" as may be written.
    """
    prompt, made = request["prompt"], [" and"] * request.get("max_tokens", 16)
    own = tokens_of(prompt)
    tokens = [*(own if request.get("echo") else []), *made]
    values: list[float | None] = [log_prob(prompt, number) for number in range(len(own))]
    values = [*([None, *values[1:]] if request.get("echo") else []), *[-0.5] * len(made)]
    offsets = [len("".join(tokens[:number])) for number in range(len(tokens))]
    logprobs = {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": None,
        "text_offset": offsets,
    }
    wants = request.get("logprobs") is not None
    return {"text": "".join(tokens), "logprobs": logprobs if wants else None}, len(own)


def num_tokens(text: str | None) -> int:
    """Returns about as many tokens as a text has."""
    return len(text or "") // 4 + 1


def _example(schema: dict[str, Any], draw: random.Random) -> Any:
    """Returns a value of a JSON schema."""
    if "enum" in schema:
        return draw.choice(schema["enum"])
    kind = schema.get("type", "string")
    if kind == "object":
        return {name: _example(part, draw) for name, part in schema["properties"].items()}
    if kind == "array":
        number = max(schema.get("minItems", 1), 1)
        return [_example(schema["items"], draw) for _ in range(number)]
    if kind in ("integer", "number"):
        return draw.randint(0, 9)
    if kind == "boolean":
        return draw.random() < 0.5
    return " ".join(draw.choices(WORDS, k=8)) + f" {draw.randrange(10**9)}"
