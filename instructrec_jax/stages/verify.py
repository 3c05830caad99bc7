"""`instructrec verify`: are the files and arrays below a folder as they were written?"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from instructrec_jax import manifest
from instructrec_jax.checkpoints import arrays
from instructrec_jax.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Verdict:
    """What was compared, and what is wrong.

    Attributes:
      num_files: files whose hash was compared.
      num_arrays: arrays of checkpoints whose checksum was compared.
      damaged: a line for each file or array that is missing or not as it was written.
      unchecked: folders that hold nothing to compare with.
    """

    num_files: int = 0
    num_arrays: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)
    unchecked: list[str] = dataclasses.field(default_factory=list)


def verify(*, folder: Path | str) -> Verdict:
    """Compares everything below a folder with the hashes and checksums that were kept with it.

    Args:
      folder: output of a stage, a MODEL_DIR, or a folder that holds any number of them.

    Returns:
      What was compared and found.

    Raises:
      UserError: if nothing below the folder was written by a stage.
    """
    root = Path(folder)
    verdict = Verdict()
    manifests = _visible(root, manifest.FILE_NAME)
    steps = {path.parent for path in _visible(root, arrays.STEP_METADATA)}
    steps |= {path.parent.parent for path in _visible(root, arrays.METADATA)}
    if not manifests and not steps:
        raise UserError(
            f"no {manifest.FILE_NAME} and no checkpoint lies in {root} or below it; name a folder "
            "that a stage wrote, or one that holds such folders"
        )
    hashed = {path for each in manifests for path in _compare_files(each.parent, verdict)}
    for step in sorted(steps):
        _compare_arrays(step, verdict, has_hashes=step / arrays.STEP_METADATA in hashed)
    return verdict


def as_text(verdict: Verdict) -> str:
    """Returns the verdict in a line, then what it is about."""
    compared = f"{verdict.num_files} files and {verdict.num_arrays} arrays compared"
    number = len(verdict.damaged)
    what = f"{number} damaged" if number else "ok"
    if not (number or verdict.num_files or verdict.num_arrays):
        what = "not known"  # an earlier version or another program wrote all of it
    lines = [f"{what}; {compared}"]
    lines += [f"  {line}" for line in verdict.damaged]
    lines += [f"  no checksums: {name}" for name in verdict.unchecked]
    return "\n".join(lines)


def _visible(root: Path, name: str) -> list[Path]:
    """Returns the files of a name, but for those of work that is not finished."""
    found = sorted(root.rglob(name))
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]


def _compare_files(folder: Path, verdict: Verdict) -> list[Path]:
    """Compares what a manifest names, and returns it."""
    try:
        found = manifest.read_manifest(folder)
    except UserError as error:
        verdict.damaged.append(str(error))
        return []
    verdict.num_files += len(found.files)
    if found.files:
        verdict.damaged += manifest.damage_of(folder, found)
    else:
        verdict.unchecked.append(f"{folder} (an earlier version wrote it, or it is unfinished)")
    return [folder / name for name in found.files]


def _compare_arrays(step: Path, verdict: Verdict, *, has_hashes: bool) -> None:
    """Compares the arrays of a step folder, in whichever item they are."""
    kept = arrays.read_checksums(step)
    if not kept and has_hashes:
        return
    if not kept:
        verdict.unchecked.append(f"{step} (another program or an earlier version wrote it)")
        return
    found = set()
    for item in sorted(path.parent for path in step.glob(f"*/{arrays.METADATA}")):
        for name, fault in _read_all(item, kept):
            found.add(name)
            verdict.num_arrays += 1
            verdict.damaged += [f"{step}: {fault}"] if fault else []
    verdict.damaged += [f"{step}: {name} is missing" for name in sorted(kept.keys() - found)]


def _read_all(item: Path, checksums: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yields the name of each array, and what is wrong with it, "" for nothing."""
    try:
        specs = arrays.read_specs(item, UserError)
    except UserError as error:
        yield "", str(error)
        return
    for name in specs:
        try:
            arrays.open_arrays(specs, [name], UserError, checksums)[name].read()
            yield name, ""
        except UserError as error:
            yield name, str(error)
