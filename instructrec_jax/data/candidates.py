"""Seeded candidates: the target among uniform negatives (the paper: one and nine)."""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.columnar import (
    TEST,
    VALIDATION,
    CandidateColumns,
    Candidates,
    Histories,
    ItemSets,
    starts_of,
)
from instructrec_jax.errors import UserError
from instructrec_jax.records import Item
from instructrec_jax.seeds import stable_seed

_BLOCK = 64  # generators made at a time


def draw_negatives(
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    *,
    excluded: AbstractSet[int],
    target: int,
    number: int,
    rng: np.random.Generator,
    allow_fewer: bool = False,
    preferred: Sequence[int] = (),
) -> list[int]:
    """Draws items uniformly, without replacement, no two of them nor the target of equal title.

    Args:
      title_ids: [items], equal for items of equal title (see `titles.title_ids`); its length is
        the size of the catalogue.
      excluded: items never drawn, such as the user's whole sequence.
      target: the item that the negatives are shown with.
      number: how many to draw, at least 1.
      rng: seeded for this example alone.
      allow_fewer: return what there is, at least one, where the catalogue has too few.
      preferred: items taken first, in order, as far as they may be; only what they leave is drawn.

    Returns:
      [number] item ids in the order taken.

    Raises:
      UserError: if the catalogue has too few items of different titles.

    Example:
      title_ids [0, 1, 0, 2, 3], excluded {3}, target 0, number 2 -> [1, 4] or [4, 1].
    """
    chosen: list[int] = []
    used_titles = {title_ids[target]}

    def take(items: Collection[int]) -> bool:
        """Takes what may be taken, in order; returns whether there are enough."""
        for item in items:
            if item not in excluded and (title := title_ids[item]) not in used_titles:
                used_titles.add(title)
                chosen.append(item)
                if len(chosen) == number:
                    return True
        return False

    # Nearly always enough; else the rest of the catalogue, shuffled, so it ends in any case.
    size = 4 * min(number, len(title_ids)) + 16
    if not take(preferred) and not take(rng.integers(len(title_ids), size=size).tolist()):
        enough = take(rng.permutation(len(title_ids)).tolist())
        if not enough and not (allow_fewer and chosen):
            advice = "" if allow_fewer else "allow fewer with --allow_fewer_candidates, "
            raise UserError(
                f"cannot draw {number} negatives: of the catalogue's {len(title_ids)} items only "
                f"{len(chosen)} of different titles are left beside the target and the "
                f"{len(excluded)} items that are no negatives; lower --num_candidates, {advice}or "
                "use a larger catalogue (a lower --k_core keeps more items)"
            )
    return chosen


def draw_candidates(
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    *,
    excluded: AbstractSet[int],
    target: int,
    num_candidates: int,
    rng: np.random.Generator,
    allow_fewer: bool = False,
    preferred: Sequence[int] = (),
) -> tuple[int, ...]:
    """Returns the target among `num_candidates` - 1 negatives, in an order drawn from `rng`.

    Args:
      title_ids: [items], equal for items of equal title.
      excluded: items that are never negatives; the target may be among them.
      target: the item to be found.
      num_candidates: at least 2.
      rng: seeded for this example alone.
      allow_fewer: return a smaller set where the catalogue has too few items.
      preferred: negatives as `draw_negatives` takes them.

    Raises:
      UserError: if the catalogue has too few items of different titles.
    """
    candidates = draw_negatives(
        title_ids,
        excluded=excluded,
        target=target,
        number=num_candidates - 1,
        rng=rng,
        allow_fewer=allow_fewer,
        preferred=preferred,
    )
    candidates.append(target)
    rng.shuffle(candidates)
    return tuple(candidates)


def of_same_category(items: Sequence[Item]) -> dict[int, frozenset[int]]:
    """Returns by item the items of its category, itself among them; none where it has none.

    Example:
      categories ["a", "b", "a", ""] -> {0: {0, 2}, 1: {1}, 2: {0, 2}, 3: {}}.
    """
    groups: dict[str, set[int]] = collections.defaultdict(set)
    for item in items:
        groups[item.category].add(item.item_id)
    groups[""] = set()
    frozen = {category: frozenset(group) for category, group in groups.items()}
    return {item.item_id: frozen[item.category] for item in items}


