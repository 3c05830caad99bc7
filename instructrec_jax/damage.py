"""What happens to a damaged line: it ends the reading, or is left out and counted up to a bound."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from instructrec_jax.errors import UserError

FAIL, SKIP = "fail", "skip"
POLICIES = (FAIL, SKIP)
DEFAULT_MAX_DAMAGED = 1000
MAX_EXAMPLES = 5

_Row = TypeVar("_Row")
_Parsed = TypeVar("_Parsed")


class DamagedLineError(UserError):
    """A line that cannot be used; the lines around it can.

    Attributes:
      reason: a word for the count, such as "not_json".
      place: "FILE line N", the file without its folder.
    """

    def __init__(self, message: str, *, reason: str, place: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.place = place


def damaged(path: Path, line: int, reason: str, problem: str) -> NoReturn:
    """Raises the error for a line that cannot be used.

    Args:
      path: its file.
      line: its number, from 1.
      reason: a word for the count.
      problem: the value, what was expected, what to do.
    """
    place = f"{path.name} line {line}"
    raise DamagedLineError(f"{path} line {line}: {problem}", reason=reason, place=place)


@dataclasses.dataclass(kw_only=True)
class Damage:
    """The policy for damaged lines of one log, and what it has met.

    Attributes:
      on_damage: "fail" raises at the first damaged line, "skip" leaves such lines out.
      max_damaged: most lines that "skip" leaves out, over all files of the log.
      counts: lines left out, by reason.
      examples: up to five "FILE line N" of each reason.
      switch: the flag or macro that sets the policy, for messages.
    """

    on_damage: str = FAIL
    max_damaged: int = DEFAULT_MAX_DAMAGED
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    switch: str = "--on_damage"

    def handle(self, error: DamagedLineError) -> None:
        """Counts the damaged line.

        Raises:
          UserError: if the policy is "fail", or more lines are damaged than `max_damaged`.
        """
        if self.on_damage != SKIP:
            raise UserError(
                f"{error}\n{self.switch}=skip leaves damaged lines out and counts them"
            ) from None
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        examples = self.examples.setdefault(error.reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(error.place)
        if sum(self.counts.values()) > self.max_damaged:
            reasons = ", ".join(f"{name}={number}" for name, number in self.counts.items())
            raise UserError(
                f"more than --max_damaged={self.max_damaged} lines are damaged ({reasons}); "
                f"the last one is {error}"
            ) from None

    def parsed(
        self, rows: Iterable[tuple[int, _Row]], parse: Callable[[int, _Row], _Parsed]
    ) -> Iterator[_Parsed]:
        """Yields what `parse` makes of each (line number, row), without the damaged ones.

        Args:
          rows: line numbers, and what each line holds.
          parse: raises DamagedLineError where a row cannot be used.
        """
        for line, row in rows:
            try:
                result = parse(line, row)
            except DamagedLineError as error:
                self.handle(error)
                continue
            yield result

    def add(self, other: "Damage") -> None:
        """Adds what another part of the work has left out."""
        for reason, number in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + number
            examples = self.examples.setdefault(reason, [])
            examples += other.examples[reason][: MAX_EXAMPLES - len(examples)]

    def afresh(self) -> "Damage":
        """Returns the same policy with nothing counted, for reading a file a second time."""
        return Damage(on_damage=self.on_damage, max_damaged=self.max_damaged)
