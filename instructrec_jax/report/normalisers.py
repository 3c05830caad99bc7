"""From a title's summed log-likelihood to the number that candidates are ranked by."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError, unknown_name

NAMES = ("sum", "mean", "char", "pmi")
PMI = "pmi"


def normalise(
    log_likelihood: NDArray[np.float32],
    num_tokens: NDArray[np.int32],
    name: str,
    *,
    num_chars: NDArray[np.int32] | None = None,
    prior_log_likelihood: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Returns the candidates' log-likelihoods under the named normaliser.

    Args:
      log_likelihood: [..., c] float32, natural log, summed over the target's tokens incl. EOS.
      num_tokens: [..., c] int32, number of those tokens; 0 at padding.
      name: "sum" (the paper's reading), "mean" (per token) or "char" (per character), which do
        not punish long titles, or "pmi" (pointwise mutual information: less what a prompt without
        preference and intention gives, which does not favour titles that are likely anyway).
      num_chars: [..., c] int32, characters of the title, which "char" needs.
      prior_log_likelihood: [..., c] float32, under that prompt, which "pmi" needs; finite.

    Returns:
      [..., c] float32; -inf stays -inf.

    Raises:
      UserError: if no normaliser has that name, or what it needs is not there.
    """
    checked_names([name])
    if name == "sum":
        return log_likelihood
    other = {"mean": num_tokens, "char": num_chars, PMI: prior_log_likelihood}[name]
    if other is None:
        raise UserError(
            f"normaliser {name!r} cannot be had here; only `report` has it, {PMI!r} from scores "
            "that were made WITH_PRIOR = True"
        )
    if name == PMI:
        return log_likelihood - other
    return (log_likelihood / np.maximum(other, 1)).astype(np.float32)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names if there is at least one and all are known.

    Raises:
      UserError: otherwise.
    """
    if not names:
        raise UserError(f"no normaliser was given; choose among {', '.join(NAMES)}")
    for name in names:
        if name not in NAMES:
            raise unknown_name("normaliser", name, NAMES)
    return tuple(names)
