"""Public data sets from the package index or the web: fetched, checked, kept in a cache."""

import http.client
import logging
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from instructrec_jax import files, manifest
from instructrec_jax.data.public import SOURCES, Download, Source
from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.manifest import Manifest
from instructrec_jax.progress import Progress

DEFAULT_CACHE_DIR = Path("~/.cache/instructrec_jax")
_LOGGER = logging.getLogger(__name__)
_STAGE = "fetch"
_TIMEOUT_SECONDS = 60  # without a byte
_BLOCK = 1 << 20


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
      download: puts the file of an address into a folder and returns its path; by default pip's
        wheel of a requirement, and what a URL gives.
      sources: the data sets that are known.

    Raises:
      UserError: on an unknown name, no network, or files that differ from the pinned ones, or from
        those that were downloaded first.
    """
    key = name.lower().replace("_", "-")
    if key not in sources:
        raise unknown_name("dataset", name, sources)
    source = sources[key]
    folder = Path(cache_dir).expanduser() / key
    earlier = _earlier(folder)
    if _is_valid(folder, source, earlier):
        _LOGGER.info("%s is already in %s, checksums right: reused", key, folder)
        return folder
    known = earlier.inputs if earlier else {}
    found = {}
    with files.atomic_directory(folder) as new:
        for part in source.downloads:
            expected = part.sha256 or known.get(part.address)
            found[part.address] = _add(part, new, folder, expected, download or _download)
        made = Manifest(stage=_STAGE, inputs=found, settings={"dataset": key})
        made.write_finished(new)
    addresses = " and ".join(found)
    _LOGGER.info("fetched %s from %s into %s; %s", key, addresses, folder, source.terms)
    for part in source.downloads:
        if part.sha256 is None and part.address not in known:
            _LOGGER.warning(
                "nobody has published the checksum of %s: it is taken as it came, and its sha256 "
                "%s kept in %s",
                *(part.address, found[part.address], folder / manifest.FILE_NAME),
            )
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


def web_download(url: str, folder: Path) -> Path:
    """Downloads what a URL gives; proxies are those of the environment.

    Args:
      url: its last part is the file's name.
      folder: where the file goes.

    Raises:
      UserError: if it is not there, or the connection breaks off.
    """
    path = folder / PurePosixPath(urllib.parse.urlsplit(url).path).name
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer,
            path.open("wb") as out,
        ):
            size = int(answer.headers.get("Content-Length") or 0)
            with Progress(path.name, total=-(-size >> 20) or None, unit="MiB") as progress:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    progress.advance()
            if size and out.tell() != size:
                raise OSError(f"{out.tell()} of {size} bytes came")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"cannot download {url}: {error}") from None
    return path


def _download(address: str, folder: Path) -> Path:
    """Downloads by pip or from the web."""
    return (web_download if "://" in address else pip_download)(address, folder)


def _earlier(folder: Path) -> Manifest | None:
    """Returns what an earlier fetch wrote of its downloads; None where there is none."""
    try:
        found = manifest.read_manifest(folder)
    except UserError:
        return None
    return found if found.stage == _STAGE else None


def _is_valid(folder: Path, source: Source, earlier: Manifest | None) -> bool:
    """Returns whether all files are there with the pinned checksums, or as they were fetched."""
    inside = {name: sha for part in source.downloads for name, sha in part.files.items()}
    if inside and all(inside.values()):
        return files.hashes(folder, inside) == inside
    if earlier is None:
        return False
    fetched = [(part.sha256, earlier.inputs.get(part.address)) for part in source.downloads]
    is_same = all(found and pinned in (None, found) for pinned, found in fetched)
    return is_same and not list(manifest.damage_of(folder, earlier))


def _add(
    part: Download,
    new: Path,
    folder: Path,
    expected: str | None,
    download: Callable[[str, Path], Path],
) -> str:
    """Downloads a part of a data set into a folder, checks it, and returns its sha256."""
    try:
        path = download(part.address, new)
    except UserError as error:
        raise UserError(f"{error}\n{_by_hand(part, folder)}") from None
    found = files.sha256(path)
    _check(path.name, found, expected, part.address)
    if part.files:
        _extract(path, part, new)
        if path.parent == new:
            path.unlink()
    return found


def _check(name: str, found: str, expected: str | None, what: str) -> None:
    """Raises if the file's checksum is another."""
    if expected not in (None, found):
        raise UserError(
            f"{name} of {what} has sha256 {found}, expected {expected}; nothing was kept. "
            "The download or the mirror is damaged (try another index, pip's --index-url setting), "
            "or its owner has changed it"
        )


def _extract(archive_path: Path, part: Download, new: Path) -> None:
    """Takes the files of a part out of its wheel or zip file."""
    try:
        with zipfile.ZipFile(archive_path) as archive:
            for name, digest in part.files.items():
                with (
                    archive.open(f"{part.folder}/{name}") as content,
                    (new / name).open("wb") as out,
                ):
                    shutil.copyfileobj(content, out)
                _check(name, files.sha256(new / name), digest, archive_path.name)
    except KeyError:
        raise UserError(f"{archive_path.name} holds no {part.folder}/{name}") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{part.address} is no zip file ({error}); nothing was kept") from None


def _by_hand(part: Download, folder: Path) -> str:
    """Says how to go on without a network."""
    if part.is_url:
        return (
            "Without a network: download it on a machine that has one, put "
            f"{' and '.join(part.names)} into a folder, and give that to `instructrec prepare`"
        )
    return (
        f"Without a network: get the wheel of {part.address} from a machine that has one, "
        f"unpack {', '.join(part.names)} from its {part.folder} (a wheel is a zip file) into "
        f"{folder}, and run this again"
    )
