"""What the command knows of a verb, and how it runs one."""

import argparse
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from instructrec_jax.cli import flags, messages
from instructrec_jax.errors import UserError
from instructrec_jax.settings import SettingError, check_addresses

GIN_BINDINGS = "--gin_bindings"


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name gin files and override what they say."""
    parser.add_argument(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="gin file; may be given several times",
    )
    parser.add_argument(
        "--gin.NAME",
        dest="_documented_only",
        metavar="VALUE",
        help="value of a macro or binding; may be given for several names",
    )
    parser.add_argument(
        GIN_BINDINGS,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the same in another form",
    )
    parser.add_argument(
        "--gin_search_paths",
        type=lambda text: [path for path in text.split(",") if path],
        default=[],
        metavar="DIR,DIR",
        help="folders in which gin files are looked for first",
    )
    parser.add_argument(
        "--tfds_data_dir",
        metavar="DIR",
        help="the macro DATA_DIR, as T5X's programs name it",
    )


def bindings_of(options: argparse.Namespace) -> list[str]:
    """Returns the "NAME=VALUE" bindings that the flags give."""
    folder = options.tfds_data_dir
    return [*([] if folder is None else [f"DATA_DIR={folder!r}"]), *options.gin_bindings]


def output_dir(_: Any, arguments: Mapping[str, Any]) -> str:
    """Returns the folder that a stage wrote to, for the verbs whose result it is."""
    return str(arguments["output_dir"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb of the `instructrec` command, which runs the function of a stage.

    Attributes:
      name: as the user types it.
      summary: one line for the list of verbs.
      description: what it reads, does and writes.
      example: a command that can be copied.
      function: the stage's function, "module:name"; its parameters are the verb's flags. It is
        imported only when the verb runs.
      spelled: parameters that are typed in another way, see `flags.add_flags`.
      result: makes the text for stdout from what the function returns and the arguments it got.
      exit_code: makes the exit code from what the function returns.
    """

    name: str
    summary: str
    description: str
    example: str
    function: str = ""
    spelled: Mapping[str, str] = dataclasses.field(default_factory=dict)
    result: Callable[[Any, Mapping[str, Any]], str] = output_dir
    exit_code: Callable[[Any], int] = lambda _: 0

    takes_gin = False

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds the verb's flags to its parser."""
        flags.add_flags(parser, self.load(), self.spelled)

    def run(self, options: argparse.Namespace) -> int:
        """Does the work, prints its result and returns the exit code."""
        function = self.load()
        try:
            arguments = flags.arguments_of(function, vars(options)) | self.more_arguments(options)
            check_addresses(function, arguments)
            returned = function(**arguments)
        except SettingError as error:
            typed = self.spelled.get(error.name, f"--{error.name}")
            raise UserError(f"{typed} {error.problem}") from None
        complete = inspect.signature(function).bind(**arguments)
        complete.apply_defaults()
        print_result(self.result(returned, complete.arguments))
        return self.exit_code(returned)

    def load(self) -> Callable[..., Any]:
        """Returns the stage's function."""
        module, name = self.function.split(":")
        return getattr(importlib.import_module(module), name)

    def more_arguments(self, options: argparse.Namespace) -> dict[str, Any]:
        """Returns arguments of the function that no flag gives."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Verbs that are typed after a common word, such as `data fetch`.

    Attributes:
      name: the common word.
      summary: one line for the list of verbs.
      description: what the verbs are for.
      example: a command that can be copied.
      verbs: its verbs.
      default: the one that is meant where a flag follows the common word; "" for none.
    """

    name: str
    summary: str
    description: str
    example: str
    verbs: tuple[Verb, ...]
    default: str = ""


def print_result(text: str) -> None:
    """Writes a result to stdout; messages go to stderr.

    A reader who has seen enough is no error: `instructrec lint ... | head`.
    """
    messages.show(text.rstrip("\n"), sys.stdout)
