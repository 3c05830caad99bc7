"""From a raw log to artefact A: clean, filter, order, cut, split, draw candidates; all counted."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instructrec_jax.data import candidates, catalogue, filtering, reviews
from instructrec_jax.data.columnar import (
    LEAVE_ONE_OUT,
    PRODUCT_SEARCH,
    TEST,
    TRAIN,
    VALIDATION,
    Histories,
    ItemSets,
    starts_of,
)
from instructrec_jax.data.prepared import PreparedData, write_prepared
from instructrec_jax.data.readers.raw_log import RawLog
from instructrec_jax.data.settings import MIN_HISTORY, RANDOM_TIES, PrepareSettings
from instructrec_jax.data.titles import title_ids
from instructrec_jax.errors import UserError
from instructrec_jax.records import Item
from instructrec_jax.seeds import stable_seed


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """Artefact A with what was counted on the way.

    Attributes:
      data: all but the reviews.
      counts: what is written, by name.
      drops: what was left out, by reason.
      examples: one event of each reason for which events were left out.
      event_numbers: [total] int32, for each entry of the histories its event's number in the log.
    """

    data: PreparedData
    counts: dict[str, int]
    drops: dict[str, int]
    examples: dict[str, str]
    event_numbers: npt.NDArray[np.int32]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Account:
    """What is counted on the way through a log; see Preparation."""

    log: RawLog
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    drops: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def leave_out(self, reason: str, numbers: npt.NDArray[np.integer]) -> None:
        """Counts the events of these numbers as left out, and names the first in the log."""
        self.drops[reason] = len(numbers)
        if len(numbers):
            log, first = self.log, int(numbers.min())
            user, item = log.users[log.event_user[first]], log.event_items[log.event_item[first]]
            self.examples[reason] = f"user {user!r}, item {item!r}"


@dataclasses.dataclass(kw_only=True, eq=False)
class _Events:
    """Events that are still kept: indices into the log's users and the catalogue."""

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    time: npt.NDArray[np.float64]
    number: npt.NDArray[np.int32]  # of the event in the log

    def take(self, kept: npt.NDArray) -> None:
        """Keeps the events at `kept`, in that order."""
        for column in dataclasses.fields(self):  # one at a time, to hold one more at most
            setattr(self, column.name, getattr(self, column.name)[kept])

    def keep(self, kept: npt.NDArray, reason: str, account: _Account) -> None:
        """Keeps the events at `kept`; the others are counted as left out."""
        is_left_out = np.ones(len(self.user), dtype=np.bool_)
        is_left_out[kept] = False
        account.leave_out(reason, self.number[is_left_out])
        self.take(kept)

    def num_users(self) -> int:
        """Counts the users with an event."""
        return filtering.count_distinct(self.user)

    def num_items(self) -> int:
        """Counts the items with an event."""
        return filtering.count_distinct(self.item)


def prepare_log(log: RawLog, dataset: str, settings: PrepareSettings) -> Preparation:
    """Turns a raw log into artefact A.

    Args:
      log: what a reader returned.
      dataset: name of the data set; it is part of every seed.
      settings: `k_core` must be a number here.

    Raises:
      UserError: if nothing is left, or the catalogue is too small for the candidates.
    """
    account = _Account(log=log, drops={"items_listed_again": log.num_items_listed_again})
    listed = catalogue.clean_catalogue(log, settings, account.counts, account.drops)
    events = _known_events(listed, account)
    if log.has_times:
        distinct = filtering.drop_repeats(events.user, events.item, events.time)
        events.keep(distinct, "exact_repeats", account)
    _keep_core(events, settings.k_core or 1, account)
    _keep_long_users(events, account)
    if not len(events.user):
        raise UserError(_nothing_left(account.drops))
    _order(events, account, listed, dataset=dataset, settings=settings)
    items, new_ids = _renumber(listed, events, account.drops)
    events.item = new_ids[events.item]
    seen = _seen_items(events, len(items))
    event_numbers, histories = _histories(events, settings.max_history, account)
    items_splits = catalogue.search_splits(items, dataset=dataset, seed=settings.seed)
    ids = title_ids([item.title for item in items])
    data = PreparedData(
        dataset=dataset,
        items=items,
        search_splits=items_splits,
        histories=histories,
        seen_items=seen,
        candidates=candidates.draw_evaluation(
            candidates.evaluation_targets(histories, items_splits, test_draws=settings.test_draws),
            seen,
            title_ids=ids,
            num_candidates=settings.num_candidates,
            dataset=dataset,
            seed=settings.seed,
            allow_fewer=settings.allow_fewer_candidates,
        ),
    )
    account.counts["items_beyond_one_per_title"] = len(items) - len(np.unique(ids))
    _count_output(data, settings, account.counts)
    return Preparation(
        data=data,
        counts=account.counts,
        drops=account.drops,
        examples=account.examples,
        event_numbers=event_numbers,
    )


