"""Lines of a text file, plain or gzip, with every kind of damage named by file and line."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from instructrec_jax.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""Yields (line number from 1, line without its end) for every line that is not empty.

    The first bytes of the file, not its name, decide whether it is gzip. Only "\n" and "\r\n"
    end a line: other separators may stand inside a title.

    Args:
      path: the file.

    Raises:
      UserError: if the file is missing, a folder, empty, cut in the middle or not UTF-8.

    Example:
      A file "a\tb\n\nc\td\n" yields (1, "a\tb") and (3, "c\td").
    """
    number = 0
    try:
        with _open(path) as stream:
            for raw in stream:
                number += 1
                line = _decode(raw, path, number)
                if line:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is damaged after line {number} ({error}): the gzip file was cut or changed; "
            "obtain it again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if number == 0:
        raise UserError(f"{path} is empty; expected a header or records, one a line")


def fail(path: Path, line: int, problem: str) -> NoReturn:
    """Raises the error for a damaged line, naming the file and the line."""
    raise UserError(f"{path} line {line}: {problem}")


def _open(path: Path) -> BinaryIO:
    """Opens the file for its decompressed bytes."""
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == _GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip else path.open("rb")


def _decode(raw: bytes, path: Path, number: int) -> str:
    """Returns the line as text, without its end."""
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        fail(path, number, f"not UTF-8 ({error.reason} at byte {error.start}); convert the file")
    if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
    return line.removesuffix("\n").removesuffix("\r")
