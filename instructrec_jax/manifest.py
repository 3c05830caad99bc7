"""The `manifest.json` that every stage leaves beside what it wrote."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from instructrec_jax import files
from instructrec_jax.errors import UserError

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
      drops: what was left out, by reason.
      damage: file and line of damaged lines that were left out, the first few by reason.
      examples: one example of what was left out, by reason.
      versions: versions of the packages that took part.
      command: the command line as it was typed, to run it again.
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
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        files.write_text(Path(folder) / FILE_NAME, text + "\n")


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
    return files.read_json(path, Manifest, remedy=RERUN)


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
    text = shlex.join([program, *sys.argv[1:]])
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