def write_preparation(
    folder: Path | str, preparation: Preparation, log: RawLog, settings: PrepareSettings
) -> Preparation:
    """Writes artefact A into a folder that exists, the reviews of the log streaming through.

    Args:
      folder: where the files go; the manifest is the stage's.
      preparation: what `prepare_log` returned.
      log: what it was made from; its reviews are read now, and those of cut histories are kept.
      settings: `max_review_chars` is read.

    Returns:
      The preparation, with rows of reviews and their counts where the log has any.
    """
    if log.reviews is not None:
        is_kept = np.zeros(len(log.event_user), dtype=np.bool_)
        is_kept[preparation.event_numbers] = True
        rows, num_cut = reviews.write_reviews(
            Path(folder) / reviews.FILE_NAME,
            log.reviews(),
            is_kept=is_kept,
            max_chars=settings.max_review_chars,
        )
        review_rows = rows[preparation.event_numbers]
        histories = preparation.data.histories.with_review_rows(review_rows)
        num_reviews = int(np.count_nonzero(review_rows >= 0))
        preparation = dataclasses.replace(
            preparation,
            data=dataclasses.replace(preparation.data, histories=histories),
            counts={**preparation.counts, "reviews": num_reviews, "reviews_cut": num_cut},
        )
    write_prepared(folder, preparation.data)
    return preparation


def _known_events(listed: Sequence[Item], account: _Account) -> _Events:
    """Returns the events whose item is in the catalogue and has a title."""
    log = account.log
    ids = {item.raw_id: item.item_id for item in listed}
    id_of_code = np.array([ids.get(raw_id, -1) for raw_id in log.event_items], dtype=np.int32)
    has_title = np.array([bool(item.title) for item in listed])
    item = id_of_code[log.event_item]
    is_listed = item >= 0
    is_kept = is_listed & has_title[item]
    account.leave_out("interactions_of_unknown_items", np.flatnonzero(~is_listed))
    account.leave_out("interactions_of_items_without_title", np.flatnonzero(is_listed & ~is_kept))
    if not is_kept.any():
        raise UserError(
            f"no interaction names an item of the catalogue that has a title: the log has item "
            f"{log.event_items[0]!r}, the catalogue {listed[0].raw_id!r}; "
            "the two files do not belong together"
        )
    return _Events(
        user=log.event_user[is_kept],
        item=item[is_kept],
        time=log.event_time[is_kept],
        number=np.flatnonzero(is_kept).astype(np.int32),
    )


def _keep_core(events: _Events, k: int, account: _Account) -> None:
    """Applies the k-core; records what a single pass would have kept."""
    core = filtering.k_core(events.user, events.item, k)
    one_pass = core.kept_after_one_pass
    counts, drops = account.counts, account.drops
    counts["k_core_rounds"] = core.num_rounds
    counts["one_pass_users"] = filtering.count_distinct(events.user[one_pass])
    counts["one_pass_items"] = filtering.count_distinct(events.item[one_pass])
    counts["one_pass_interactions"] = len(one_pass)
    num_users, num_items = events.num_users(), events.num_items()
    events.keep(core.kept, "interactions_below_k_core", account)
    drops["users_below_k_core"] = num_users - events.num_users()
    drops["items_below_k_core"] = num_items - events.num_items()


def _keep_long_users(events: _Events, account: _Account) -> None:
    """Drops users with too few events for a training, a validation and a test item."""
    per_user = np.bincount(events.user) if len(events.user) else np.zeros(0, dtype=np.int64)
    num_users = events.num_users()
    kept = np.flatnonzero(per_user[events.user] >= MIN_HISTORY)
    events.keep(kept, "interactions_of_short_users", account)
    account.drops["users_too_short"] = num_users - events.num_users()


