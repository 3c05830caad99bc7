"""Whole files or none: everything is written under a temporary name, then renamed."""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instructrec_jax.errors import UserError


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it onto `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it takes the place of `path`.

    A folder that stood at `path` is kept until the new one is complete, then removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    retired = temporary.with_suffix(".old")
    try:
        yield temporary
        if path.exists():
            path.rename(retired)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def exclusive_directory(path: Path | str) -> Iterator[None]:
    """Holds a folder for this process alone, and creates it if it is new.

    The operating system keeps the lock, so it ends with the process, however that ends.

    Raises:
      UserError: if another process holds the folder.
    """
    path = Path(path)
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


def remove_leftover_folders(path: Path | str) -> None:
    """Removes what `atomic_directory` left of `path` when its process was killed.

    A folder that had been moved away and not yet been replaced moves back.
    """
    path = Path(path)
    for retired in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}.old"):
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(path)
    for temporary in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path | str) -> str:
    """Returns the hexadecimal sha256 of a file's bytes, or of every file under a folder."""
    path = Path(path)
    digest = hashlib.sha256()
    members = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for member in members:
        if path.is_dir():
            digest.update(str(member.relative_to(path)).encode())
        with member.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
