"""The `instructrec` command: finds the verb, runs it, and turns mistakes into one message.

Nothing here or in the verbs' files imports jax, tensorflow or numpy before a verb is chosen, so
that the general help answers at once. A verb's own help imports its stage and shows its signature.
"""

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from instructrec_jax import __version__
from instructrec_jax.cli import data_verbs, model_verbs
from instructrec_jax.cli.interruption import INTERRUPTED, interruptible
from instructrec_jax.cli.verb import Group, Verb, show
from instructrec_jax.errors import UserError, unknown_name

VERBS: tuple[Verb | Group, ...] = (
    data_verbs.DATA,
    data_verbs.PREPARE,
    data_verbs.ANNOTATE,
    data_verbs.BUILD,
    data_verbs.TEMPLATES,
    data_verbs.INSPECT,
    data_verbs.LINT,
    data_verbs.VERIFY,
    model_verbs.TRAIN,
    model_verbs.EVAL,
    model_verbs.SCORE,
    model_verbs.GENERATE,
    model_verbs.CONVERT,
    model_verbs.REPORT,
    model_verbs.DEMO,
)
USER_ERROR = 2
DEBUG = "INSTRUCTREC_DEBUG"  # set to anything: errors of the machine show their traceback


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the command's name; those of the process if None.

    Returns:
      The exit code: 0, 1 where `lint` or `verify` finds an error, 2 for a mistake that the user
      can mend, 130 for an interruption. Errors of the program keep their traceback; those of the
      machine (files, memory, encodings) end in one line, and show it where INSTRUCTREC_DEBUG is
      set.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _start_logging()
    _find_modules_in_the_working_folder()
    own_process = contextlib.nullcontext() if argv is not None else interruptible(arguments)
    try:
        with own_process:
            return _run(arguments)
    except UserError as error:
        show(f"instructrec: {error}", sys.stderr)
        return USER_ERROR
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        if os.environ.get(DEBUG):
            raise
        show(f"instructrec: {_in_words(error)} ({DEBUG}=1 shows where)", sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        again = shlex.join(["instructrec", *arguments])
        line = f"interrupted; the same command goes on from what was saved: {again}"
        print(line, file=sys.stderr)
        return INTERRUPTED


def _in_words(error: Exception) -> str:
    """Returns what a mistake of the machine is, and what to do."""
    if isinstance(error, OSError):
        path = f"cannot use {error.filename!r}" if error.filename else "the system refuses"
        reason = error.strerror or str(error) or type(error).__name__
        return f"{path}: {reason}; mend its place, permissions or disk, or name another path"
    if isinstance(error, MemoryError):
        return f"out of memory ({str(error) or 'no more is known'}); ask for less at once"
    if isinstance(error, RecursionError):
        return "an input is nested too deep to be read; it is damaged or no input of this command"
    return f"a text cannot be read or written ({error}); expected UTF-8: set LC_ALL=C.UTF-8"


def make_parser(chosen: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns the parser of all verbs.

    Args:
      chosen: the first words of the command; only the flags of the verb that they name are there,
        since reading them off imports the verb's stage.
    """
    parser = argparse.ArgumentParser(
        prog="instructrec",
        description="Recommendation as instruction following, from raw logs to a report.",
        epilog="example: instructrec demo\n\nEach verb has its own help: instructrec VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"instructrec {__version__}")
    _add_verbs(parser.add_subparsers(dest="verb", metavar="VERB", required=True), VERBS, chosen)
    return parser


def _add_verbs(subparsers: Any, verbs: Sequence[Verb | Group], chosen: Sequence[str]) -> None:
    """Adds the parser of each verb, and the flags of the chosen one."""
    for verb in verbs:
        subparser = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        is_chosen = tuple(chosen[:1]) == (verb.name,)
        if isinstance(verb, Group):
            actions = subparser.add_subparsers(dest="action", metavar="ACTION", required=True)
            _add_verbs(actions, verb.verbs, chosen[1:] if is_chosen else ())
        elif is_chosen:
            verb.add_flags(subparser)
            subparser.set_defaults(chosen=verb)


def _run(arguments: list[str]) -> int:
    """Parses the arguments and runs the verb."""
    names = [verb.name for verb in VERBS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        raise unknown_name("verb", arguments[0], names)
    plain = [argument for argument in arguments if not argument.startswith("--gin.")]
    bindings = [argument.removeprefix("--gin.") for argument in arguments if argument not in plain]
    options = make_parser(plain).parse_args(plain)
    if bindings and not options.chosen.takes_gin:
        raise UserError(f"`instructrec {options.verb}` takes no gin binding: --gin.{bindings[0]}")
    options.bindings = bindings
    return options.chosen.run(options)


class _Messages(logging.StreamHandler):
    """Shows messages on the current `sys.stderr`, which a live line replaces while it is shown.

    The work goes on when the reader of the messages ends, because a training run must not die with
    the pager that showed it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a message."""
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        """Sends what follows nowhere if the reader is gone."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        else:
            super().handleError(record)


def _find_modules_in_the_working_folder() -> None:
    """Puts the working folder last on the path: task modules may be there, and hide nothing."""
    if "" not in sys.path:
        sys.path.append("")


def _start_logging() -> None:
    """Shows the project's messages on stderr as plain lines, and of others only warnings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's C++ notes on start-up
    handler = _Messages()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files it does not need
    for name in ("instructrec_jax", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