def evaluation_targets(
    histories: Histories, search_splits: Sequence[str], *, test_draws: int = 1
) -> Candidates:
    """Returns the evaluation examples, still with the target as their only candidate.

    In leave-one-out the last item is the test target and the one before the validation target, of
    every user; in product search the targets are the held-out items.

    Args:
      histories: [users], each of at least 2 items.
      search_splits: [items], see `catalogue.search_splits`.
      test_draws: examples of each test event, one after the other, each to have its own negatives.

    Returns:
      Leave-one-out user by user, validation before test; then product search by item.
    """
    num_users = len(histories)
    lengths = np.diff(histories.starts)
    positions = np.stack([lengths - 2, lengths - 1], axis=1).ravel()
    rows = np.repeat(np.arange(num_users), 2)
    items = [item for item, split in enumerate(search_splits) if split in (VALIDATION, TEST)]
    none = np.full(len(items), -1)
    of_users = histories.item_ids[histories.starts[rows] + positions]
    is_test = np.concatenate(
        [
            np.tile(np.array([False, True]), num_users),
            np.array([search_splits[item] == TEST for item in items], dtype=np.bool_),
        ]
    )
    repeats = np.where(is_test, test_draws, 1)
    targets = np.concatenate([of_users, items]).astype(np.int32).repeat(repeats)
    columns = CandidateColumns(
        history_rows=np.concatenate([rows, none]).astype(np.int32).repeat(repeats),
        positions=np.concatenate([positions, none]).astype(np.int32).repeat(repeats),
        target_ids=targets,
        is_test=is_test.repeat(repeats),
        starts=np.arange(len(targets) + 1, dtype=np.int64),
        candidate_ids=targets,
    )
    return Candidates(histories, columns)


def draw_evaluation(
    targets: Candidates,
    seen_items: ItemSets,
    *,
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    num_candidates: int,
    dataset: str,
    seed: int,
    allow_fewer: bool = False,
    not_for: Mapping[int, AbstractSet[int]] | None = None,
) -> Candidates:
    """Returns the evaluation examples with their candidates.

    Args:
      targets: see `evaluation_targets`.
      seen_items: [users], items of the whole sequence, which are never negatives; in product
        search the whole catalogue may be drawn.
      title_ids: [items], equal for items of equal title.
      num_candidates: at least 2.
      dataset: name of the data set.
      seed: of the whole preparation.
      allow_fewer: make smaller sets where the catalogue has too few items.
      not_for: by target of product search the items that are no negatives for it; by default none.

    Raises:
      UserError: if the catalogue has too few items of different titles.
    """
    ids = list(map(int, title_ids))  # faster one by one than an array
    most = min(num_candidates, len(ids))
    drawn = np.zeros((len(targets), most), dtype=np.int32)
    lengths = np.zeros(len(targets), dtype=np.int64)
    columns = targets.columns
    rows, target_ids = columns.history_rows.tolist(), columns.target_ids.tolist()
    splits = np.where(columns.is_test, TEST, VALIDATION).tolist()
    example_ids = targets.example_ids()
    rngs = _rngs(example_ids, splits, dataset=dataset, seed=seed)
    examples = zip(example_ids, rows, target_ids, rngs, strict=True)
    excluded: frozenset[int] = frozenset()
    last_row = -1
    for index, (example_id, row, target, rng) in enumerate(examples):
        if row != last_row:  # a user's examples follow each other
            excluded = frozenset(seen_items[row].tolist()) if row >= 0 else frozenset()
            last_row = row
        if row < 0 and not_for is not None:
            excluded = frozenset(not_for[target])
        try:
            one = draw_candidates(
                ids,
                excluded=excluded,
                target=target,
                num_candidates=num_candidates,
                rng=rng,
                allow_fewer=allow_fewer,
            )
        except UserError as error:
            raise UserError(f"example {example_id!r}: {error}") from None
        drawn[index, : len(one)] = one
        lengths[index] = len(one)
    columns = dataclasses.replace(
        columns,
        starts=starts_of(lengths),
        candidate_ids=drawn[np.arange(most) < lengths[:, None]],
    )
    return Candidates(targets.histories, columns)


def example_rng(example_id: str, *, dataset: str, split: str, seed: int) -> np.random.Generator:
    """Returns the generator of one example: a stable hash of (seed, dataset, split, id)."""
    return np.random.default_rng(stable_seed(seed, dataset, split, example_id))


def _rngs(
    example_ids: Sequence[str], splits: Sequence[str], *, dataset: str, seed: int
) -> Iterator[np.random.Generator]:
    """Yields what `example_rng` returns for each example, made in blocks: a third faster."""
    examples = zip(example_ids, splits, strict=True)
    while block := list(itertools.islice(examples, _BLOCK)):
        yield from [
            example_rng(example_id, dataset=dataset, split=split, seed=seed)
            for example_id, split in block
        ]
