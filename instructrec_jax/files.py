"""Whole files or none: everything is written under a temporary name, then renamed."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from instructrec_jax import settings
from instructrec_jax.errors import UserError

# A block that writes fails with one of these where the disk is the reason, not its input.
_Shape = TypeVar("_Shape")
_WHOLE_DIGITS = 20  # of JSON; longer numbers count as floats
_DISK_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems that know none


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it onto `path` if the block succeeds.

    Raises:
      UserError: if it cannot be written there.
    """
    path = Path(path)
    temporary = _temporary(path)
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        with named_errors(path, only=_DISK_ERRORS):
            yield temporary
        with named_errors(path):
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it takes the place of `path`.

    A folder that stood at `path` is kept until the new one is complete, then removed. What a
    killed process left of this folder is removed first; the lock that it held ended with it.

    Raises:
      UserError: if it cannot be written there.
    """
    path = Path(path)
    temporary = _temporary(path)
    _remove_leftover_folders(path)
    with named_errors(path):
        if path.is_symlink() and not path.exists():
            raise UserError(f"cannot write {path}: it is a link to nothing; remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
    retired = temporary.with_suffix(".old")
    with exclusive_directory(temporary):
        try:
            with named_errors(path, only=_DISK_ERRORS):
                yield temporary
            with named_errors(path):
                if path.exists():
                    path.rename(retired)
                temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)


def read_text(path: Path | str) -> str:
    """Returns the text of a UTF-8 file that a user wrote, without its byte order mark.

    Raises:
      UserError: if it cannot be read or is not UTF-8.
    """
    with open_input(path) as stream, named_errors(Path(path), verb="read"):
        found = stream.read()
    try:
        return found.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; convert it") from None


def open_input(path: Path | str) -> BinaryIO:
    """Opens a file that a user named, and nothing else: a FIFO or device may never end.

    Raises:
      UserError: if it is no file, is not there or may not be read.
    """
    path = Path(path)
    with named_errors(path, verb="read"):
        check_is_file(path)
        return path.open("rb")


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON says, numbers being finite.

    Raises:
      ValueError: for anything else, nested beyond what can be read included.
    """
    try:
        return json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def read_json(path: Path | str, shape: type[_Shape], *, remedy: str) -> _Shape:
    """Returns what a JSON file holds, checked.

    Args:
      path: the file.
      shape: what it has to be, as `settings.misfit` takes it; an object of a dataclass's fields is
        returned as the dataclass.
      remedy: what to do with a file that is not so.

    Raises:
      UserError: if it cannot be read, is no JSON or of another shape.
    """
    text = read_text(path)
    try:
        found = parse_json(text)
        if dataclasses.is_dataclass(shape):
            if expected := settings.misfit(found, dict[str, Any]):
                raise ValueError(f"it holds {settings.shown(found)}, expected {expected}")
            made = shape(**found)
            settings.check_fields(made)
            return made
        if expected := settings.misfit(found, shape):
            raise ValueError(f"it holds {settings.shown(found)}, expected {expected}")
        return found
    except (ValueError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def _number(text: str) -> float | int:
    """Returns a number of JSON; NaN and infinity are none."""
    is_whole = len(text) <= _WHOLE_DIGITS and text.removeprefix("-").isdigit()
    found = int(text) if is_whole else float(text)
    if not math.isfinite(found):
        raise ValueError(f"the number {text[:40]} is out of range")
    return found


@contextmanager
def exclusive_directory(path: Path | str) -> Iterator[None]:
    """Holds a folder for this process alone, and creates it if it is new.

    The operating system keeps the lock, so it ends with the process, however that ends.

    Raises:
      UserError: if another process holds the folder.
    """
    path = Path(path)
    with named_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    try:
        if not _locks(descriptor, path):
            raise UserError(
                f"another process is at work in {path}; wait until it has ended, then run this "
                "command again"
            )
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path | str) -> None:
    """Removes what `atomic_file` left half-written in `folder` when its process was killed."""
    for path in Path(folder).glob(".*.tmp"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path | str) -> str:
    """Returns the hexadecimal sha256 of a file's bytes, or of every file under a folder.

    Raises:
      UserError: if something cannot be read, or is a device or FIFO, which may never end.
    """
    path = Path(path)
    digest = hashlib.sha256()
    with named_errors(path, verb="read"):
        members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for member in members:
            if path.is_dir():
                digest.update(str(member.relative_to(path)).encode())
            check_is_file(member)
            with member.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def names_below(folder: Path | str) -> list[str]:
    """Returns the paths of all files below a folder, relative to it, sorted."""
    root = Path(folder)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def hashes(folder: Path | str, names: Iterable[str]) -> dict[str, str | None]:
    """Returns the sha256 of files by their paths in a folder, None for one that is not there.

    Several are read at a time. A file that has not changed since is not read a second time.
    """

    def of(name: str) -> str | None:
        path = Path(folder) / name
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _known_sha256(path, (found.st_ino, found.st_size, found.st_mtime_ns))

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(of, names), strict=True))


@functools.lru_cache(maxsize=1 << 16)
def _known_sha256(path: Path, _unchanged: tuple[int, int, int]) -> str:
    return sha256(path)


def check_is_file(path: Path) -> None:
    """Raises UserError if the path is of something other than a file."""
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: it is a folder, a FIFO or a device, expected a file")


@contextmanager
def named_errors(path: Path, *, verb: str = "write", only: Collection[int] = ()) -> Iterator[None]:
    """Turns an error of the operating system, of those in `only` if any, into a UserError."""
    if problem := settings.address_problem(path):
        raise UserError(f"a path {problem}")
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        reason = error.strerror or str(error)
        raise UserError(f"cannot {verb} {path}: {reason}; mend it or name another path") from None


def _remove_leftover_folders(path: Path) -> None:
    """Removes what `atomic_directory` left of `path` where its process was killed.

    A folder that had been moved away and was not yet replaced moves back.
    """
    for old in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.*"):
        temporary = old.with_suffix(".tmp")
        with contextlib.suppress(UserError, OSError), exclusive_directory(temporary):
            if old.suffix == ".old" and not path.exists():
                old.rename(path)
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    """Returns a new name beside `path`; module tempfile's would be readable by their owner only."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Flushes a file to disk, so that a rename never exposes an empty one after a crash."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _locks(descriptor: int, path: Path) -> bool:
    """Locks an open folder; returns False if it is locked, or has been moved away since."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True
