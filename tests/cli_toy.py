"""A verb whose stage is any function, to try the command with, and the words of all verbs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from instructrec_jax.cli import main
from instructrec_jax.cli.main import VERBS
from instructrec_jax.cli.verb import Group, Verb

COMMANDS = [
    (verb.name, member.name) if isinstance(verb, Group) else (verb.name,)
    for verb in VERBS
    for member in (verb.verbs if isinstance(verb, Group) else (verb,))
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a toy decides.

    Attributes:
      rate: a share, 10% for example.
      size: without it 5.
      names: what to do, one or
        more of them.
      is_wide: do it widely.
    """

    rate: float = 0.5
    size: int | None = None
    names: Sequence[str] = ("a", "b")
    is_wide: bool = False


def toy(*, output_dir: Path | str, seed: int = 0, settings: Settings, hook: Callable = print):
    """Stands for a stage's function.

    Args:
      output_dir: where to.
      seed: of all.
      settings: what else.
      hook: no flag can give it.
    """
    return BEHAVIOUR[0](output_dir=output_dir, seed=seed, settings=settings)


BEHAVIOUR = [lambda **_: None]


def run_stage(monkeypatch, function, *arguments, **changes):
    """Runs a verb whose stage is the function; returns the exit code."""
    BEHAVIOUR[0] = function
    verb = Verb(
        **{
            "name": "toy",
            "summary": "a toy",
            "description": "A toy.",
            "example": "instructrec toy",
            "function": f"{__name__}:toy",
            **changes,
        }
    )
    monkeypatch.setattr(main, "VERBS", (verb,))
    return main.main(["toy", "--output_dir=x", *arguments])
