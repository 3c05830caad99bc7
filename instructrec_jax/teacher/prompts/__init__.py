"""What a teacher is asked: one TOML file a kind of text, in the project's own wording.

A file holds the version (which changes with any word of it), the system and the user message with
a slot for each block of data, the most tokens that an answer may take and those that it is expected
to take. It may hold a firmer wording for the one retry, and the JSON schema of the answer.
"""

import dataclasses
import functools
import string
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.teacher.questions import Question
from instructrec_jax.teacher.scrubbing import data_block

PREFERENCE, INTENTION, SECOND_INTENTION = "preference", "intention", "second_intention"
PARAPHRASE, BACK_TRANSLATION = "paraphrase", "back_translation"
RANKING, LIKELIHOOD = "ranking", "likelihood"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """How one kind of text is asked for.

    Attributes:
      kind: name of the file.
      version: its version, such as "preference-1".
      system: message that says what the data block is.
      user: message with slots, such as "{titles}".
      max_tokens: most tokens of an answer.
      expected_tokens: usual tokens of an answer, for estimates.
      firmer: what the retry adds to the message; "" where there is none.
      schema: JSON schema of the answer, an object; None: the answer is no JSON.
    """

    kind: str
    version: str
    system: str
    user: str
    max_tokens: int
    expected_tokens: int
    firmer: str = ""
    schema: Mapping[str, Any] | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """The names of the slots, which are those of the data blocks too."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.user) if name)

    def question(
        self,
        blocks: Mapping[str, Sequence[str]],
        *,
        model: str,
        temperature: float,
        max_tokens: int | None = None,
    ) -> Question:
        """Returns the first question on some data.

        Args:
          blocks: scrubbed texts for the block of data of each slot.
          model: as the server names it.
          temperature: of sampling.
          max_tokens: most tokens of the answer; None: the prompt's.
        """
        parts = [
            text + (data_block(name, blocks[name]) if name else "")
            for text, name, _, _ in string.Formatter().parse(self.user)
        ]
        return Question(
            kind=self.kind,
            prompt_version=self.version,
            model=model,
            system=self.system,
            user="".join(parts),
            schema=self.schema,
            max_tokens=max_tokens or self.max_tokens,
            temperature=temperature,
        )

    def retry(self, question: Question) -> Question:
        """Returns the one retry of a question, with the firmer wording after the data."""
        return dataclasses.replace(question, user=f"{question.user}\n\n{self.firmer}", attempt=1)


@functools.cache
def read_prompt(kind: str) -> Prompt:
    """Returns the prompt of a kind, such as "preference"."""
    path = Path(__file__).with_name(f"{kind}.toml")
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    texts = {name: found.pop(name, "").strip() for name in ("system", "user", "firmer")}
    return Prompt(kind=kind, **texts, **found)
