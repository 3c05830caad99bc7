"""The negatives of training records: any items, popular ones, or those that a ranker puts beside.

Against uniform negatives a model learns first of all what is popular and what goes together, which
a retriever knows too: among the best items of a retriever it is below chance. "matched" negatives
stand next to the target in the order of a scorer that knows just that, so what is left to be learnt
is what the scorer does not know.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from instructrec_jax.data import titles
from instructrec_jax.data.candidates import draw_candidates, example_rng
from instructrec_jax.data.columnar import HELD_OUT, LEAVE_ONE_OUT, PRODUCT_SEARCH, TRAIN
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.seeds import stable_seed

UNIFORM, POPULARITY, MATCHED = "uniform", "popularity", "matched"
_POOL = "leave-one-out without the user's training items; search from all items"
# Part of the manifest, so that records of another rule are not taken for the same work.
RULES = {
    UNIFORM: f"{UNIFORM}; {_POOL}",
    POPULARITY: f"by training count, else uniform; {_POOL}",
    MATCHED: f"next to the target by co-occurrence; in search, or where there are none, {UNIFORM}; "
    + _POOL,
}
COUNTS = "train_negatives"  # first part of their names in a manifest
AT_THE_TOP, MISSING = "targets_at_the_top", "missing"
_SLACK = 16  # items taken beside those of a window, for there are some of equal title
_RESOLUTION = 2.0**24  # steps of a score between 0 and 1
_ENTRIES = 1 << 21  # scores held at once
_BLOCK = 1024  # records
_LAST = np.iinfo(np.int64).max


class CatalogueRanker(Protocol):
    """Scores all items for a history: those of one history are the same bits in any batch."""

    def score(self, histories: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Returns [n, items], higher is better, of absolute value below 2^12."""
        ...


class Asked(NamedTuple):
    """A training record that needs candidates.

    Attributes:
      example_id: its id.
      target: item id.
      excluded: items that are no negatives of it.
      history: items before the target; None in product search.
    """

    example_id: str
    target: int
    excluded: frozenset[int]
    history: Sequence[int] | None


