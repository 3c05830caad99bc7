"""A language model that answers the audit's four questions, beside people and marked as none.

It reads what a person reads: what a text was made from, the text, and the item that was chosen
next, scrubbed of personal details, in blocks of data. Its answers are no evidence that people would
say the same; the report shows how far they agree.
"""

import dataclasses
from collections.abc import Iterable
from typing import Annotated

from instructrec_jax import files
from instructrec_jax.settings import Count, Range, check_fields
from instructrec_jax.teacher.audit import QUESTIONS, Example
from instructrec_jax.teacher.prompts import Prompt, read_prompt
from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.scrubbing import scrub

KIND = "judge"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Who judges.

    Attributes:
      model: of the server, as it names it; best another one than wrote the texts.
      temperature: of sampling.
      max_tokens: most tokens of an answer, hidden reasoning included; without it the prompt's 80,
        too few for a model that reasons.
    """

    model: str
    temperature: Annotated[float, Range(0, 2)] = 0.0
    max_tokens: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def prompt(self) -> Prompt:
        """What the model is asked."""
        return read_prompt(KIND)


def questions(examples: Iterable[Example], settings: JudgeSettings) -> dict[str, Question]:
    """Returns the question on each text, by the number of its row."""
    return {
        example.number: settings.prompt.question(
            {
                "source": [scrub(example.made_from)],
                "sentence": [scrub(example.text)],
                "next": [scrub(example.target)],
            },
            model=settings.model,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
        )
        for example in examples
    }


def answers_in(raw: str) -> dict[str, bool] | None:
    """Returns the answers by question; None where an answer of the model does not hold all four.

    A server without structured output may put the JSON object between other words.
    """
    try:
        found = files.parse_json(raw[raw.index("{") : raw.rindex("}") + 1])
        said = {name: found[name] for name in QUESTIONS}
    except (ValueError, KeyError, TypeError):
        return None
    return said if all(isinstance(value, bool) for value in said.values()) else None
