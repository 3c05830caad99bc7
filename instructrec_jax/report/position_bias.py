"""Whether a model ranks an item higher for where it stands in the prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from instructrec_jax.metrics import ranking, statistics

MAX_ROWS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaceRow:
    """How examples fared whose target stood at some places.

    Attributes:
      first: the first of these places, from 1.
      last: the last of them.
      num_examples: how many there are.
      hit_rate: their HR@1; None where there is none.
    """

    first: int
    last: int
    num_examples: int
    hit_rate: float | None

    @property
    def name(self) -> str:
        """Such as "3" or "11-20"."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionBias:
    """HR@1 by the place of the target.

    Attributes:
      rows: at most ten, places in order.
      p_value: how often HR@1 would differ as much between rows if places did not matter.
    """

    rows: Sequence[PlaceRow]
    p_value: float


def position_bias(
    target_index: ArrayLike, rank: ArrayLike, *, num_candidates: int, seed: int
) -> PositionBias:
    """Returns HR@1 by the place of the target, and whether it depends on it.

    Args:
      target_index: [n] int, place of the target in the prompt, from 0.
      rank: [n] int, rank of the target, 1 = best.
      num_candidates: how many each prompt shows.
      seed: of the draws for the p-value.
    """
    hits = ranking.hits(rank, 1)
    index = np.asarray(target_index, dtype=np.int64)
    groups = np.array_split(np.arange(num_candidates), min(num_candidates, MAX_ROWS))
    row_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])[index]
    counts = np.bincount(row_of, minlength=len(groups))
    num_hits = np.bincount(row_of, weights=hits, minlength=len(groups)).astype(np.int64)
    return PositionBias(
        rows=[
            PlaceRow(
                first=int(group[0]) + 1,
                last=int(group[-1]) + 1,
                num_examples=int(count),
                hit_rate=float(number / count) if count else None,
            )
            for group, count, number in zip(groups, counts, num_hits, strict=True)
        ],
        p_value=statistics.homogeneity_p_value(num_hits, counts, seed=seed),
    )
