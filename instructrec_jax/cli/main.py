"""The `instructrec` command: finds the verb, runs it, and turns mistakes into one message.

Nothing here or in the verbs' files imports jax, tensorflow or numpy before a verb runs, so that
help answers at once.
"""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence

from instructrec_jax import __version__
from instructrec_jax.cli import (
    build_verb,
    convert_verb,
    data_verbs,
    demo_verb,
    lint_verb,
    report_verb,
    run_verbs,
)
from instructrec_jax.cli.verb import Verb
from instructrec_jax.errors import UserError, unknown_name

VERBS: tuple[Verb, ...] = (
    data_verbs.DATA,
    data_verbs.PREPARE,
    build_verb.ANNOTATE,
    build_verb.BUILD,
    lint_verb.TEMPLATES,
    lint_verb.INSPECT,
    lint_verb.LINT,
    run_verbs.TRAIN,
    run_verbs.EVAL,
    run_verbs.SCORE,
    run_verbs.GENERATE,
    convert_verb.CONVERT,
    report_verb.REPORT,
    demo_verb.DEMO,
)
USER_ERROR = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the command's name; those of the process if None.

    Returns:
      The exit code: 0, 1 where `lint` finds an error, 2 for a mistake that the user can mend, 130
      for an interruption. Errors of the program keep their traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _start_logging()
    try:
        return _run(arguments)
    except UserError as error:
        print(f"instructrec: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        again = shlex.join(["instructrec", *arguments])
        print(
            f"interrupted; the same command goes on from what was saved:\n  {again}",
            file=sys.stderr,
        )
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="instructrec",
        description="Recommendation as instruction following, from raw logs to a report.",
        epilog="example: instructrec demo\n\nEach verb has its own help: instructrec VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"instructrec {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        subparser = subparsers.add_parser(
            verb.name,
            help=verb.summary,
            description=verb.description,
            epilog=f"example:\n  {verb.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(subparser)
        subparser.set_defaults(run=verb.run, takes_gin=verb.takes_gin)
    return parser


def _run(arguments: list[str]) -> int:
    """Parses the arguments and runs the verb."""
    names = [verb.name for verb in VERBS]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        raise unknown_name("verb", arguments[0], names)
    plain = [argument for argument in arguments if not argument.startswith("--gin.")]
    bindings = [argument.removeprefix("--gin.") for argument in arguments if argument not in plain]
    options = make_parser().parse_args(plain)
    if bindings and not options.takes_gin:
        raise UserError(f"`instructrec {options.verb}` takes no gin binding: --gin.{bindings[0]}")
    options.bindings = bindings
    return options.run(options) or 0


class _Terminal(logging.StreamHandler):
    """Shows messages for as long as somebody reads them: `instructrec lint ... | head` ends well.

    The work itself goes on, because a training run must not die with the pager that showed it.
    """

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, logging's name
        """Sends what follows nowhere if the reader is gone."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            super().handleError(record)


def _start_logging() -> None:
    """Shows the project's messages as plain lines, and of other packages only warnings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's C++ notes on start-up
    handler = _Terminal(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files it does not need
    for name in ("instructrec_jax", "tasks"):
        logging.getLogger(name).setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
