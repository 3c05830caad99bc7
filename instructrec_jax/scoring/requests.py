"""What is scored: one tokenised instruction with the candidates to rank under it."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """One instruction and its candidates as token ids.

    Attributes:
      request_id: names the request in messages.
      instruction: int32 [S], ending in EOS, no padding.
      candidates: c arrays int32 [t], each ending in EOS, no padding; their lengths may differ.
    """

    request_id: str
    instruction: np.ndarray
    candidates: Sequence[np.ndarray]
