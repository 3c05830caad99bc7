"""The error for a mistake of the user, and the hint with the nearest known names."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input, flags or files: one message that names the value and what to do.

    The `instructrec` command prints the message without a traceback and exits with code 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a name that is not registered, with the nearest known names.

    Args:
      kind: what the name should have been, as a person says it, such as "dataset".
      name: the name that was given.
      known: every name that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:10]
    hint = ", ".join(near) if near else "none is registered"
    return UserError(f"unknown {kind} {name!r}; the nearest known: {hint}")
