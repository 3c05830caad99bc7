"""Computes the slices and the behaviour of a scenario's systems from their scores."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.popularity import count_items, training_histories
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.titles import title_ids
from instructrec_jax.instructions.language import Variant
from instructrec_jax.instructions.render import shows_candidates
from instructrec_jax.metrics import behaviour
from instructrec_jax.records import CandidateList
from instructrec_jax.report import details, slices
from instructrec_jax.report.details import BehaviourRow, Details, ExposureRow
from instructrec_jax.report.slices import Groups, SliceRow
from instructrec_jax.stages.report.systems import Run

_DAY = 24 * 3600
# By the first aspect of a cell: prompts without a history can be asked for a new user.
_KNOWN = {
    "P0": "nothing (P0): fits a new user",
    "P1": "a history (P1)",
    "P2": "a stated taste alone (P2): fits a new user",
}


class Events(NamedTuple):
    """The test examples of a scenario as events.

    Attributes:
      examples: n of them.
      event: int64 [n] which event each is of; None where each is an event of its own.
      firsts: int64 [events] row of the first example of each.
    """

    examples: Sequence[CandidateList]
    event: NDArray[np.int64] | None
    firsts: NDArray[np.int64]


def events_of(examples: Sequence[CandidateList]) -> Events:
    """Returns the events of examples, which differ in their negatives alone (`--test_draws`)."""
    number_of: dict[tuple[str, int, int], int] = {}
    event = np.zeros(len(examples), dtype=np.int64)
    for row, example in enumerate(examples):
        key = (example.user_id, example.position, example.target_id)
        event[row] = number_of.setdefault(key, len(number_of))
    firsts = np.unique(event, return_index=True)[1]
    return Events(examples, event if len(firsts) < len(examples) else None, firsts)


class Items:
    """What is known of the items of artefact A, to divide events by."""

    def __init__(self, data: PreparedData) -> None:
        self._data = data

    @property
    def has_times(self) -> bool:
        """Whether the log tells when an event was."""
        return bool(len(self._data.histories.times))

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        """[items] training events."""
        training = training_histories(history.item_ids for history in self._data.histories)
        return count_items(training, num_items=len(self._data.items))

    @functools.cached_property
    def item_groups(self) -> dict[str, Groups]:
        """By what items are divided: head and tail, new ones, and brands if the log has any."""
        found = {
            "popularity": Groups(
                behaviour.popularity_classes(self.counts),
                ["head (top fifth)", "middle", "tail (lower half)"],
            ),
            "novelty": Groups(
                np.minimum(self.counts, 1), ["new: no training event", "with training events"]
            ),
        }
        brands = [item.brand for item in self._data.items]
        if any(brands):
            found["brand"] = slices.by_name(brands, self.counts)
        return found

    def groups(self, events: Events) -> Iterator[tuple[str, Groups]]:
        """Yields by what events may be divided, and the group of each."""
        own = [events.examples[row] for row in events.firsts]
        targets = np.array([example.target_id for example in own], dtype=np.int64)
        positions = np.array([example.position for example in own], dtype=np.int64)
        if (positions >= 0).all():
            yield "history length", slices.by_number(positions)
        yield "training events of the target", slices.by_number(self.counts[targets])
        for by, groups in self.item_groups.items():
            yield f"{by} of the target", slices.of_targets(groups, targets)
        if self.has_times:
            yield "days since the target first appeared", slices.by_number(self._ages(own, targets))
        lengths = np.array([len(item.title) for item in self._data.items])[targets]
        yield "characters of the target's title", slices.by_number(lengths)
        names = title_ids([item.title for item in self._data.items])
        is_repeated = (np.bincount(names) > 1)[names[targets]]
        flag = slices.by_flag(is_repeated, no="of one item", yes="of several items")
        yield "the target's title", flag

    def _ages(self, own: Sequence[CandidateList], targets: NDArray) -> NDArray[np.int64]:
        """Returns for how many days each target was known, at the log's end in product search."""
        histories = self._data.histories
        first = np.full(len(self._data.items), np.iinfo(np.int64).max)
        np.minimum.at(first, histories.item_ids, histories.times)
        user_of = {user: n for n, user in enumerate(histories.user_ids.to_pylist())}
        now = np.full(len(own), histories.times.max())
        for row, example in enumerate(own):
            if example.position >= 0:
                event = histories.starts[user_of[example.user_id]] + example.position
                now[row] = histories.times[event]
        # An item that nobody of the k-core chose is as old as the log is long.
        first = np.where(first > now.max(), histories.times.min(), first)
        return np.maximum(now - first[targets], 0) // _DAY


