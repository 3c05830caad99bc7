"""Finds gin files: as named, under the repository, or where the package was installed."""

import sys
from pathlib import Path

from instructrec_jax.errors import UserError, unknown_name

FOREIGN = "t5x"  # the folder of files for T5X's own programs
_CHECKOUT = Path(__file__).resolve().parents[2]
_INSTALLED = Path(sys.prefix) / "share" / "instructrec_jax"


def search_roots() -> list[Path]:
    """Returns the folders that hold our `gin` folder: the checkout's, then the installed one."""
    return [root for root in (_CHECKOUT, _INSTALLED) if (root / "gin").is_dir()]


def shipped_files() -> list[str]:
    """Returns the names of all shipped gin files that the command takes, as it takes them."""
    names = {
        str(path.relative_to(root))
        for root in search_roots()
        for path in root.rglob("gin/**/*.gin")
        if path.parent.name != FOREIGN
    }
    return sorted(names)


def find_gin_file(name: str) -> Path:
    """Returns the absolute path of a gin file.

    Args:
      name: path as the user gave it; relative to the working folder or to a search root.

    Raises:
      UserError: if there is no such file, or it is one for T5X's own programs.
    """
    for root in (Path.cwd(), *search_roots()):
        path = root / name
        if path.is_file():
            if path.resolve().parent in (root / "gin" / FOREIGN for root in search_roots()):
                raise UserError(
                    f"{name} is for T5X's own programs, and its head says how they run it; "
                    "`instructrec` takes the files of gin/models, gin/mixtures and gin/runs"
                )
            return path.resolve()
    raise unknown_name("gin file", name, shipped_files())
