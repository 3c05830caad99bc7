"""Whether the figures of a report can be trusted, as checks that are computed on each report.

A check has passed, has failed and names examples, or was not run and says why: what was not looked
at never counts as good.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from instructrec_jax.data.columnar import LEAVE_ONE_OUT, TEST
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.data.titles import title_ids
from instructrec_jax.instructions.language import Variant
from instructrec_jax.instructions.leaks import is_foreign, quoting, words
from instructrec_jax.instructions.render import render_record
from instructrec_jax.metrics import ranking
from instructrec_jax.records import CandidateList, InstructionRecord

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
ORACLE, CONSTANT, RANDOM = "oracle scorer", "constant scorer", "random scorer"
SAME_CANDIDATES, INDEX, HISTORY = "same candidates", "index of the target", "history"
PREFERENCES, LABEL_SWAP, SHUFFLED = "preferences", "label swap", "shuffled labels"
_NUM_IDS = 5
_NUM_DRAWS = 20_000
_LEVEL = 0.001  # of a sound report one check in so many fails by chance
_HEADLINE = ("hr@1", "ndcg@5")
_COPIED_WORDS = 8  # in a row, shared with a review


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
      check: its name.
      status: "passed", "failed" or "not run".
      found: the figures, or why it was not run.
      ids: the first examples that fail.
    """

    check: str
    status: str
    found: str
    ids: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """What was written on the taste of a user, beside what it must not tell.

    Attributes:
      example_id: of the test example.
      texts: P2, which the example's prompt may show.
      target: title of the test item.
      review: of the test item, "" for none.
      history: titles before it.
      history_reviews: reviews of these.
    """

    example_id: str
    texts: Sequence[str]
    target: str
    review: str
    history: Sequence[str]
    history_reviews: Sequence[str]


def not_run(check: str, why: str) -> Check:
    """Returns a check that could not be run."""
    return Check(check=check, status=NOT_RUN, found=why)


def known_scorers(
    example_ids: Sequence[str], candidate_ids: NDArray[np.int64], target_index: NDArray[np.int64]
) -> list[Check]:
    """Returns whether scorers whose ranks are known get them on these candidate lists.

    The oracle ranks each target first. A scorer of one value for all gets the last rank, where ties
    count against the target, and exactly chance where every order of equals counts alike.

    Args:
      example_ids: [n].
      candidate_ids: [n, longest], -1 at padding.
      target_index: [n].
    """
    is_there = candidate_ids >= 0
    sizes = is_there.sum(axis=1)
    is_target = np.arange(candidate_ids.shape[1]) == target_index[:, None]
    best = ranking.ranks(np.where(is_there, is_target, -np.inf), target_index)
    last, num_tied = ranking.ranks_and_ties(np.where(is_there, 0.0, -np.inf), target_index)
    expected = np.stack(list(ranking.expected_per_example(last, num_tied).values()), axis=1)
    is_wrong = (last != sizes) | (np.abs(expected - chance(sizes)) > 1e-12).any(axis=1)
    against, alike = ranking.evaluate(last), expected.mean(axis=0)
    return [
        _verdict(ORACLE, _those(example_ids, best != 1), _shown(ranking.evaluate(best))),
        _verdict(
            CONSTANT,
            _those(example_ids, is_wrong),
            f"{_shown(against)} with ties against the target; every order alike "
            f"{_shown(dict(zip(ranking.METRIC_NAMES, alike, strict=True)))}, as chance",
        ),
    ]


