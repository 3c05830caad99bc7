"""Candidates from a whole catalogue: what several sources find, fused by reciprocal rank.

Source of the fusion: Cormack, Clarke and Büttcher, SIGIR 2009. Where no source finds enough, the
most popular items follow.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.cooccurrence import CatalogueScores
from instructrec_jax.baselines.matcher_vectors import best_items
from instructrec_jax.baselines.popularity import count_items, training_histories
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.titles import model_title, path_labels
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.instructions.leaks import content_words
from instructrec_jax.metrics.bm25 import BM25
from instructrec_jax.records import Item

_DAMPING = 60  # of reciprocal ranks
_SEED = 0
_DEPTH = 1000  # items that a source is asked for beyond those that are returned
Ids: TypeAlias = NDArray[np.integer]
NOTHING: Ids = np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalRequest:
    """What is wanted, as sources read it.

    Attributes:
      words: of what is wanted, and liked; of titles too that the catalogue does not know.
      history: ids of items, oldest first; unknown titles are left out.
      user_id: whose history it is, None where that is not told.
      labels: categories and brands, in lower case, that an item has to have, all of them.
      among: the ids of all items that may be found, ascending; None for all.
    """

    words: Sequence[str]
    history: Sequence[int]
    user_id: str | None = None
    labels: Sequence[str] = ()
    among: NDArray[np.int64] | None = None


class CandidateSource(Protocol):
    """Finds items by one kind of evidence; threads may share it."""

    def find(self, request: RetrievalRequest, number: int) -> Ids:
        """Returns ids of items with the labels of the request, best first: the first has rank 1.

        Args:
          request: what is wanted.
          number: how many at most; none where this evidence tells nothing.
        """
        ...


class WordSource:
    """What shares words with a query, by BM25."""

    def __init__(self, data: PreparedData) -> None:
        """Indexes titles, brands and categories."""
        self._index = BM25(
            [content_words(f"{item.title} {item.brand} {item.category}") for item in data.items]
        )

    def find(self, request: RetrievalRequest, number: int) -> Ids:
        """See `CandidateSource`."""
        return _best(self._index.scores(request.words), number, request)


class CooccurrenceSource:
    """What occurs together with the items of a history."""

    def __init__(self, data: PreparedData) -> None:
        """Learns from the histories, of which only what is for training is read."""
        self._scores = CatalogueScores.of(data, seed=_SEED)

    def find(self, request: RetrievalRequest, number: int) -> Ids:
        """See `CandidateSource`."""
        if not request.history:
            return NOTHING
        return _best(self._scores.score([request.history])[0], number, request)


class Retriever:
    """An index of a catalogue; threads may share it.

    Attributes:
      items: of the catalogue.
    """

    def __init__(self, data: PreparedData, *more: CandidateSource) -> None:
        """Indexes what `prepare` wrote; of histories only what is for training.

        Args:
          data: artefact A.
          more: sources beside words and co-occurrence.
        """
        self.items: Sequence[Item] = data.items
        histories = training_histories([history.item_ids for history in data.histories])
        counts = count_items(histories, num_items=len(data.items))
        self._sources: list[CandidateSource] = [WordSource(data), CooccurrenceSource(data), *more]
        self._by_popularity = np.argsort(-counts, kind="stable")
        self._number = {_read(item.title): item.item_id for item in reversed(data.items)}
        self._having = _items_of_labels(data.items)

    def find(
        self,
        query: str,
        history: Sequence[str],
        *,
        number: int,
        exclude: Sequence[str] = (),
        labels: Sequence[str] = (),
        user_id: str | None = None,
        among: NDArray[np.int64] | None = None,
    ) -> list[Item]:
        """Returns the items that suit a request best, none of its history, no two titles equal.

        Args:
          query: what is wanted, and liked, in words.
          history: titles, oldest first; unknown ones count as words where all are unknown.
          number: how many to return; fewer where the catalogue has fewer.
          exclude: titles that are not to be returned.
          labels: categories and brands that an item has to have, all of them.
          user_id: whose history it is.
          among: ids of the items that may be returned, ascending; None for all.

        Raises:
          UserError: if fewer than two items have the labels.
        """
        known = [self._number[_read(title)] for title in history if _read(title) in self._number]
        folded = [label.casefold() for label in labels]
        labelled = self._items_with(folded)
        if among is not None and labelled is not None:
            among = np.intersect1d(among, labelled, assume_unique=True)
        request = RetrievalRequest(
            words=content_words(" ".join([query, *([] if known else history)])),
            history=known,
            user_id=user_id,
            labels=folded,
            among=labelled if among is None else among,
        )
        hidden = {_read(title) for title in (*history, *exclude)}
        may_be = np.ones(len(self.items), np.bool_)
        if request.among is not None:
            may_be = np.isin(np.arange(len(self.items)), request.among, assume_unique=True)
        found: dict[str, Item] = {}
        for item_id in self._in_order(request, number + len(hidden) + _DEPTH):
            item = self.items[item_id]
            title = _read(item.title)
            if may_be[item_id] and title not in hidden and title not in found:
                found[title] = item
            if len(found) == number:
                break
        if len(found) < 2:
            what = f" with {', '.join(labels)}" if labels else ""
            raise UserError(f"the catalogue has {len(found)} items{what} that may be recommended")
        return list(found.values())

    def item_of(self, title: str) -> Item | None:
        """Returns the item of a title, None where the catalogue has no such title."""
        number = self._number.get(_read(title))
        return None if number is None else self.items[number]

    def _in_order(self, request: RetrievalRequest, number: int) -> Iterator[int]:
        """Yields what the sources find, and after it all other items that have the labels."""
        yield from fused([source.find(request, number) for source in self._sources])
        rest = self._by_popularity
        yield from (rest if request.among is None else rest[np.isin(rest, request.among)]).tolist()

    def _items_with(self, labels: Sequence[str]) -> NDArray[np.int64] | None:
        """Returns the ids of the items that have all labels, None where there are none."""
        found: NDArray[np.int64] | None = None
        for label in labels:
            own = self._having.get(label, np.zeros(0, np.int64))
            found = own if found is None else np.intersect1d(found, own, assume_unique=True)
        return found


def fused(lists: Sequence[Ids]) -> list[int]:
    """Returns all ids of some lists by the sum of their reciprocal ranks, best first.

    Args:
      lists: of ids without repeats, best first.
    """
    ids = np.concatenate([NOTHING, *lists])
    shares = [1 / (_DAMPING + np.arange(1, len(own) + 1)) for own in lists]
    unique, places = np.unique(ids, return_inverse=True)
    total = np.bincount(places, np.concatenate([[], *shares]), minlength=len(unique))
    return unique[np.argsort(-total, kind="stable")].tolist()


def labels_of(item: Item) -> set[str]:
    """Returns the categories and the brand of an item, in lower case."""
    return {label.casefold() for label in (*path_labels(item.category), item.brand) if label}


def _items_of_labels(items: Sequence[Item]) -> dict[str, NDArray[np.int64]]:
    """Returns the ids of each label's items, ascending."""
    pairs = sorted((label, item.item_id) for item in items for label in labels_of(item))
    return {
        label: np.array([item_id for _, item_id in own], np.int64)
        for label, own in itertools.groupby(pairs, key=lambda pair: pair[0])
    }


def _best(scores: NDArray[np.floating], number: int, request: RetrievalRequest) -> Ids:
    """Returns the items of the highest scores; a score of 0 or less tells nothing."""
    own = scores if request.among is None else scores[request.among]
    found = best_items(np.where(own > 0, own, -np.inf), number)
    return found if request.among is None else request.among[found]


def _read(title: str) -> str:
    """Returns a title as a model tells it from others."""
    return model_title(plain_title(title))
