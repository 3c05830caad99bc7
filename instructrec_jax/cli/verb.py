"""What the command knows of a verb."""

import argparse
import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of the `instructrec` command.

    Attributes:
      name: as the user types it.
      summary: one line for the list of verbs.
      description: what it reads, does and writes.
      example: a command that can be copied.
      add_arguments: adds the verb's flags to its parser.
      run: does the work; imports its stage only then.
      takes_gin: whether `--gin.NAME=VALUE` is allowed.
    """

    name: str
    summary: str
    description: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    takes_gin: bool = False