def chance(sizes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Returns [n, metrics] what a random scorer gets in expectation among so many candidates."""
    widest = int(sizes.max(initial=1))
    of_ranks = np.stack(list(ranking.per_example(np.arange(1, widest + 1)).values()), axis=1)
    return np.cumsum(of_ranks, axis=0)[sizes - 1] / sizes[:, None]


def at_chance(check: str, rank: NDArray[np.int64], sizes: NDArray[np.integer]) -> Check:
    """Returns whether HR@1 and NDCG@5 are those of a random scorer, by 20,000 draws of it.

    Args:
      check: its name.
      rank: [n], of independent examples.
      sizes: [n] candidates of each.
    """
    distinct, counts = np.unique(sizes, return_counts=True)
    generator = np.random.default_rng(0)
    drawn: NDArray[np.float64] = np.zeros((_NUM_DRAWS, len(_HEADLINE)))
    for size, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        of_ranks = ranking.per_example(np.arange(1, size + 1))
        table = np.stack([of_ranks[name] for name in _HEADLINE], axis=1)
        drawn += generator.multinomial(count, np.full(size, 1 / size), _NUM_DRAWS) @ table
    tails = [_LEVEL / 2, 1 - _LEVEL / 2]
    low, high = np.quantile(drawn / len(rank), tails, axis=0, method="inverted_cdf")
    found = ranking.evaluate(rank)
    own = np.array([found[name] for name in _HEADLINE])
    ranges = ", ".join(
        f"{name.upper()} in [{a:.3f}, {b:.3f}]"
        for name, a, b in zip(_HEADLINE, low, high, strict=True)
    )
    is_inside = bool(((low - 1e-12 <= own) & (own <= high + 1e-12)).all())
    return Check(
        check=check,
        status=PASSED if is_inside else FAILED,
        found=f"{_shown(found)}; a random scorer has {ranges} in {1 - _LEVEL:.1%} of draws",
    )


def target_indices(candidate_ids: NDArray[np.int64], target_index: NDArray[np.int64]) -> Check:
    """Returns whether the target has every index in its list alike often.

    Args:
      candidate_ids: [n, longest], -1 at padding.
      target_index: [n].
    """
    sizes = (candidate_ids >= 0).sum(axis=1)
    is_widest = sizes == sizes.max()  # nearly all lists are as long
    width, index = int(sizes.max()), target_index[is_widest]
    counts = np.bincount(index, minlength=width)
    if len(index) < 5 * width:
        return not_run(INDEX, f"{len(index)} lists are too few for {width} indices")
    p_value = float(stats.chisquare(counts).pvalue)
    return Check(
        check=INDEX,
        status=PASSED if p_value > _LEVEL else FAILED,
        found=f"{counts.min()} to {counts.max()} targets at each of {width}, p {p_value:.2g}",
    )


def same_candidates(
    example_ids: Sequence[str], candidate_ids: Mapping[str, NDArray[np.int64]]
) -> Check:
    """Returns whether every system ranked the same candidates of the same examples.

    Args:
      example_ids: [n], the examples of every row.
      candidate_ids: by the row of the report, [n, longest] as they were scored, -1 at padding; the
        first is the prepared data's.
    """
    hashes = {name: candidates_hash(example_ids, ids) for name, ids in candidate_ids.items()}
    first, *_ = hashes.values()
    own = np.sort(next(iter(candidate_ids.values())), axis=1)
    differs = np.zeros(len(example_ids), dtype=bool)
    for name, ids in candidate_ids.items():
        if hashes[name] != first:
            differs |= (np.sort(ids, axis=1) != own).any(axis=1) if ids.shape == own.shape else True
    if others := [name for name, value in hashes.items() if value != first]:
        return _verdict(
            SAME_CANDIDATES, _those(example_ids, differs), f"not in {', '.join(others)}"
        )
    found = f"sha256 {first[:12]} in {len(hashes)} rows of {len(example_ids)} examples"
    return Check(check=SAME_CANDIDATES, status=PASSED, found=found)


def candidates_hash(example_ids: Sequence[str], candidate_ids: NDArray[np.int64]) -> str:
    """Returns the sha256 of examples and their candidates, whatever the order of the latter."""
    found = hashlib.sha256("\n".join(example_ids).encode())
    found.update(np.sort(candidate_ids, axis=1).astype("<i8").tobytes())
    return found.hexdigest()


def histories(examples: Sequence[CandidateList], data: PreparedData) -> Check:
    """Returns whether test events are held out: none is in its history or among its negatives.

    In leave-one-out the target is the user's last event, the history what comes before it, and no
    negative was ever chosen. In product search the target is an item that no training pair has. No
    two candidates bear one title.

    Args:
      examples: of the test split.
      data: artefact A, which they belong to.
    """
    user_of = {user: number for number, user in enumerate(data.histories.user_ids.to_pylist())}
    starts, items = data.histories.starts, data.histories.item_ids
    same_title = title_ids([item.title for item in data.items])
    wrong, num_repeated = [], 0
    for example in examples:
        ids = example.candidate_ids
        is_right = len({same_title[item] for item in ids}) == len(ids)
        is_right &= ids.count(example.target_id) == 1
        if example.protocol == LEAVE_ONE_OUT:
            user = user_of[example.user_id]
            own = items[starts[user] : starts[user + 1]]
            is_right &= example.position == len(own) - 1 and own[-1] == example.target_id
            chosen = set(data.seen_items[user].tolist()) - {example.target_id}
            is_right &= chosen.isdisjoint(ids)
            num_repeated += int(example.target_id in own[:-1])
        else:
            is_right &= data.search_splits[example.target_id] == TEST
        if not is_right:
            wrong.append(example.example_id)
    repeats = f"; {num_repeated} chose the item before, too" if num_repeated else ""
    return _verdict(HISTORY, wrong, f"{len(examples)} lists against the histories{repeats}")


def preferences(rows: Iterable[Preference]) -> Check:
    """Returns whether no preference (P2) tells of the test item or copies from its review.

    A preference may quote a title where the history does; see `instructions.leaks`.
    """
    wrong, number = [], 0
    for row in rows:
        number += 1
        quoted = quoting(row.texts, row.target)
        copied = _runs("\n".join(row.texts)) & _runs(row.review)
        copied -= set().union(*map(_runs, row.history_reviews)) if copied else set()
        if copied or any(is_foreign(text, row.target, row.history) for text in quoted):
            wrong.append(row.example_id)
    return _verdict(PREFERENCES, wrong, f"texts of {number} test examples, titles and reviews")


def label_swap(
    records: Iterable[InstructionRecord],
    variants: Sequence[Variant],
    *,
    render: Callable[[Variant, InstructionRecord], tuple[str, str]] = render_record,
) -> Check:
    """Returns whether prompts stay as they are where another candidate is the target.

    Where a template takes no query, the texts that are about the target are exchanged, too: none of
    them may be in the prompt. A query is about the target by its definition.

    Args:
      records: of the test split.
      variants: templates that rank.
      render: returns instruction and answer.
    """
    wrong: list[str] = []
    number = 0
    for record in records:
        for variant in variants:
            own, _ = render(variant, record)
            number += 1
            for other in _swapped(record, is_asked=variant.query is not None):
                if render(variant, other)[0] != own:
                    wrong.append(record.example_id)
                    break
    names = ", ".join(variant.name for variant in variants)
    return _verdict(LABEL_SWAP, list(dict.fromkeys(wrong)), f"{number} prompts of {names}")


def _swapped(record: InstructionRecord, *, is_asked: bool) -> Iterator[InstructionRecord]:
    """Yields a record with each other candidate as its target."""
    texts = {} if is_asked else dict(vague_intention=("other",), second_vague_intention=("other",))
    query = {} if is_asked else {"specific_intention": "other"}
    for item, title in zip(record.candidate_ids, record.candidates, strict=True):
        if item != record.target_id:
            changes = {"target_id": item, "target": title, **texts, **query}
            yield dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def _runs(text: str) -> set[tuple[str, ...]]:
    """Returns the runs of words that count as copied where two texts share one."""
    spoken = words(text)
    return {
        tuple(spoken[begin : begin + _COPIED_WORDS])
        for begin in range(len(spoken) - _COPIED_WORDS + 1)
    }


def _those(example_ids: Sequence[str], is_wrong: NDArray[np.bool_]) -> list[str]:
    return [example_ids[row] for row in np.flatnonzero(is_wrong).tolist()]


def _verdict(check: str, wrong: Sequence[str], found: str) -> Check:
    """Returns a check that fails where examples are wrong, and names the first of them."""
    if not wrong:
        return Check(check=check, status=PASSED, found=found)
    named = list(itertools.islice(wrong, _NUM_IDS))
    found = f"{found}; wrong: {len(wrong)}"
    return Check(check=check, status=FAILED, found=found, ids=named)


def _shown(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.upper()} {metrics[name]:.3f}" for name in _HEADLINE)
