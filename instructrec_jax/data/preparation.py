"""From a raw log to artefact A: clean, filter, order, cut, split, draw candidates; all counted."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instructrec_jax.data import candidates, catalogue, filtering, reviews
from instructrec_jax.data.columnar import (
    LEAVE_ONE_OUT,
    PRODUCT_SEARCH,
    SPLITS,
    TEST,
    VALIDATION,
    Candidates,
    Histories,
    ItemSets,
    starts_of,
)
from instructrec_jax.data.events import Events
from instructrec_jax.data.prepared_writer import PreparedWriter
from instructrec_jax.data.readers.raw_log import RawLog
from instructrec_jax.data.settings import MIN_HISTORY, OTHER_CATEGORY, RANDOM_TIES, PrepareSettings
from instructrec_jax.data.titles import title_ids
from instructrec_jax.errors import UserError
from instructrec_jax.progress import Progress
from instructrec_jax.records import Item
from instructrec_jax.seeds import stable_seed


@dataclasses.dataclass(kw_only=True, eq=False)
class Preparation:
    """What was counted on the way from a log to artefact A.

    Attributes:
      log: what a reader returned; its events are those that are still kept.
      counts: what is written, by name.
      drops: what was left out, by reason.
      first_left_out: by reason the first event in the log that was left out.
    """

    log: RawLog
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    drops: dict[str, int] = dataclasses.field(default_factory=dict)
    first_left_out: dict[str, Events] = dataclasses.field(default_factory=dict)

    @property
    def examples(self) -> dict[str, str]:
        """One event of each reason for which events were left out."""
        log, found = self.log, {}
        for reason in (reason for reason in self.drops if reason in self.first_left_out):
            user, item, _, _ = self.first_left_out[reason].item()
            found[reason] = f"user {log.users[user]!r}, item {log.event_items[item]!r}"
        return found

    def leave_out(self, reason: str, events: Events) -> None:
        """Counts events as left out, and notes the first in the log."""
        self.drops[reason] = self.drops.get(reason, 0) + len(events)
        if len(events):
            first = events[events["number"].argmin()]
            known = self.first_left_out.setdefault(reason, first)
            if first["number"] < known["number"]:
                self.first_left_out[reason] = first

    def keep(self, reason: str, choose: Callable[[Events], filtering.Bools]) -> None:
        """Keeps the events of the log that are chosen; the others are counted as left out."""
        self.drops.setdefault(reason, 0)

        def chosen(events: Events) -> filtering.Bools:
            is_kept = choose(events)
            self.leave_out(reason, events[~is_kept])
            return is_kept

        self.log.events.keep(chosen)


def write_preparation(
    folder: Path | str, log: RawLog, dataset: str, settings: PrepareSettings
) -> Preparation:
    """Turns a raw log into artefact A, part by part.

    Args:
      folder: where the files go, which exists; the manifest is the stage's.
      log: what a reader returned; of its events those stay that are kept.
      dataset: name of the data set; it is part of every seed.
      settings: `k_core` must be a number here.

    Raises:
      UserError: if nothing is left, or the catalogue is too small for the candidates.
    """
    found = Preparation(log=log, drops={"items_listed_again": log.num_items_listed_again})
    listed = catalogue.clean_catalogue(log, settings, found.counts, found.drops)
    listed_ids = _keep_known(listed, found)
    if log.has_times:
        found.keep(
            "exact_repeats",
            lambda part: filtering.is_first(part["user"], part["item"], part["time"]),
        )
    core = _keep_core(settings.k_core or 1, found)
    left = _keep_long_users(core, found)
    if not left.num_events:
        raise UserError(_nothing_left(found.drops))
    _order(found, dataset=dataset, settings=settings)
    items, new_ids = _renumber(listed, listed_ids, left, found.drops)
    found.counts["interactions_before_cut"] = left.num_events
    review_rows = _write_reviews(Path(folder), found, settings)
    with PreparedWriter(folder) as writer:
        _write_parts(
            writer,
            found,
            (items, new_ids),
            review_rows=review_rows,
            dataset=dataset,
            settings=settings,
        )
    return found


def _keep_known(listed: Sequence[Item], found: Preparation) -> npt.NDArray[np.int32]:
    """Keeps the events whose item is in the catalogue and has a title.

    Returns:
      For each item that events name its place in the catalogue, -1 for none.
    """
    log = found.log
    ids = {item.raw_id: item.item_id for item in listed}
    listed_ids = np.array([ids.get(raw_id, -1) for raw_id in log.event_items], dtype=np.int32)
    is_listed = listed_ids >= 0
    has_title = np.array([bool(item.title) for item in listed])[listed_ids]
    found.keep("interactions_of_unknown_items", lambda part: is_listed[part["item"]])
    found.keep("interactions_of_items_without_title", lambda part: has_title[part["item"]])
    if not len(log.events):
        raise UserError(
            f"no interaction names an item of the catalogue that has a title: the log has item "
            f"{log.event_items[0]!r}, the catalogue {listed[0].raw_id!r}; "
            "the two files do not belong together"
        )
    return listed_ids


def _keep_core(k: int, found: Preparation) -> filtering.Size:
    """Applies the k-core; records what a single pass would have kept. Returns what is left."""
    reason, log = "interactions_below_k_core", found.log
    counts, drops, num_items = found.counts, found.drops, len(log.event_items)
    core = filtering.k_core(
        log.events, num_items, k, keep=lambda choose: found.keep(reason, choose)
    )
    counts["k_core_rounds"] = core.num_rounds
    counts["one_pass_users"] = core.after_one_pass.num_users
    counts["one_pass_items"] = core.after_one_pass.num_items
    counts["one_pass_interactions"] = core.after_one_pass.num_events
    drops["users_below_k_core"] = core.before.num_users - core.size.num_users
    drops["items_below_k_core"] = core.before.num_items - core.size.num_items
    return core.size


def _keep_long_users(before: filtering.Size, found: Preparation) -> filtering.Size:
    """Keeps users with enough events for a training, a validation and a test item.

    Args:
      before: what there is.
      found: the log, and what is counted.

    Returns:
      What is left.
    """
    reason, events = "interactions_of_short_users", found.log.events
    found.keep(reason, lambda part: filtering.has_many(part["user"], MIN_HISTORY))
    left = before
    if len(events) < before.num_events:
        left = filtering.size_of(events, len(found.log.event_items))
    found.drops["users_too_short"] = before.num_users - left.num_users
    return left


def _order(found: Preparation, *, dataset: str, settings: PrepareSettings) -> None:
    """Sorts by user and time; counts the users whose order the times do not give.

    Amazon's times are days and its files run by item: in file order, the last item of a day is
    the one that the catalogue lists last, and evaluation would reward a large id.
    """
    log, counts = found.log, found.counts
    is_drawn = log.has_times and settings.tie_order == RANDOM_TIES
    counts["users_with_time_ties"] = counts["users_with_time_tie_at_last_item"] = 0

    def order(part: Events) -> filtering.Ints:
        def tie_keys(tied: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
            of_users, user = _hashes(part["user"][tied], log.users, dataset, settings.seed)
            of_items, item = _hashes(part["item"][tied], log.event_items, dataset, settings.seed)
            return filtering.pair_hashes(of_users[user], of_items[item])

        users, times = (np.ascontiguousarray(part[name]) for name in ("user", "time"))
        places = filtering.order_events(users, times, tie_keys if is_drawn else None)
        if log.has_times:
            ties = filtering.count_ties(users[places], times[places])
            counts["users_with_time_ties"] += ties.num_users
            counts["users_with_time_tie_at_last_item"] += ties.num_users_at_last
        return places

    log.events.keep(order)


def _hashes(
    indices: npt.NDArray[np.integer], names: Sequence[str], dataset: str, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.integer]]:
    """Returns seeded hashes of the distinct names at some indices, and where each index has its."""
    distinct, places = np.unique(indices, return_inverse=True)
    hashes = (stable_seed(seed, dataset, "ties", names[index]) for index in distinct.tolist())
    return np.fromiter(hashes, dtype=np.uint64, count=len(distinct)), places


def _renumber(
    listed: Sequence[Item],
    listed_ids: npt.NDArray[np.int32],
    left: filtering.Size,
    drops: dict[str, int],
) -> tuple[tuple[Item, ...], npt.NDArray[np.int32]]:
    """Numbers the items that are left, in the catalogue's order.

    Returns:
      The items, and for each item that events name its number, -1 for none.
    """
    codes = np.flatnonzero(left.per_item)
    codes = codes[np.argsort(listed_ids[codes])]
    gone = drops["items_without_title"] + drops["items_below_k_core"]
    drops["items_without_interactions"] = len(listed) - len(codes) - gone
    new_ids = np.full(len(listed_ids), -1, dtype=np.int32)
    new_ids[codes] = np.arange(len(codes), dtype=np.int32)
    items = tuple(
        dataclasses.replace(listed[place], item_id=number)
        for number, place in enumerate(listed_ids[codes].tolist())
    )
    return items, new_ids


def _write_reviews(
    folder: Path, found: Preparation, settings: PrepareSettings
) -> npt.NDArray[np.int32] | None:
    """Writes the reviews of the histories; returns the row of each event's, -1 for none."""
    log = found.log
    if log.reviews is None:
        return None
    num_events = 1 + max(int(part["number"].max()) for part in log.events)
    is_kept = log.events.column(num_events, np.bool_)
    for part in log.events:
        is_kept[part["number"][filtering.is_among_last(part["user"], settings.max_history)]] = True
    rows = log.events.column(num_events, np.int32)
    rows[:] = -1
    found.counts["reviews"], found.counts["reviews_cut"] = reviews.write_reviews(
        folder / reviews.FILE_NAME,
        log.reviews(),
        is_kept=is_kept,
        rows=rows,
        max_chars=settings.max_review_chars,
    )
    return rows


