"""What is scored: one tokenised instruction with the candidates to rank under it."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from instructrec_jax.errors import UserError


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

    def __post_init__(self) -> None:
        """Checks that there is something to score.

        Raises:
          UserError: if there is no candidate, or nothing in one of them or in the instruction.
        """
        sizes = [len(tokens) for tokens in (self.instruction, *self.candidates)]
        if len(sizes) == 1 or not all(sizes):
            raise UserError(
                f"request {self.request_id!r} has an instruction of {sizes[0]} tokens and "
                f"candidates of {sizes[1:]}; expected at least one candidate and no empty text"
            )


def requests_of(batch: Mapping[str, np.ndarray]) -> list[TokenRequest]:
    """Returns the requests of a ranking batch, without padding rows, candidates and tokens.

    Args:
      batch: `example_id`, `encoder_input_tokens` [B, S] and `candidate_tokens` [B, C, T].
    """
    return [
        TokenRequest(
            request_id=str(batch["example_id"][row]),
            instruction=_without_padding(batch["encoder_input_tokens"][row]),
            candidates=[
                _without_padding(tokens)
                for tokens in batch["candidate_tokens"][row]
                if tokens.any()
            ],
        )
        for row in np.flatnonzero(batch["example_id"] != "")
    ]


def _without_padding(tokens: np.ndarray) -> np.ndarray:
    return tokens[tokens > 0]
