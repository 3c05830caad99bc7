"""Log-likelihoods that were computed before: a repeated request costs no scoring.

They are known by hashes of the checkpoint, the tokens of the prompt and those of the candidate, and
the longest unused go first. No text is kept. Another checkpoint has another hash, so that an
exchanged model is never answered for by the one before it.
"""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np

from instructrec_jax.scoring.prefix_trees import TokenRequest

_HASH_BYTES = 16
Keys = Sequence[bytes]


def keys_of(model: str, request: TokenRequest) -> Keys:
    """Returns the name of each candidate's log-likelihood.

    Args:
      model: hash of the checkpoint and of what else its numbers depend on.
      request: prompt and candidates.
    """
    prompt = hashlib.blake2b(model.encode(), digest_size=_HASH_BYTES)
    prompt.update(b"\0" + np.asarray(request.instruction, np.int32).tobytes())
    secret = prompt.digest()
    return [
        hashlib.blake2b(
            np.asarray(tokens, np.int32).tobytes(), key=secret, digest_size=_HASH_BYTES
        ).digest()
        for tokens in request.candidates
    ]


class ScoreCache:
    """A bounded number of log-likelihoods; one thread uses it."""

    def __init__(self, size: int) -> None:
        """Makes an empty one.

        Args:
          size: the most that are kept; 0: none.
        """
        self._size = size
        self._found: collections.OrderedDict[bytes, np.float32] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def find(self, keys: Keys) -> np.ndarray | None:
        """Returns the log-likelihoods of a request, float32 [c], None unless all are known.

        A request of which one candidate is new is scored whole: its candidates then compare as
        those of any other, to the last bit.
        """
        values = [self._found.get(key) for key in keys]
        if any(value is None for value in values):
            return None
        for key in keys:
            self._found.move_to_end(key)
        return np.array(values, np.float32)

    def keep(self, keys: Keys, log_likelihood: np.ndarray) -> None:
        """Keeps the log-likelihoods of a request, and forgets the longest unused for them.

        Args:
          keys: of its candidates.
          log_likelihood: float32 [c].
        """
        if len(keys) > self._size:
            return
        for key, value in zip(keys, np.asarray(log_likelihood, np.float32), strict=True):
            self._found[key] = value
            self._found.move_to_end(key)
        while len(self._found) > self._size:
            self._found.popitem(last=False)
