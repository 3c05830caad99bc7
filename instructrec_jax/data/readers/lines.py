"""Lines of a text file, plain or gzip, with every kind of damage named by file and line."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

from instructrec_jax.damage import Damage, DamagedLineError, damaged
from instructrec_jax.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: Path, damage: Damage | None = None) -> Iterator[tuple[int, str]]:
    r"""Yields (line number from 1, line without its end) for every line that is not empty.

    The first bytes of the file, not its name, decide whether it is gzip. Only "\n" and "\r\n"
    end a line: other separators may stand inside a title. Of a gzip file that was cut, the whole
    lines before the cut can be used; the cut itself counts as one damaged line.

    Args:
      path: the file.
      damage: what happens to lines that are not UTF-8 and to a cut; by default they are errors.

    Raises:
      UserError: if the file is missing, a folder, empty, or damaged beyond what `damage` allows.

    Example:
      A file "a\tb\n\nc\td\n" yields (1, "a\tb") and (3, "c\td").
    """
    damage = damage or Damage()
    number = 0
    try:
        with _open(path) as stream:
            for raw in stream:
                number += 1
                try:
                    line = _decode(raw, path, number)
                except DamagedLineError as error:
                    damage.handle(error)
                    continue
                if line:
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        cut = DamagedLineError(
            f"{path} is damaged after line {number} ({error}): the gzip file was cut or changed; "
            "obtain it again",
            reason="cut_gzip",
            place=f"{path.name} line {number + 1}",
        )
        damage.handle(cut)
        if number == 0:
            raise UserError(str(cut)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if number == 0:
        raise UserError(f"{path} is empty; expected a header or records, one a line")


def fail(path: Path, line: int, problem: str) -> NoReturn:
    """Raises the error for a line without which the file means nothing, such as its header."""
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
        problem = f"not UTF-8 ({error.reason} at byte {error.start}); convert the file"
        damaged(path, number, "not_utf8", problem)
    if number == 1:
        line = line.removeprefix(_BYTE_ORDER_MARK)
    return line.removesuffix("\n").removesuffix("\r")
