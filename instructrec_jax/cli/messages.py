"""What the command says on stderr: its messages, in lines that a terminal holds."""

import argparse
import logging
import os
import re
import shutil
import sys
import textwrap
from typing import TextIO

QUIET, VERBOSE = "quiet", "verbose"
_WIDTH = 100
_PLAIN, _WITH_SOURCE = "%(message)s", "%(asctime)s %(name)s: %(message)s"
_INDENTED_COLUMN = re.compile(r" +\S+ {2,}")
_OWN = ("instructrec_jax", "tasks")


def columns() -> int:
    """Returns the longest line: that of the terminal or of COLUMNS, and at most 100."""
    return min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns)


def wrapped(text: str) -> str:
    """Returns a text whose lines are short enough; a longer word, such as a path, stays whole."""
    return "\n".join(_folded(line, columns()) for line in text.splitlines())


def show(text: str, stream: TextIO) -> None:
    """Writes lines to a stream in any locale, whether or not somebody still reads."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def start_logging() -> None:
    """Shows the project's messages on stderr as plain lines, and of others only warnings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # tensorflow's C++ notes on start-up
    handler = _Messages()
    handler.setFormatter(_Lines(_PLAIN))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files it does not need
    for name in _OWN:
        logging.getLogger(name).setLevel(logging.INFO)


def say_less_or_more(talk: str) -> None:
    """Shows warnings alone (QUIET), or what the libraries say too (VERBOSE); "" changes nothing."""
    if talk == QUIET:
        for name in _OWN:
            logging.getLogger(name).setLevel(logging.WARNING)
    elif talk == VERBOSE:
        logging.getLogger("absl").setLevel(logging.INFO)
        root = logging.getLogger()
        root.setLevel(logging.INFO)
        root.handlers[0].setFormatter(_Lines(_WITH_SOURCE))


def speak_as(index: int) -> None:
    """Has a process that is not the first of its run show warnings alone, with its index."""
    if index:
        _Lines.speaker = f"process {index}: "
        say_less_or_more(QUIET)


def spoken(text: str) -> str:
    """Returns a text in short lines, with the index of the process if that is not the first."""
    return wrapped(_Lines.speaker + text)


class HelpPage(argparse.HelpFormatter):
    """A help page whose paragraphs are filled, and whose indented lines stay lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled, paragraph = list[str](), list[str]()
        for line in [*text.splitlines(), ""]:
            if line and not line.startswith(" "):
                paragraph.append(line)
                continue
            if paragraph:
                filled.append(textwrap.fill(" ".join(paragraph), width, break_on_hyphens=False))
            paragraph = []
            filled.append(_folded(line, width))
        return "\n".join(filled[:-1])


class _Lines(logging.Formatter):
    """Folds long messages, and says who speaks where that is not the first process of a run."""

    speaker = ""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message in short lines."""
        return spoken(super().format(record))


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


def _folded(line: str, width: int) -> str:
    """Returns a line in as many as it takes, the later ones indented."""
    if len(line) <= width:
        return line
    first_column = _INDENTED_COLUMN.match(line)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * len(first_column[0]) if first_column else "  ",
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
