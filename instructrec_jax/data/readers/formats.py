"""What a format of raw logs is, and how its files are found in a folder."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from instructrec_jax.damage import Damage
from instructrec_jax.data.raw_log import RawLog
from instructrec_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A way in which logs are written down.

    Attributes:
      name: short, for the manifest.
      understood: the files it consists of, as a message lists them.
      find: returns the files of this format in a folder, () if it is another format.
      read: reads those files; damaged lines are left to the policy that it is given.
      default_k_core: what `--k_core` is where the user gives none; 1 keeps what the files hold.
    """

    name: str
    understood: str
    find: Callable[[Path], tuple[Path, ...]]
    read: Callable[[Sequence[Path], Damage], RawLog]
    default_k_core: int = 5


def find_one(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the one file that bears any of the names, plain or with `.gz`; None if there is none.

    Raises:
      UserError: if there are several.
    """
    wanted = {name + end for name in names for end in ("", ".gz")}
    found = sorted(path for path in folder.iterdir() if path.name in wanted)
    if len(found) > 1:
        raise UserError(
            f"{folder} holds {' and '.join(path.name for path in found)}, which stand for the "
            "same thing; keep one of them there"
        )
    return found[0] if found else None


def need_one(folder: Path, names: Sequence[str], beside: Path) -> Path:
    """Returns the one file that bears any of the names.

    Raises:
      UserError: if there is none or there are several.
    """
    found = find_one(folder, names)
    if found is None:
        raise UserError(
            f"{folder} holds {beside.name} but none of {', '.join(names)} (or .gz), where the "
            "items' titles are read; put it beside"
        )
    return found
