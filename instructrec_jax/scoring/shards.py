"""A set of requests in shards: the unit that a process claims, scores and writes as one file.

A shard is a range of the set's requests, so what a file holds depends on the set and on the size of
its shards alone, never on who scored it, in which order, or what was killed on the way.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """What the row of a request tells beside the log-likelihoods.

    Attributes:
      request_id: its name.
      candidate_ids: int64 [c].
      num_tokens: int32 [c], tokens of each candidate, EOS included.
      num_chars: int32 [c], characters of each candidate.
      target_index: place of the target among the candidates, -1 where it is unknown.
    """

    request_id: str
    candidate_ids: np.ndarray
    num_tokens: np.ndarray
    num_chars: np.ndarray
    target_index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Some requests of a set.

    Attributes:
      template: the set it is of.
      index: place of the shard in the set.
      numbers: of its requests in the set, from 0.
    """

    template: str
    index: int
    numbers: range

    @property
    def file_name(self) -> str:
        """Name of the file with its rows."""
        return part_name(self.template, self.index)


def part_name(template: str, index: int) -> str:
    """Returns the name of the file with the rows of a shard."""
    return f"{template}.part-{index:05d}.parquet"


def shards_of(template: str, *, num_requests: int, size: int) -> Iterator[Shard]:
    """Yields the shards of a set; the last one may be smaller.

    Args:
      template: name of the set.
      num_requests: how many it holds.
      size: requests of a shard, at least 1.

    Example:
      5 requests in shards of 2 are the ranges 0..1, 2..3 and 4..4.
    """
    for index, first in enumerate(range(0, num_requests, size)):
        numbers = range(first, min(first + size, num_requests))
        yield Shard(template=template, index=index, numbers=numbers)
