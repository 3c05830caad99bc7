"""Seeded candidates: the target among uniform negatives (the paper: one and nine)."""

from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from instructrec_jax.data.columnar import LEAVE_ONE_OUT, PRODUCT_SEARCH
from instructrec_jax.data.splits import TEST, VALIDATION
from instructrec_jax.errors import UserError
from instructrec_jax.records import CandidateList, History
from instructrec_jax.seeds import stable_seed


def draw_negatives(
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    *,
    excluded: AbstractSet[int],
    target: int,
    number: int,
    rng: np.random.Generator,
    allow_fewer: bool = False,
) -> npt.NDArray[np.int32]:
    """Draws items uniformly, without replacement, no two of them nor the target of equal title.

    Args:
      title_ids: [items], equal for items of equal title (see `titles.title_ids`); its length is
        the size of the catalogue.
      excluded: items never drawn, such as the user's whole sequence.
      target: the item that the negatives stand beside.
      number: how many to draw, at least 1.
      rng: seeded for this example alone.
      allow_fewer: return what there is, at least one, where the catalogue has too few.

    Returns:
      [number] int32 item ids in the order drawn.

    Raises:
      UserError: if the catalogue has too few items of different titles.

    Example:
      title_ids [0, 1, 0, 2, 3], excluded {3}, target 0, number 2 -> [1, 4] or [4, 1].
    """
    chosen: list[int] = []
    used_titles = {int(title_ids[target])}

    def take(items: Collection[int]) -> bool:
        """Takes what may be taken, in order; returns whether there are enough."""
        for item in items:
            title = int(title_ids[item])
            if item not in excluded and title not in used_titles:
                used_titles.add(title)
                chosen.append(item)
                if len(chosen) == number:
                    return True
        return False

    # Nearly always enough; else the rest of the catalogue, shuffled, so it ends in any case.
    if not take(rng.integers(len(title_ids), size=4 * number + 16).tolist()):
        enough = take(rng.permutation(len(title_ids)).tolist())
        if not enough and not (allow_fewer and chosen):
            advice = "" if allow_fewer else "allow fewer with --allow_fewer_candidates, "
            raise UserError(
                f"cannot draw {number} negatives: of the catalogue's {len(title_ids)} items only "
                f"{len(chosen)} of different titles are left beside the target and the "
                f"{len(excluded)} items of the user; lower --num_candidates, {advice}or use a "
                "larger catalogue (a lower --k_core keeps more items)"
            )
    return np.array(chosen, dtype=np.int32)


def draw_candidates(
    title_ids: Sequence[int] | npt.NDArray[np.int32],
    *,
    excluded: AbstractSet[int],
    target: int,
    num_candidates: int,
    rng: np.random.Generator,
    allow_fewer: bool = False,
) -> tuple[int, ...]:
    """Returns the target among `num_candidates` - 1 negatives, in an order drawn from `rng`.

    Args:
      title_ids: [items], equal for items of equal title.
      excluded: items that are never negatives; it may hold the target.
      target: the item to be found.
      num_candidates: at least 2.
      rng: seeded for this example alone.
      allow_fewer: return a smaller set where the catalogue has too few items.

    Raises:
      UserError: if the catalogue has too few items of different titles.
    """
    negatives = draw_negatives(
        title_ids,
        excluded=excluded,
        target=target,
        number=num_candidates - 1,
        rng=rng,
        allow_fewer=allow_fewer,
    )
    return tuple(rng.permutation(np.append(negatives, target)).tolist())


def leave_one_out(
    histories: Sequence[History],
    seen_items: Sequence[npt.NDArray[np.int32]],
) -> Iterator[tuple[CandidateList, frozenset[int]]]:
    """Yields the evaluation examples of every user, still without candidates.

    The last item is the test target, the one before the validation target.

    Args:
      histories: [users], each of at least 2 items.
      seen_items: [users], items of the whole sequence, which are never negatives.

    Returns:
      (example with the target alone, items excluded from its negatives).
    """
    for history, seen in zip(histories, seen_items, strict=True):
        excluded = frozenset(seen.tolist())
        for split, back in ((VALIDATION, 2), (TEST, 1)):
            position = len(history.item_ids) - back
            target = history.item_ids[position]
            example = CandidateList(
                example_id=f"{history.user_id}:{position}",
                protocol=LEAVE_ONE_OUT,
                split=split,
                user_id=history.user_id,
                position=position,
                target_id=target,
                candidate_ids=(target,),
            )
            yield example, excluded


def product_search(splits: Sequence[str]) -> Iterator[tuple[CandidateList, frozenset[int]]]:
    """Yields the evaluation examples of the held-out items, still without candidates.

    Args:
      splits: [items], see `splits.search_splits`.

    Returns:
      (example with the target alone, no items: the whole catalogue may be drawn).
    """
    for item_id, split in enumerate(splits):
        if split in (VALIDATION, TEST):
            example = CandidateList(
                example_id=f"item:{item_id}",
                protocol=PRODUCT_SEARCH,
                split=split,
                user_id="",
                position=-1,
                target_id=item_id,
                candidate_ids=(item_id,),
            )
            yield example, frozenset()


def example_rng(example_id: str, *, dataset: str, split: str, seed: int) -> np.random.Generator:
    """Returns the generator of one example: a stable hash of (seed, dataset, split, id)."""
    return np.random.default_rng(stable_seed(seed, dataset, split, example_id))
