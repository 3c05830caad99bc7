"""A PostgreSQL server of a test's own, where the machine has its programs."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PASSWORD = "s3cret/word"
FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/local/bin")]


def program(name):
    """Where a program of PostgreSQL is, None where it is not."""
    found = [shutil.which(name), *(str(folder / name) for folder in FOLDERS)]
    return next((path for path in found if path and Path(path).is_file()), None)


IS_THERE = all(map(program, ("initdb", "postgres", "pg_isready")))


class PostgresServer:
    """A server on this machine, run by a user who is not root, with an empty database."""

    def __init__(self):
        is_root = os.geteuid() == 0
        names = {each.pw_name for each in pwd.getpwall()}
        user = pwd.getpwnam("postgres" if "postgres" in names else "nobody") if is_root else None
        self._as_user = (
            {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        )
        self._folder = Path(tempfile.mkdtemp(prefix="instructrec_pg_"))
        (self._folder / "password").write_text(PASSWORD)
        if user:
            for path in (self._folder, self._folder / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        words = ["--auth=scram-sha-256", "--username=shop", f"--pwfile={self._folder}/password"]
        self._run(program("initdb"), *words, "--encoding=UTF8", "--no-locale", self._data)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self):
        """Its address, the password as addresses have it."""
        return f"postgresql://shop:s3cret%2Fword@127.0.0.1:{self.port}/postgres"

    @property
    def _data(self):
        return str(self._folder / "data")

    def _run(self, *words):
        subprocess.run(words, check=True, capture_output=True, cwd="/", **self._as_user)

    def start(self):
        """Starts it, again too; a server that was killed leaves its memory a moment later."""
        for _ in range(50):
            self._process = subprocess.Popen(
                [program("postgres"), "-D", self._data, "-p", str(self.port), "-k", self._folder],
                **self._as_user,
                cwd="/",
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while self._process.poll() is None:
                ready = [program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
                if subprocess.run(ready, check=False).returncode == 0:
                    return
                time.sleep(0.05)
            time.sleep(0.2)
        raise AssertionError("the PostgreSQL server does not start")

    def kill(self):
        """Ends it as a loss of power does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self):
        """Stops it and removes its files."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        shutil.rmtree(self._folder)