def details_of(
    runs: Sequence[Run],
    events: Events,
    items: Items,
    *,
    num_baselines: int,
    variant_of: Callable[[str], Variant | None],
) -> Details:
    """Returns the slices and the behaviour of all systems of a scenario.

    Args:
      runs: of the baselines and the systems, all of the same examples.
      events: these examples.
      items: of artefact A.
      num_baselines: of the runs.
      variant_of: returns the template of an id, None where it is unknown.
    """
    groups, rows = list(items.groups(events)), []
    firsts = [events.examples[row] for row in events.firsts]
    # As the lists were drawn: what a system has written may be in another order.
    indices = [e.candidate_ids.index(e.target_id) + 1 for e in firsts]
    index = slices.by_number(np.array(indices, np.int64))
    for run in runs:
        rank, _ = run.ranks_and_ties()
        metrics = slices.event_metrics(rank, events.event)
        for by, own in groups:
            rows += slices.slice_rows(run.name, by, own, metrics)
        of_firsts = slices.event_metrics(rank[events.firsts], None)
        rows += slices.slice_rows(run.name, "index of the target", index, of_firsts)
    for run in runs[num_baselines:]:
        rows += _template_rows(run, events, variant_of)
    found = [_behaviour(run, events, items, variant_of) for run in runs]
    return Details(
        slices=rows,
        behaviour=[_of_targets(runs[-1], items), *(own.row for own in found)],
        exposure=[row for run in runs for row in _exposure_rows(run, items)],
        reliability=[row for own in found for row in own.reliability],
        first_ranks=[row for own in found for row in own.first_ranks],
        left_out=[] if items.has_times else ["age of the target: the log has no times"],
    )


def _template_rows(
    run: Run, events: Events, variant_of: Callable[[str], Variant | None]
) -> Iterator[SliceRow]:
    """Yields how a system did by each template of the scenario, and by each cell of the paper."""
    scenario = run.scores.scenario(run.template)
    ids = [example.example_id for example in events.examples]
    by_cell: dict[str, list[NDArray[np.float64]]] = {}
    by_known: dict[str, list[NDArray[np.float64]]] = {}
    for template in run.scores.templates()[scenario]:
        number = {e.example_id: row for row, e in enumerate(run.scores.examples(template))}
        if not number.keys() >= set(ids):
            continue
        rank, _ = run.scores.ranks_and_ties(template, run.normaliser)
        metrics = slices.event_metrics(rank[[number[name] for name in ids]], events.event)
        yield from slices.slice_rows(run.name, details.TEMPLATE, _all(metrics, template), metrics)
        if (variant := variant_of(template)) is not None:
            by_cell.setdefault(variant.cell, []).append(metrics)
            by_known.setdefault(_KNOWN[variant.cell[1:3]], []).append(metrics)
    for by, parts in (("cell", by_cell), ("known of the user", by_known)):
        for name, of_templates in parts.items():
            metrics = np.mean(of_templates, axis=0)
            yield from slices.slice_rows(run.name, by, _all(metrics, name), metrics)


def _all(metrics: NDArray[np.float64], name: str) -> Groups:
    """Returns all events as one group."""
    return Groups(np.zeros(len(metrics), dtype=np.int64), [name])


def _exposure_rows(run: Run, items: Items) -> Iterator[ExposureRow]:
    """Yields which share of first ranks groups of items get, beside their share of targets."""
    table = run.table
    ids, is_there = table.candidate_ids, table.candidate_ids >= 0
    shares = behaviour.first_shares(table.values, is_there, table.last_round)
    is_target = (np.arange(ids.shape[1]) == table.target_index[:, None]).astype(np.float64)
    for by, groups in items.item_groups.items():
        found = (behaviour.group_shares(ids, own, groups.of) for own in (shares, is_target))
        for name, exposure, relevance in zip(groups.names, *found, strict=False):
            if exposure or relevance:
                yield ExposureRow(
                    system=run.name,
                    by=by,
                    group=name,
                    exposure=float(exposure),
                    relevance=float(relevance),
                )


class _Behaviour(NamedTuple):
    row: BehaviourRow
    reliability: Sequence[details.ReliabilityRow]
    first_ranks: Sequence[details.FirstRankRow]


def _behaviour(
    run: Run, events: Events, items: Items, variant_of: Callable[[str], Variant | None]
) -> _Behaviour:
    """Returns how a system behaves."""
    table = run.table
    is_there = table.candidate_ids >= 0
    shares = behaviour.first_shares(table.values, is_there, table.last_round)
    bins: Sequence[details.ReliabilityRow] = []
    error, p_value = None, None
    has_tokens = len(run.scores.normalisers(run.template, None)) > 1
    if has_tokens and not run.scores.has_rounds(run.template):
        bins, error = details.reliability_rows(run.name, table.log_likelihood, table.target_index)
    first_ranks: list[details.FirstRankRow] = []
    variant = variant_of(run.template)
    is_shown = variant is None or shows_candidates(variant)
    if run.scores.shows_all() and is_shown and is_there.all():
        first_ranks = details.first_rank_rows(run.name, shares[events.firsts])
        p_value = behaviour.index_p_value(shares[events.firsts])
    exposure = behaviour.exposure(table.candidate_ids, shares, items.counts)
    correlation = behaviour.popularity_correlation(table.candidate_ids, table.values, items.counts)
    row = BehaviourRow(
        system=run.name,
        num_examples=len(shares),
        **exposure._asdict(),
        popularity_correlation=correlation,
        calibration_error=error,
        index_p_value=p_value,
    )
    return _Behaviour(row, bins, first_ranks)


def _of_targets(run: Run, items: Items) -> BehaviourRow:
    """Returns the row of a system that would rank every target first."""
    ids, index = run.table.candidate_ids, run.table.target_index
    is_target = (np.arange(ids.shape[1]) == index[:, None]).astype(np.float64)
    exposure = behaviour.exposure(ids, is_target, items.counts)
    return BehaviourRow(
        system=details.TARGET,
        num_examples=len(ids),
        **exposure._asdict(),
        popularity_correlation=None,
        calibration_error=None,
        index_p_value=None,
    )
