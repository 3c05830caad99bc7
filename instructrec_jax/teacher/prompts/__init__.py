"""What a teacher is asked: one TOML file a kind of text, in the project's own wording.

A file holds the version (which changes with any word of it), the system and the user message with
one slot for a block of data, a firmer wording for the one retry, the JSON schema of the answer, the
most tokens that it may take and those that it is expected to take.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """How one kind of text is asked for.

    Attributes:
      kind: name of the file.
      version: its version, such as "preference-1".
      system: message that says what the data block is.
      user: message with one slot, such as "{titles}".
      firmer: what the retry adds to the message.
      schema: JSON schema of the answer, an object with a "text".
      max_tokens: most tokens of an answer.
      expected_tokens: usual tokens of an answer, for estimates.
    """

    kind: str
    version: str
    system: str
    user: str
    firmer: str
    schema: Mapping[str, Any]
    max_tokens: int
    expected_tokens: int

    @property
    def slot(self) -> str:
        """The name of the slot, which is that of the data block too."""
        (name,) = [name for _, name, _, _ in string.Formatter().parse(self.user) if name]
        return name

    def question(self, lines: Sequence[str], *, model: str, temperature: float) -> Question:
        """Returns the first question on some data.

        Args:
          lines: scrubbed texts for the block of data.
          model: as the server names it.
          temperature: of sampling.
        """
        before, after = self.user.split(f"{{{self.slot}}}")
        return Question(
            kind=self.kind,
            prompt_version=self.version,
            model=model,
            system=self.system,
            user=f"{before}{data_block(self.slot, lines)}{after}",
            schema=self.schema,
            max_tokens=self.max_tokens,
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
    texts = {name: found.pop(name).strip() for name in ("system", "user", "firmer")}
    return Prompt(kind=kind, **texts, **found)
