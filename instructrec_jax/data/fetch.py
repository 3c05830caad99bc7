"""Public data sets that the package index serves: fetched by pip, checked, kept in a cache."""

import dataclasses
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from instructrec_jax import files
from instructrec_jax.errors import UserError, unknown_name

DEFAULT_CACHE_DIR = Path("~/.cache/instructrec_jax")
_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set inside a wheel.

    Attributes:
      requirement: what pip downloads, pinned.
      wheel_sha256: of the wheel.
      folder: of the files in the wheel.
      files: sha256 of each file by name.
      terms: who owns the data and on what terms it may be used.
    """

    requirement: str
    wheel_sha256: str
    folder: str
    files: Mapping[str, str]
    terms: str


SOURCES: Mapping[str, Source] = {
    "ml-100k": Source(
        requirement="recbole==1.2.1",
        wheel_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        folder="recbole/dataset_example/ml-100k",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
        terms="MovieLens-100K is GroupLens' (research use; cite Harper and Konstan, 2015)",
    ),
}


def fetch(
    name: str,
    cache_dir: Path | str = DEFAULT_CACHE_DIR,
    *,
    download: Callable[[str, Path], Path] | None = None,
    sources: Mapping[str, Source] = SOURCES,
) -> Path:
    """Returns the folder that holds a public data set, which is downloaded if it is not there.

    Args:
      name: a key of `sources`; "_" counts as "-".
      cache_dir: the files go to its subfolder `name`.
      download: puts the wheel of a requirement into a folder and returns its path; pip by default.
      sources: the data sets that are known.

    Raises:
      UserError: on an unknown name, no network, or files that differ from the pinned ones.
    """
    key = name.lower().replace("_", "-")
    if key not in sources:
        raise unknown_name("dataset", name, sources)
    source = sources[key]
    folder = Path(cache_dir).expanduser() / key
    if _is_valid(folder, source):
        _LOGGER.info("%s is already in %s, checksums right: reused", key, folder)
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        try:
            wheel = (download or pip_download)(source.requirement, Path(scratch))
        except UserError as error:
            raise UserError(f"{error}\n{_by_hand(folder, source)}") from None
        _check(wheel, source.wheel_sha256, source.requirement)
        _extract(wheel, source, folder)
    _LOGGER.info("fetched %s from %s into %s; %s", key, source.requirement, folder, source.terms)
    return folder


def pip_download(requirement: str, folder: Path) -> Path:
    """Downloads a wheel with pip, so that its mirrors and proxies are used; installs nothing.

    Args:
      requirement: such as "recbole==1.2.1".
      folder: where the wheel goes.

    Raises:
      UserError: if pip cannot be run or fails.
    """
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps"]
    options = ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    patience = ["--retries=2", "--timeout=20", "-d", str(folder)]
    done = subprocess.run([*command, *options, *patience], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise UserError(f"`{' '.join(command)}` failed: {errors[0]}")
    return wheels[0]


def _is_valid(folder: Path, source: Source) -> bool:
    """Returns whether all files are there with the pinned checksums."""
    return all(
        (folder / name).is_file() and files.sha256(folder / name) == digest
        for name, digest in source.files.items()
    )


def _check(path: Path, expected: str, what: str) -> None:
    """Raises if the file's checksum is another."""
    found = files.sha256(path)
    if found != expected:
        raise UserError(
            f"{path.name} of {what} has sha256 {found}, expected {expected}; nothing was kept. "
            "The download or the mirror is damaged: try another index (pip's --index-url setting)"
        )


def _extract(wheel: Path, source: Source, folder: Path) -> None:
    """Puts the source's files into `folder`, all or none."""
    with zipfile.ZipFile(wheel) as archive, files.atomic_directory(folder) as temporary:
        for name, digest in source.files.items():
            try:
                content = archive.read(f"{source.folder}/{name}")
            except KeyError:
                raise UserError(f"{wheel.name} holds no {source.folder}/{name}") from None
            (temporary / name).write_bytes(content)
            _check(temporary / name, digest, wheel.name)


def _by_hand(folder: Path, source: Source) -> str:
    """Says how to go on without a network."""
    return (
        f"Without a network: get the wheel of {source.requirement} from a machine that has one, "
        f"unpack {', '.join(source.files)} from its {source.folder} (a wheel is a zip file) into "
        f"{folder}, and run this again"
    )
