"""What the command knows of a verb."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of the `instructrec` command.

    Attributes:
      name: as the user types it.
      summary: one line for the list of verbs.
      description: what it reads, does and writes.
      example: a command that can be copied.
      add_arguments: adds the verb's flags to its parser.
      run: does the work; imports its stage only then. Returns the exit code, None for 0.
      takes_gin: whether `--gin.NAME=VALUE` is allowed.
    """

    name: str
    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]
    takes_gin: bool = False


def add_folders(parser: argparse.ArgumentParser, *, reads: str, writes: str) -> None:
    """Adds the three flags of every verb that turns one folder into another."""
    parser.add_argument(
        "--dataset", required=True, metavar="NAME", help="name of the dataset, such as ml_100k"
    )
    parser.add_argument("--input_dir", required=True, metavar="DIR", help=reads)
    parser.add_argument("--output_dir", required=True, metavar="DIR", help=writes)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns those options that the user gave; the others keep the settings' own defaults."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}