def _write_parts(
    writer: PreparedWriter,
    found: Preparation,
    numbered: tuple[Sequence[Item], npt.NDArray[np.int32]],
    *,
    review_rows: npt.NDArray[np.int32] | None,
    dataset: str,
    settings: PrepareSettings,
) -> None:
    """Writes all but the reviews, and counts it."""
    log, (items, new_ids) = found.log, numbered
    splits = catalogue.search_splits(items, dataset=dataset, seed=settings.seed)
    ids = title_ids([item.title for item in items])
    is_other = settings.search_negatives == OTHER_CATEGORY
    not_for = candidates.of_same_category(items) if is_other else None
    made: collections.Counter[str] = collections.Counter()

    def add(histories: Histories, seen: ItemSets, splits: Sequence[str]) -> None:
        """Writes some users, or the items of product search, with their evaluation examples."""
        lists = candidates.draw_evaluation(
            candidates.evaluation_targets(histories, splits, test_draws=settings.test_draws),
            seen,
            title_ids=ids,
            num_candidates=settings.num_candidates,
            dataset=dataset,
            seed=settings.seed,
            allow_fewer=settings.allow_fewer_candidates,
            not_for=not_for,
        )
        writer.add(histories, seen, lists)
        made.update(_counts(histories, lists, settings))

    writer.add_items(items, splits)
    with Progress("prepare", total=len(log.users), unit="users") as progress:
        for part in log.events:
            is_last = filtering.is_among_last(part["user"], settings.max_history)
            found.leave_out("interactions_before_last_items", part[~is_last])
            histories = _histories(part[is_last], log, new_ids, review_rows)
            add(histories, _seen_items(part, new_ids, len(items)), ())
            progress.advance(int(part["user"][-1]) + 1 - progress.done)
    nobody = Histories(pa.array([], pa.string()), new_ids[:0], starts_of([]))
    add(nobody, ItemSets(new_ids[:0], starts_of([])), splits)
    search = {f"search_items_{split}": splits.count(split) for split in SPLITS}
    found.counts |= {
        "items_beyond_one_per_title": len(items) - len(np.unique(ids)),
        "users": made["users"],
        "items": len(items),
        **{name: made[name] for name in _OF_HISTORIES},
        **search,
        **{name: made[name] for name in _OF_LISTS if made[name]},
        "candidate_lists_with_fewer": made["candidate_lists_with_fewer"],
        **{name: found.counts.pop(name) for name in ("reviews", "reviews_cut") if log.reviews},
    }


