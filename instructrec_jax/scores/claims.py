"""Which process works on which shard: claims are files in a folder that all of them see.

A claim is a file that only one process can create. It names host and process, and its time is
renewed while the process lives; one whose process is dead may be taken over. Where two processes
hold one shard all the same (a host stood still for longer than that), both write the same bytes
under the same name: work is done twice, and nothing else happens.
"""

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Self

from instructrec_jax import files, workers

STALE_SECONDS = 120.0
_RENEWALS = 6  # in the time after which a claim is stale


class Claims:
    """The claims of this process. A context: on leaving it, all are given back."""

    def __init__(self, folder: Path | str, *, stale_seconds: float = STALE_SECONDS) -> None:
        """Names the folder; it is created with the first claim.

        Args:
          folder: where the claims of all processes lie.
          stale_seconds: age after which a claim of another host is dead; longer than the clocks
            of the hosts differ.
        """
        self._folder, self._stale_seconds = Path(folder), stale_seconds
        self._owner = {"host": workers.host_id(), "pid": os.getpid()}
        self._held: set[str] = set()
        self._is_over = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._renewal.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._renewal.join()
        for name in list(self._held):
            self.give_back(name)

    def take(self, name: str) -> bool:
        """Claims a piece of work; returns whether it is ours now."""
        path = self._path(name)
        while not self._create(path):
            if not self._is_stale(path, name):
                return False
            path.unlink(missing_ok=True)
        self._held.add(name)
        return True

    def give_back(self, name: str) -> None:
        """Removes our claim; one that another process has taken over stays."""
        self._held.discard(name)
        path = self._path(name)
        if _read_owner(path) == self._owner:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.claim"

    def _create(self, path: Path) -> bool:
        """Creates the file of a claim; returns False where there is one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            stream = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        except FileNotFoundError:  # the folder went when another process finished the set
            return self._create(path)
        try:
            with stream:
                json.dump({**self._owner, "time": time.time()}, stream)
        except OSError:  # the disk is full
            path.unlink(missing_ok=True)
            raise
        return True

    def _is_stale(self, path: Path, name: str) -> bool:
        """Returns whether the process of a claim is dead."""
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return True
        owner = _read_owner(path)
        if owner.get("host") == self._owner["host"]:
            pid = owner["pid"]
            # Our own number: of an earlier process, as containers count from 1 each time.
            if not workers.is_alive(pid) or (pid == self._owner["pid"] and name not in self._held):
                return True
        return age > self._stale_seconds

    def _renew(self) -> None:
        """Renews the time of our claims until the end."""
        while not self._is_over.wait(self._stale_seconds / _RENEWALS):
            for name in list(self._held):
                with contextlib.suppress(OSError):  # taken over: the work goes on all the same
                    os.utime(self._path(name))


def _read_owner(path: Path) -> dict[str, object]:
    """Returns host and process of a claim; {} if it is gone, or killed before it was written."""
    try:
        found = files.parse_json(path.read_text(encoding="utf-8"))
        return {"host": str(found["host"]), "pid": int(found["pid"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
