"""Builds instruction records (artefact C) from the catalogue, histories and candidates.

Pure functions of their arguments, one record at a time, so that a data set of any size streams
through them and a parallel runner gives the same records.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from instructrec_jax.records import CandidateList, History, InstructionRecord, Item
from instructrec_jax.seeds import stable_seed

TRAIN = "train"
HELD_OUT = ("validation", "test")
# (example_id, target_id, index of the user or -1) -> the target among its negatives, in order.
DrawCandidates = Callable[[str, int, int], tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What records say of items.

    Attributes:
      items: [items], an item's id is its index.
      search_splits: [items] product-search split of the item, "" without a category.
    """

    items: Sequence[Item]
    search_splits: Sequence[str]

    def titles(self, item_ids: Iterable[int]) -> tuple[str, ...]:
        """Returns the titles of items, in the same order."""
        return tuple(self.items[item_id].title for item_id in item_ids)


def training_positions(
    histories: Sequence[History], *, max_positions: int | None, seed: int
) -> np.ndarray:
    """Returns [n, 2] int32 (user index, position) of every training example, in seeded order.

    Training targets are the items between the first, which has no history, and the last two,
    which are held out. The order is random because readers shuffle within a window only.

    Args:
      histories: [users].
      max_positions: most recent training targets to take of each user; None for all.
      seed: of the order.

    Example:
      one history of 5 items gives the positions 1 and 2.
    """
    pairs = [
        (user, position)
        for user, history in enumerate(histories)
        for position in _positions(len(history.item_ids), max_positions)
    ]
    order = np.random.default_rng(stable_seed(seed, "training order")).permutation(len(pairs))
    return np.asarray(pairs, dtype=np.int32).reshape(-1, 2)[order]


def leave_one_out_training(
    catalogue: Catalogue,
    histories: Sequence[History],
    positions: Iterable[Sequence[int]],
    *,
    draw: DrawCandidates,
) -> Iterator[InstructionRecord]:
    """Yields a training record for each (user index, position).

    The specific intention is withheld where the target belongs to the held-out pairs of product
    search: such a pair is never trained on (PAPER section 7, reading 8).
    """
    for user, position in positions:
        history = histories[user]
        target = history.item_ids[position]
        example_id = f"{history.user_id}:{position}"
        yield _record(
            catalogue,
            CandidateList(
                example_id=example_id,
                protocol="leave_one_out",
                split=TRAIN,
                user_id=history.user_id,
                position=int(position),
                target_id=target,
                candidate_ids=draw(example_id, target, int(user)),
            ),
            history=history.item_ids[:position],
            is_withheld=catalogue.search_splits[target] in HELD_OUT,
        )


def product_search_training(
    catalogue: Catalogue, *, draw: DrawCandidates, seed: int
) -> Iterator[InstructionRecord]:
    """Yields a record for each item of the product-search training split, in seeded order."""
    members = [item for item, split in enumerate(catalogue.search_splits) if split == TRAIN]
    order = np.random.default_rng(stable_seed(seed, "search order")).permutation(len(members))
    for item_id in (members[place] for place in order):
        example_id = f"item:{item_id}"
        yield _record(
            catalogue,
            CandidateList(
                example_id=example_id,
                protocol="product_search",
                split=TRAIN,
                user_id="",
                position=-1,
                target_id=item_id,
                candidate_ids=draw(example_id, item_id, -1),
            ),
        )


def evaluation_records(
    catalogue: Catalogue, histories: Sequence[History], candidates: Iterable[CandidateList]
) -> Iterator[InstructionRecord]:
    """Yields a record for each frozen candidate list, in the order given.

    Args:
      catalogue: what records say of items.
      histories: [users], of which leave-one-out examples show what came before their target.
      candidates: those of one protocol and split.
    """
    of_user = {history.user_id: history.item_ids for history in histories}
    for row in candidates:
        history = of_user[row.user_id][: row.position] if row.user_id else ()
        yield _record(catalogue, row, history=history)


def _positions(length: int, max_positions: int | None) -> range:
    """Returns the positions of the training targets of a history."""
    first, end = 1, length - 2
    if max_positions is not None:
        first = max(first, end - max_positions)
    return range(first, end)


def _record(
    catalogue: Catalogue,
    row: CandidateList,
    *,
    history: Sequence[int] = (),
    is_withheld: bool = False,
) -> InstructionRecord:
    """Returns the record of one example."""
    target = catalogue.items[row.target_id]
    return InstructionRecord(
        example_id=row.example_id,
        user_id=row.user_id,
        position=row.position,
        history=catalogue.titles(history),
        specific_intention="" if is_withheld else target.category,
        target_id=row.target_id,
        target=target.title,
        candidate_ids=row.candidate_ids,
        candidates=catalogue.titles(row.candidate_ids),
    )