_OF_HISTORIES = ("interactions", "users_whose_target_is_in_their_history")
_OF_LISTS = tuple(
    f"{protocol}_{split}"
    for protocol in (LEAVE_ONE_OUT, PRODUCT_SEARCH)
    for split in (VALIDATION, TEST)
)


def _seen_items(part: Events, new_ids: npt.NDArray[np.int32], num_items: int) -> ItemSets:
    """Returns the distinct items of every user; the events are in order of users."""
    starts, lengths = filtering.split_by_user(part["user"])
    rows = np.repeat(np.arange(len(starts)), lengths)
    pairs = rows * num_items + new_ids[part["item"]]
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    per_user = np.bincount(pairs // num_items, minlength=len(starts))
    return ItemSets((pairs % num_items).astype(np.int32), starts_of(per_user))


def _histories(
    part: Events,
    log: RawLog,
    new_ids: npt.NDArray[np.int32],
    review_rows: npt.NDArray[np.int32] | None,
) -> Histories:
    """Returns each user's last items."""
    starts, lengths = filtering.split_by_user(part["user"])
    users = part["user"][starts].tolist()
    return Histories(
        pa.array([log.users[user] for user in users], type=pa.string()),
        new_ids[part["item"]],
        starts_of(lengths),
        times=part["time"].astype(np.int64) if log.has_unix_times else None,
        review_rows=None if review_rows is None else np.asarray(review_rows[part["number"]]),
    )


def _counts(histories: Histories, lists: Candidates, settings: PrepareSettings) -> dict[str, int]:
    """Counts users and lists that are written."""
    columns = lists.columns
    counts = {"users": len(histories), "interactions": len(histories.item_ids)}
    if len(histories):
        last = histories.item_ids[histories.starts[1:] - 1]
        is_last = histories.item_ids == np.repeat(last, np.diff(histories.starts))
        times_chosen = np.add.reduceat(is_last, histories.starts[:-1], dtype=np.int64)
        again = int(np.count_nonzero(times_chosen > 1))
        counts["users_whose_target_is_in_their_history"] = again
    for protocol, is_of_it in (
        (LEAVE_ONE_OUT, columns.history_rows >= 0),
        (PRODUCT_SEARCH, columns.history_rows < 0),
    ):
        for split, is_in_it in ((VALIDATION, ~columns.is_test), (TEST, columns.is_test)):
            counts[f"{protocol}_{split}"] = int(np.count_nonzero(is_of_it & is_in_it))
    num_fewer = np.count_nonzero(np.diff(columns.starts) < settings.num_candidates)
    return {**counts, "candidate_lists_with_fewer": int(num_fewer)}


def _nothing_left(drops: dict[str, int]) -> str:
    """Says where everything went."""
    reasons = ", ".join(f"{name}={number}" for name, number in drops.items() if number)
    return (
        f"no user with at least {MIN_HISTORY} interactions is left ({reasons}); "
        "lower --k_core or use a larger log"
    )