class TrainNegatives:
    """Draws the candidates of training records; those of one are alike whatever is asked beside."""

    def __init__(
        self,
        data: PreparedData,
        *,
        rule: str,
        number: int,
        seed: int,
        ranker: CatalogueRanker | None = None,
    ) -> None:
        """Takes what decides them.

        Args:
          data: artefact A, of which events before the held-out ones are counted alone.
          rule: "uniform", "popularity" or "matched".
          number: negatives of a record.
          seed: of all draws.
          ranker: whose order negatives are matched in.
        """
        assert (rule == MATCHED) == (ranker is not None)
        self._dataset, self._rule, self._number, self._seed = data.dataset, rule, number, seed
        self._ranker = ranker
        self._title_ids = titles.title_ids([item.title for item in data.items])
        num_items = len(data.items)
        if rule == POPULARITY:
            self._bounds = np.cumsum(_training_counts(data))
        if rule == MATCHED:
            rng = np.random.default_rng(stable_seed(seed, data.dataset, "order of equal items"))
            self._item_at = rng.permutation(num_items)
            self._places = np.argsort(self._item_at)
            self._bits = num_items.bit_length()
        self.block = max(1, min(_BLOCK, _ENTRIES // num_items))  # records to ask for at once

    def draw(self, asked: Sequence[Asked], counts: Counter[str]) -> Iterator[tuple[int, ...]]:
        """Yields the candidates of each record, the target among them, in a seeded order.

        Args:
          asked: all of product search, or none.
          counts: negatives by what they were drawn from are added to it; none where all are drawn
            uniformly by rule.
        """
        rngs = [
            example_rng(one.example_id, dataset=self._dataset, split=TRAIN, seed=self._seed)
            for one in asked
        ]
        preferences = self._preferred(asked, rngs, counts)
        for one, preferred, rng in zip(asked, preferences, rngs, strict=True):
            candidates = draw_candidates(
                self._title_ids,
                excluded=one.excluded,
                target=one.target,
                num_candidates=self._number + 1,
                rng=rng,
                allow_fewer=True,
                preferred=preferred,
            )
            if self._rule != UNIFORM:
                config = PRODUCT_SEARCH if one.history is None else LEAVE_ONE_OUT
                name = f"{COUNTS}/{config}"
                by_rule = len(set(candidates) & (set(preferred) - {one.target}))
                counts[f"{name}/{self._rule}"] += by_rule
                counts[f"{name}/{UNIFORM}"] += len(candidates) - 1 - by_rule
                counts[f"{name}/{MISSING}"] += self._number + 1 - len(candidates)
            yield candidates

    def _preferred(
        self, asked: Sequence[Asked], rngs: Sequence[np.random.Generator], counts: Counter[str]
    ) -> Iterator[Sequence[int]]:
        """Yields what to take before any item that is drawn uniformly, for each record."""
        if self._rule == POPULARITY and self._bounds[-1]:
            for rng in rngs:
                size = 16 * min(self._number, len(self._bounds)) + 64
                drawn = rng.integers(self._bounds[-1], size=size)
                yield np.searchsorted(self._bounds, drawn, side="right").tolist()
        elif self._rule == MATCHED and asked and asked[0].history is not None:
            yield from self._neighbours(asked, rngs, counts)
        else:
            yield from itertools.repeat((), len(asked))

    def _neighbours(
        self, asked: Sequence[Asked], rngs: Sequence[np.random.Generator], counts: Counter[str]
    ) -> Iterator[Sequence[int]]:
        """Yields the items of a window of the ranker's order that holds the target.

        Where in the window is drawn uniformly: its rank among its negatives tells nothing. Only
        near the top of the order the window cannot begin above the first item.
        """
        assert self._ranker is not None
        scores = self._ranker.score([one.history or () for one in asked])
        # Best first in whole numbers, all different: the last bits are the place among equal items.
        scores *= -_RESOLUTION
        keys = np.floor(scores, out=scores).astype(np.int64)
        keys <<= self._bits
        keys += self._places
        for own, one, rng in zip(keys, asked, rngs, strict=True):
            target = own[one.target]
            own[[*one.excluded]] = _LAST
            own[one.target] = target
            rank = int((own < target).sum())
            ranked = len(own) - len(one.excluded - {one.target})
            offset = int(rng.integers(self._number + 1))
            counts[f"{COUNTS}/{LEAVE_ONE_OUT}/{AT_THE_TOP}"] += rank < self._number
            begin = max(0, min(rank - offset, ranked - self._number - 1))
            end = min(begin + self._number + 1 + _SLACK, ranked)
            window = np.partition(own, [begin, end - 1])[begin:end]
            window.sort()
            yield self._item_at[window & ((1 << self._bits) - 1)].tolist()


def told_counts(counts: Mapping[str, int]) -> str:
    """Returns in words what `TrainNegatives.draw` counted, "" for nothing.

    Example:
      {"train_negatives/leave_one_out/matched": 90, "train_negatives/leave_one_out/missing": 0} ->
      "matched 90 of leave one out".
    """
    by_config: dict[str, list[str]] = {}
    for name, number in counts.items():
        family, _, rest = name.partition("/")
        if family == COUNTS and number:
            config, _, kind = rest.partition("/")
            told = f"{kind.replace('_', ' ')} {number:,}"
            by_config.setdefault(config.replace("_", " "), []).append(told)
    return "; ".join(f"{', '.join(kinds)} of {config}" for config, kinds in by_config.items())


def _training_counts(data: PreparedData) -> npt.NDArray[np.int64]:
    """Returns [items] how often each stands before the held-out items of a history."""
    trained = data.histories.item_ids[data.histories.from_end() > len(HELD_OUT)]
    return np.bincount(trained, minlength=len(data.items)).astype(np.int64)
