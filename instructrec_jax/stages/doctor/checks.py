"""What one check of `doctor` found, and how a mistake of the system becomes such a finding."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

# What a process of its own looks at, in this order.
DEVICES, ALL_REDUCE, CHECKPOINT, CACHE = DEVICE_CHECKS = (
    "devices",
    "all-reduce",
    "checkpoint",
    "compile cache",
)


class Problem(NamedTuple):
    """Something to mend: what was found, and what to do."""

    found: str
    mend: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
      name: of the check.
      found: what it is.
      mend: what to do about it; "" where nothing is wrong.
    """

    name: str
    found: str
    mend: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.mend


def run_check(name: str, look: Callable[[], str | Problem]) -> Check:
    """Runs a check; whatever it raises is what it found.

    Args:
      name: of the check.
      look: returns what it found, with what to do if that is wrong.
    """
    try:
        found = look()
    except Exception as error:  # the next check has to run
        reason = " ".join(str(error).split()) or "no reason given"
        return Check(
            name=name,
            found=f"failed with {type(error).__name__}: {reason[:400]}",
            mend="mend what it names",
        )
    if isinstance(found, Problem):
        return Check(name=name, found=found.found, mend=found.mend)
    return Check(name=name, found=found)
