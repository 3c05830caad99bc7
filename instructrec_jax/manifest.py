"""The `manifest.json` that every stage leaves beside what it wrote, with the hash of every file."""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.settings import masked

_LOGGER = logging.getLogger(__name__)
FILE_NAME = "manifest.json"
RERUN = "remove its folder and rerun"
_PACKAGES = ("instructrec-jax", "jax", "flax", "optax", "seqio", "tensorflow", "sentencepiece")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stage read, did and counted.

    Attributes:
      stage: the stage's verb, such as "prepare".
      inputs: sha256 of each input, by a name that does not depend on its folder.
      settings: everything else that decides the output (seed included); JSON values only.
      counts: what was written, by name.
      measured: figures that decided whether it was written, by name.
      drops: what was left out, by reason.
      damage: file and line of damaged lines that were left out, the first few by reason.
      examples: one example of what was left out, by reason.
      versions: versions of the packages that took part.
      command: the command line as it was typed, to run it again.
      files: sha256 of each file, by its path in the folder; {} while the work goes on, and where an
        earlier version of the program wrote it.
      checksum: sha256 of all the above, None where an earlier version wrote it.
    """

    stage: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    drops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    damage: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    examples: Mapping[str, str] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: _versions())
    command: str = dataclasses.field(default_factory=lambda: _command())
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checksum: str | None = None
    measured: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def describes_same_work(self, other: "Manifest") -> bool:
        """Returns whether both have the same stage, inputs and settings."""
        return (self.stage, _plain(self.inputs), _plain(self.settings)) == (
            other.stage,
            _plain(other.inputs),
            _plain(other.settings),
        )

    def text(self, name: str) -> str:
        """Returns a setting that is a text, of the stage that wrote the manifest.

        Raises:
          UserError: if there is none.
        """
        value = self.settings.get(name)
        if not isinstance(value, str):
            raise UserError(
                f"the {FILE_NAME} of `{self.stage}` says {name} = {value!r}, expected a text; run "
                f"`instructrec {self.stage}` again"
            )
        return value

    def write(self, folder: Path | str) -> None:
        """Writes the manifest into `folder`."""
        checked = dataclasses.replace(self, checksum=self.own_checksum())
        text = json.dumps(dataclasses.asdict(checked), indent=2, ensure_ascii=False)
        files.write_text(Path(folder) / FILE_NAME, text + "\n")

    def write_finished(self, folder: Path | str, *patterns: str) -> None:
        """Writes the manifest with the hashes of what `folder` holds, now that all of it is there.

        Args:
          folder: where the stage wrote.
          *patterns: of the paths that are hashed, in the folder; without any every file is.
        """
        names = [
            name
            for name in files.names_below(folder)
            if name != FILE_NAME and _fits(name, patterns)
        ]
        found = {name: sha for name, sha in files.hashes(folder, names).items() if sha}
        dataclasses.replace(self, files=found).write(folder)

    def own_checksum(self) -> str:
        """Returns the sha256 of everything but the checksum."""
        plain = dataclasses.asdict(dataclasses.replace(self, checksum=""))
        if not self.measured:  # as of manifests of an earlier version, which had none
            del plain["measured"]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path | str) -> Manifest:
    """Reads the manifest of `folder`.

    Raises:
      UserError: if there is none or it is damaged.
    """
    path = Path(folder) / FILE_NAME
    with files.named_errors(path, verb="read"):
        is_there = path.exists()
    if not is_there:
        raise UserError(
            f"{folder} holds no {FILE_NAME}: it is not the output of a finished stage; "
            "run the stage that writes it, or name another folder"
        )
    found = files.read_json(path, Manifest, remedy=RERUN)
    if found.checksum not in (None, found.own_checksum()):
        raise UserError(f"{path} is damaged (it was changed after it was written); {RERUN}")
    return found


def check_files(folder: Path | str, *patterns: str, may_lack: bool = False) -> None:
    """Checks that files of a finished stage are as it wrote them.

    Args:
      folder: the output folder of the stage.
      *patterns: of the paths in it that are about to be read; without any all are checked.
      may_lack: whether files may be missing, since they will be written again.

    Raises:
      UserError: naming the first file that was changed, is missing or is another run's.
    """
    found, what = read_manifest(folder), "that file" if may_lack else folder
    for problem in damage_of(folder, found, *patterns, may_lack=may_lack):
        raise UserError(
            f"{problem}: it is damaged or of another run; remove {what} and run "
            f'`instructrec {found.stage}` again, as its {FILE_NAME} says under "command"'
        )


def damage_of(
    folder: Path | str, found: Manifest, *patterns: str, may_lack: bool = False
) -> Iterator[str]:
    """Yields "FILE is missing" or "FILE has changed since ..." for files that are not as written.

    Args:
      folder: where they lie.
      found: its manifest; one without hashes is said once, and nothing can be compared.
      *patterns: as `check_files` takes them.
      may_lack: likewise.
    """
    if not found.files:
        _say_unhashed(str(folder))
    wanted = {name: sha for name, sha in found.files.items() if _fits(name, patterns)}
    for name, sha in files.hashes(folder, wanted).items():
        if sha is None and not may_lack:
            yield f"{Path(folder) / name} is missing"
        elif sha not in (None, wanted[name]):
            yield f"{Path(folder) / name} has changed since `instructrec {found.stage}` wrote it"


def find_finished(folder: Path | str, planned: Manifest) -> Manifest | None:
    """Returns what `find_same_work` does, having checked every file of what it finds.

    Raises:
      UserError: as `find_same_work` and `check_files`.
    """
    found = find_same_work(folder, planned)
    if found is not None:
        check_files(folder)
    return found


@functools.lru_cache(maxsize=1024)
def _say_unhashed(folder: str) -> None:
    _LOGGER.info(
        "%s holds no hashes of its files (an earlier version wrote it, or it is unfinished): "
        "damage there goes unnoticed",
        folder,
    )


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def find_same_work(folder: Path | str, planned: Manifest) -> Manifest | None:
    """Returns the manifest in `folder` if it is of the planned work, None if the folder is empty.

    A stage that writes its folder in one go has finished where this finds something.

    Raises:
      UserError: if the folder holds something else, which is never overwritten.
    """
    folder = Path(folder)
    with files.named_errors(folder, verb="look into"):
        if not folder.exists() or (folder.is_dir() and _is_empty(folder)):
            return None
        has_manifest = (folder / FILE_NAME).exists()
    if not has_manifest:
        raise UserError(
            f"output folder {folder} is not empty and holds no {FILE_NAME}; "
            "name another folder or remove it"
        )
    found = read_manifest(folder)
    if found.describes_same_work(planned):
        return found
    raise UserError(
        f"output folder {folder} holds another run: {_difference(found, planned)}; "
        "name another folder or remove it"
    )


def claim(folder: Path | str, planned: Manifest) -> Manifest | None:
    """Claims `folder` for work that fills it bit by bit and may be interrupted.

    Args:
      folder: where the work writes; created, with the planned manifest in it, if it is new.
      planned: the work, its counts still empty.

    Returns:
      The manifest of an earlier attempt at the same work, which is to be taken up; None if the
      work is new.

    Raises:
      UserError: if the folder holds something else, which is never overwritten.
    """
    files.remove_leftovers(folder)
    earlier = find_same_work(folder, planned)
    if earlier is None:
        planned.write(folder)
    return earlier


def _is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing, or only the manifest that another process is writing."""
    return all(path.match(f".{FILE_NAME}.*.tmp") for path in folder.iterdir())


def _difference(found: Manifest, planned: Manifest) -> str:
    """Names the first thing in which two manifests differ."""
    if found.stage != planned.stage:
        return f"stage {found.stage!r}, not {planned.stage!r}"
    for field in ("inputs", "settings"):
        old, new = _plain(getattr(found, field)), _plain(getattr(planned, field))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{field}[{key!r}] was {old.get(key)!r} there and is {new.get(key)!r} now"
    return "no difference"


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the mapping as JSON would give it back, so tuples and lists compare equal."""
    return json.loads(json.dumps(dict(value)))


def _command() -> str:
    """Returns the command line as typed, without the place where the program is installed."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "instructrec")
    text = masked(shlex.join([program, *sys.argv[1:]]))
    return text.encode("utf-8", "backslashreplace").decode()  # paths need not be UTF-8


def _versions() -> dict[str, str]:
    """Returns the installed versions of the packages that decide results."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