def _order(
    events: _Events,
    account: _Account,
    listed: Sequence[Item],
    *,
    dataset: str,
    settings: PrepareSettings,
) -> None:
    """Sorts by user and time; counts the users whose order the times do not give.

    Amazon's times are days and its files run by item: in file order, the last item of a day is
    the one that the catalogue lists last, and evaluation would reward a large id.
    """
    log, counts = account.log, account.counts

    def tie_keys(tied: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
        of_users, user = _hashes(events.user[tied], log.users, dataset, settings.seed)
        raw_ids = [item.raw_id for item in listed]
        of_items, item = _hashes(events.item[tied], raw_ids, dataset, settings.seed)
        return filtering.pair_hashes(of_users[user], of_items[item])

    is_drawn = log.has_times and settings.tie_order == RANDOM_TIES
    order = filtering.order_events(events.user, events.time, tie_keys if is_drawn else None)
    events.take(order)
    ties = filtering.Ties(num_users=0, num_users_at_last=0)
    if log.has_times:
        ties = filtering.count_ties(events.user, events.time)
    counts["users_with_time_ties"] = ties.num_users
    counts["users_with_time_tie_at_last_item"] = ties.num_users_at_last


def _hashes(
    indices: npt.NDArray[np.integer], names: Sequence[str], dataset: str, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.integer]]:
    """Returns seeded hashes of the distinct names at some indices, and where each index has its."""
    distinct, places = np.unique(indices, return_inverse=True)
    hashes = (stable_seed(seed, dataset, "ties", names[index]) for index in distinct.tolist())
    return np.fromiter(hashes, dtype=np.uint64, count=len(distinct)), places


def _renumber(
    listed: Sequence[Item], events: _Events, drops: dict[str, int]
) -> tuple[tuple[Item, ...], npt.NDArray[np.int32]]:
    """Numbers the items that are left, in the catalogue's order; returns old number -> new."""
    left = np.unique(events.item)
    gone = drops["items_without_title"] + drops["items_below_k_core"]
    drops["items_without_interactions"] = len(listed) - len(left) - gone
    new_ids = np.full(len(listed), -1, dtype=np.int32)
    new_ids[left] = np.arange(len(left), dtype=np.int32)
    items = tuple(
        dataclasses.replace(listed[old], item_id=new) for new, old in enumerate(left.tolist())
    )
    return items, new_ids


def _seen_items(events: _Events, num_items: int) -> ItemSets:
    """Returns the distinct items of every user; the events are in order of users."""
    starts, lengths = filtering.split_by_user(events.user)
    rows = np.repeat(np.arange(len(starts)), lengths)
    pairs = rows * num_items + events.item
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    per_user = np.bincount(pairs // num_items, minlength=len(starts))
    return ItemSets((pairs % num_items).astype(np.int32), starts_of(per_user))


def _histories(
    events: _Events, max_history: int, account: _Account
) -> tuple[npt.NDArray[np.int32], Histories]:
    """Returns each user's last items, and the numbers of their events in the log."""
    log = account.log
    starts, lengths = filtering.split_by_user(events.user)
    users = events.user[starts]
    account.counts["interactions_before_cut"] = len(events.user)
    num_cut = np.maximum(lengths - max_history, 0)
    positions = np.arange(len(events.user)) - np.repeat(starts, lengths)
    kept = np.flatnonzero(positions >= np.repeat(num_cut, lengths))
    events.keep(kept, "interactions_before_last_items", account)
    histories = Histories(
        pa.array([log.users[user] for user in users.tolist()], type=pa.string()),
        events.item,
        starts_of(lengths - num_cut),
        times=events.time.astype(np.int64) if log.has_unix_times else None,
    )
    return events.number, histories


def _count_output(data: PreparedData, settings: PrepareSettings, counts: dict[str, int]) -> None:
    """Counts what is written."""
    histories, lists = data.histories, data.candidates.columns
    counts["users"] = len(histories)
    counts["items"] = len(data.items)
    counts["interactions"] = len(histories.item_ids)
    last = histories.item_ids[histories.starts[1:] - 1]
    is_last = histories.item_ids == np.repeat(last, np.diff(histories.starts))
    times_chosen = np.add.reduceat(is_last, histories.starts[:-1], dtype=np.int64)
    counts["users_whose_target_is_in_their_history"] = int(np.count_nonzero(times_chosen > 1))
    for split in (TRAIN, VALIDATION, TEST):
        counts[f"search_items_{split}"] = data.search_splits.count(split)
    for protocol, is_of_it in (
        (LEAVE_ONE_OUT, lists.history_rows >= 0),
        (PRODUCT_SEARCH, lists.history_rows < 0),
    ):
        for split, is_in_it in ((VALIDATION, ~lists.is_test), (TEST, lists.is_test)):
            if number := int(np.count_nonzero(is_of_it & is_in_it)):
                counts[f"{protocol}_{split}"] = number
    num_fewer = np.count_nonzero(np.diff(lists.starts) < settings.num_candidates)
    counts["candidate_lists_with_fewer"] = int(num_fewer)


def _nothing_left(drops: dict[str, int]) -> str:
    """Says where everything went."""
    reasons = ", ".join(f"{name}={number}" for name, number in drops.items() if number)
    return (
        f"no user with at least {MIN_HISTORY} interactions is left ({reasons}); "
        "lower --k_core or use a larger log"
    )
