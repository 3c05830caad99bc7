"""How the candidates of a request are compared: in one prompt, in several, or in rounds.

A view is one prompt that shows some of the candidates in some order. A strategy says round by
round which views are to be scored and, from their log-likelihoods, which candidates go on. It knows
nothing of texts and models: it is a generator that yields views and is sent log-likelihoods.
"""

import dataclasses
import itertools
from collections.abc import Generator
from typing import Any, NamedTuple, Protocol

import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.seeds import stable_seed
from instructrec_jax.settings import Count, Seed, check_fields

View = np.ndarray  # int [n], indices of the candidates that a prompt shows, in its order


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What the views of a request resulted in.

    Attributes:
      log_likelihood: float32 [c, p], natural log, of each candidate under each of p prompts that
        show the same view; those of the last round in which the candidate took part. Only the
        first prompt decides which candidates go on and how they rank.
      last_round: int32 [c], that round, from 1.
      num_views: how many were scored.
    """

    log_likelihood: np.ndarray
    last_round: np.ndarray
    num_views: int


# Yields the views of a round, and is sent float32 [n, p] for each of them.
Rounds = Generator[list[View], list[np.ndarray], Outcome]


class Strategy(Protocol):
    """A way of comparing candidates; a frozen dataclass of its settings."""

    @property
    def sure_ranks(self) -> int | None:
        """Ranks up to which no candidate that belongs there can be missing; None for all.

        A candidate that beats all but k - 1 others in every view is sure to have rank k at most,
        for k up to this number; beyond it the random groups can rank a candidate lower.
        """

    def rounds(self, num_candidates: int, request_id: str) -> Rounds:
        """Returns the rounds of a request, the same for the same arguments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllAtOnce:
    """One view of all candidates in their own order."""

    sure_ranks = None

    def rounds(self, num_candidates: int, request_id: str) -> Rounds:
        """Returns one round of one view."""
        (found,) = yield [np.arange(num_candidates)]
        return Outcome(
            log_likelihood=found, last_round=np.ones(num_candidates, np.int32), num_views=1
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotations:
    """All candidates in several rotated orders, whose log-likelihoods are averaged.

    With as many rotations as candidates each is once at every position, so what a model adds
    for the position alone is the same for all. Costs as many times the work of one view.

    Attributes:
      number: how many orders; no more than there are candidates.
    """

    number: Count = 10

    sure_ranks = None

    def __post_init__(self) -> None:
        check_fields(self)

    def rounds(self, num_candidates: int, request_id: str) -> Rounds:
        """Returns one round of the rotated views."""
        number, order = min(self.number, num_candidates), np.arange(num_candidates)
        views = [np.roll(order, -(turn * num_candidates // number)) for turn in range(number)]
        found = yield views
        total = np.zeros(found[0].shape, np.float64)
        for view, values in zip(views, found, strict=True):
            total[view] += values
        return Outcome(
            log_likelihood=(total / number).astype(np.float32),
            last_round=np.ones(num_candidates, np.int32),
            num_views=number,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Random groups, the best of which are grouped again until one group is left.

    The best one of each group of ten is the paper's way with 100 candidates (section 4.2.4, table
    10). With more of them, such as half of a group, more ranks are sure and more views are scored.
    A candidate of a later round ranks before those of earlier ones; candidates with the same
    last round rank by their log-likelihood in it. A view keeps the candidates' own order.

    Attributes:
      size: candidates in one view at most; groups differ by one in size.
      kept: how many of each go on, half of the size at most.
      seed: of the draw.
    """

    size: Count = 10
    kept: Count = 1
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kept > self.size // 2:
            raise UserError(
                f"candidate_views.Groups has size {self.size} and kept {self.kept}; expected "
                "a size of at least 2, and from 1 to half of a group to go on"
            )

    @property
    def sure_ranks(self) -> int | None:
        """Those kept of one group: all of the best may have been drawn into it."""
        return self.kept

    def rounds(self, num_candidates: int, request_id: str) -> Rounds:
        """Returns rounds of views, one where all candidates fit into a group."""
        # "ballots" names the draw; another word would draw other groups.
        draw = np.random.default_rng(stable_seed(self.seed, "ballots", request_id))
        left = np.arange(num_candidates)
        last_round, num_views = np.zeros(num_candidates, np.int32), 0
        results: dict[int, np.ndarray] = {}
        for number in itertools.count(1):
            num_groups = -(-len(left) // self.size)
            mixed = draw.permutation(left) if num_groups > 1 else left
            groups = [np.sort(group) for group in np.array_split(mixed, num_groups)]
            found = yield groups
            num_views += num_groups
            last_round[left] = number
            for group, values in zip(groups, found, strict=True):
                results.update(zip(group.tolist(), values, strict=True))
            if num_groups == 1:
                break
            best = [np.argsort(-values[:, 0], kind="stable")[: self.kept] for values in found]
            left = np.sort(np.concatenate([g[b] for g, b in zip(groups, best, strict=True)]))
        return Outcome(
            log_likelihood=np.stack([results[index] for index in range(num_candidates)]),
            last_round=last_round,
            num_views=num_views,
        )


class Cost(NamedTuple):
    """What a request takes: rounds, views, and candidates shown in all of them together."""

    num_rounds: int
    num_views: int
    num_shown: int


def cost_of(strategy: Strategy, num_candidates: int) -> Cost:
    """Returns what a request with that many candidates takes.

    Example:
      `cost_of(Groups(size=10), 100)` is 2 rounds, 11 views, 110 candidates.
    """
    rounds = strategy.rounds(num_candidates, "")
    views, sizes, num_rounds = next(rounds), [], 0
    while True:
        num_rounds += 1
        sizes += [len(view) for view in views]
        try:
            views = rounds.send([np.zeros((len(view), 1), np.float32) for view in views])
        except StopIteration:
            return Cost(num_rounds, len(sizes), sum(sizes))


def described(strategy: Strategy) -> dict[str, Any]:
    """Returns name, settings and guarantee of a strategy as JSON values."""
    settings = dataclasses.asdict(strategy)  # type: ignore[call-overload]
    return {
        "strategy": type(strategy).__name__,
        **settings,
        "sure_ranks": strategy.sure_ranks,
    }
