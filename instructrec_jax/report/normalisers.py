"""From a title's summed log-likelihood to the number that candidates are ranked by."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError, unknown_name


def normalise(
    log_likelihood: NDArray[np.float32], num_tokens: NDArray[np.int32], name: str
) -> NDArray[np.float32]:
    """Returns the candidates' log-likelihoods under the named normaliser.

    Args:
      log_likelihood: [n, c] float32, natural log, summed over the target's tokens incl. EOS.
      num_tokens: [n, c] int32, number of those tokens; 0 at padding.
      name: "sum" (the paper's reading) or "mean" (per token).

    Returns:
      [n, c] float32; -inf stays -inf.

    Raises:
      UserError: if no normaliser has that name.
    """
    if name not in _NORMALISERS:
        raise unknown_name("normaliser", name, _NORMALISERS)
    return _NORMALISERS[name](log_likelihood, num_tokens)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names if there is at least one and all are known.

    Raises:
      UserError: otherwise.
    """
    if not names:
        raise UserError(f"no normaliser was given; choose among {', '.join(_NORMALISERS)}")
    for name in names:
        if name not in _NORMALISERS:
            raise unknown_name("normaliser", name, _NORMALISERS)
    return tuple(names)


def _sum(log_likelihood: NDArray, num_tokens: NDArray) -> NDArray:
    """Log-probability of the whole title."""
    del num_tokens
    return log_likelihood


def _mean(log_likelihood: NDArray, num_tokens: NDArray) -> NDArray:
    """Log-probability per token, which does not punish long titles."""
    return log_likelihood / np.maximum(num_tokens, 1)


_NORMALISERS: dict[str, Callable[[NDArray, NDArray], NDArray]] = {"sum": _sum, "mean": _mean}
