"""The `instructrec` command: finds the verb, runs it, and turns mistakes into one message.

Nothing here or in the verbs' files imports jax, tensorflow or numpy before a verb is chosen, so
that the general help answers at once. A verb's own help imports its stage and shows its signature.
"""

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from instructrec_jax.cli import (
    baseline_verbs,
    command_line,
    data_verbs,
    doctor_verb,
    messages,
    model_verbs,
    plan_verb,
    score_verbs,
    serve_verbs,
    teacher_verbs,
)
from instructrec_jax.cli.interruption import INTERRUPTED, interruptible
from instructrec_jax.cli.verb import Group, Verb
from instructrec_jax.errors import UserError
from instructrec_jax.settings import masked

VERBS: tuple[Verb | Group, ...] = (
    data_verbs.DATA,
    data_verbs.PREPARE,
    data_verbs.CANDIDATES,
    data_verbs.RENAME,
    teacher_verbs.ANNOTATE,
    teacher_verbs.AUDIT,
    data_verbs.BUILD,
    data_verbs.TEMPLATES,
    data_verbs.INSPECT,
    data_verbs.LINT,
    data_verbs.VERIFY,
    doctor_verb.DOCTOR,
    plan_verb.PLAN,
    model_verbs.TRAIN,
    model_verbs.EVAL,
    score_verbs.SCORE,
    score_verbs.SENSITIVITY,
    score_verbs.EXPLAIN,
    serve_verbs.TOKEN,
    serve_verbs.SERVE,
    serve_verbs.FEEDBACK,
    model_verbs.GENERATE,
    score_verbs.SHOW,
    baseline_verbs.BASELINE,
    model_verbs.CONVERT,
    model_verbs.REPORT,
    model_verbs.COMPARE,
    model_verbs.REPRODUCE,
    model_verbs.DEMO,
)
USER_ERROR = 2
_PROCESSES = "instructrec_jax.parallel.processes"  # imports jax: only some verbs do
COMPLETION = "_ARGCOMPLETE"  # set where a shell asks which words may follow
DEBUG = "INSTRUCTREC_DEBUG"  # set to anything: errors of the machine show their traceback


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      argv: arguments after the command's name; those of the process if None.

    Returns:
      The exit code: 0, 1 where `lint`, `verify` or `doctor` finds an error, 2 for a mistake that
      the user can mend, 130 for an interruption. Errors of the program keep their traceback; those
      of the machine (files, memory, encodings) end in one line, and show it where
      INSTRUCTREC_DEBUG is set.
    """
    if COMPLETION in os.environ:
        command_line.complete(VERBS)
    arguments = list(sys.argv[1:] if argv is None else argv)
    messages.start_logging()
    _find_modules_in_the_working_folder()
    own_process = contextlib.nullcontext() if argv is not None else interruptible(arguments)
    try:
        with own_process:
            return _run(arguments)
    except UserError as error:
        return _failed(f"instructrec: {error}")
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        if os.environ.get(DEBUG):
            raise
        return _failed(f"instructrec: {_in_words(error)} ({DEBUG}=1 shows where)")
    except Exception:
        if not _is_one_of_several():
            raise
        traceback.print_exc()
        return _failed("instructrec: an error of the program")
    except KeyboardInterrupt:
        again = masked(shlex.join(["instructrec", *arguments]))
        line = f"interrupted; the same command goes on from what was saved: {again}"
        messages.show(line, sys.stderr)
        return INTERRUPTED


def _failed(line: str) -> int:
    """Says what is wrong and returns the exit code; one of several processes ends with it now."""
    messages.show(messages.spoken(line), sys.stderr)
    if _is_one_of_several():
        sys.modules[_PROCESSES].leave(USER_ERROR)
    return USER_ERROR


def _is_one_of_several() -> bool:
    """Whether this process has joined others; it has not where nobody has asked for it."""
    module = sys.modules.get(_PROCESSES)
    return module is not None and module.is_joined()


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


def _run(arguments: list[str]) -> int:
    """Parses the arguments and runs the verb."""
    options = command_line.parse(VERBS, arguments)
    messages.say_less_or_more(getattr(options, "talk", ""))
    return options.chosen.run(options)


def _find_modules_in_the_working_folder() -> None:
    """Puts the working folder last on the path: task modules may be there, and hide nothing."""
    if "" not in sys.path:
        sys.path.append("")
