"""Readers of raw logs, one small file a format; a new one is a new file here and an entry below."""

from pathlib import Path

from instructrec_jax.data.readers import amazon, movielens, plain, recbole
from instructrec_jax.data.readers.raw_log import Format
from instructrec_jax.errors import UserError

FORMATS: tuple[Format, ...] = (
    recbole.FORMAT,
    plain.FORMAT,
    plain.SEQUENCES,
    movielens.FORMAT,
    amazon.FORMAT,
)


def recognise(folder: Path | str) -> tuple[Format, tuple[Path, ...]]:
    """Returns the format of the logs in a folder, and the files it reads there.

    Raises:
      UserError: if the folder is missing, or holds logs of no format or of several.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"input folder {folder} {what}; name the folder that holds the logs")
    try:
        found = [(form, paths) for form in FORMATS if (paths := form.find(folder))]
    except OSError as error:
        raise UserError(f"cannot read input folder {folder}: {error.strerror or error}") from None
    if not found:
        raise UserError(_not_understood(folder))
    if len(found) > 1:
        files = " and ".join(paths[0].name for _, paths in found)
        raise UserError(f"{folder} holds {files}: two logs; give each its own folder")
    return found[0]


def _not_understood(folder: Path) -> str:
    """Says what was found and what is understood."""
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    understood = "\n".join(f"  {form.understood}" for form in FORMATS)
    return (
        f"no logs that are understood in {folder}, which holds {shown or 'nothing'}; "
        f"expected, plain or .gz:\n{understood}"
    )
