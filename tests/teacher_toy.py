"""Invented questions to a teacher, and the least around them."""

import json
from pathlib import Path

from openai_server import OpenAIServer

from instructrec_jax.teacher.questions import Answer, Question
from instructrec_jax.teacher.settings import ClientSettings

MODEL = "tiny-teacher"
PRICES = {MODEL: {"input_usd": 1.0, "output_usd": 2.0}}
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": False,
}


def question(number: int, **changes) -> Question:
    fields = {
        "kind": "preference",
        "prompt_version": "1",
        "model": MODEL,
        "system": "You describe a taste.",
        "user": f"What does customer {number} like?",
        "schema": SCHEMA,
        "max_tokens": 50,
        "temperature": 0.0,
    }
    return Question(**{**fields, **changes})


def questions(number: int) -> list[Question]:
    return [question(index) for index in range(number)]


def answer(number: int, **changes) -> Answer:
    fields = {
        "key": question(number).key,
        "text": "calm puzzles",
        "input_tokens": 30,
        "output_tokens": 5,
        "usd": 0.25,
        "model": f"{MODEL}-2026-01-01",
        "date": "2026-11-26",
        "finish_reason": "stop",
    }
    return Answer(**{**fields, **changes})


def settings(server: OpenAIServer, folder: Path, **changes) -> ClientSettings:
    path = folder / "prices.json"
    path.write_text(json.dumps(PRICES))
    fields = {"base_url": server.base_url, "prices": str(path), "max_in_flight": 8}
    return ClientSettings(**{**fields, **changes})
