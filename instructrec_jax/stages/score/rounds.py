"""Requests of a shard on their way through the rounds of their views, all in step."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.damage import Damage, DamagedLineError
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Variant
from instructrec_jax.pipeline.request_tokens import Group, GroupRenderer, Record
from instructrec_jax.scores.parts import ScoredRequest
from instructrec_jax.scoring.candidate_views import Outcome, Strategy
from instructrec_jax.scoring.prefix_trees import TokenRequest

ScoreRequests = Callable[[Sequence[TokenRequest]], list[np.ndarray]]


class PendingRequest:
    """One request whose candidates are being compared.

    Attributes:
      row: the request as its set gave it, for messages.
      record: the same, parsed.
      request_id: names it.
      views: places of the candidates in each prompt of this round.
      prompts: the tokens of this round, for each view those of every variant.
      outcome: None until the last round is scored.
    """

    def __init__(
        self, row: Any, record: Record, candidate_ids: np.ndarray | None, strategy: Strategy
    ) -> None:
        """Begins the first round.

        Args:
          row: the request as its set gave it.
          record: the same, parsed.
          candidate_ids: int64, what the ids of the record are places in; None: they are the ids.
          strategy: decides the views.
        """
        self.row, self.record = row, record
        self.request_id = bytes(record["example_id"]).decode()
        self._ids = candidate_ids
        number = len(record["candidate_ids"])
        self._facts = {name: np.zeros(number, np.int32) for name in ("num_tokens", "num_chars")}
        self._candidate_ids = np.zeros(number, np.int64)
        self._target_index = -1
        self._rounds = strategy.rounds(number, self.request_id)
        self.views = next(self._rounds)
        self.prompts: list[TokenRequest] = []
        self.outcome: Outcome | None = None

    @property
    def scored(self) -> ScoredRequest:
        """The request with its outcome, once the last round is scored."""
        assert self.outcome is not None
        values = self.outcome.log_likelihood
        return ScoredRequest(
            request_id=self.request_id,
            candidate_ids=self._candidate_ids,
            log_likelihood=values[:, 0],
            prior_log_likelihood=values[:, 1] if values.shape[1] > 1 else None,
            last_round=self.outcome.last_round,
            num_views=self.outcome.num_views,
            target_index=self._target_index,
            **self._facts,
        )

    def view_records(self) -> list[Record]:
        """Returns the record once for each view, with the candidates of that view alone."""
        ids = np.asarray(self.record["candidate_ids"])
        titles = np.asarray(self.record["candidates"], object)
        return [
            {**self.record, "candidate_ids": ids[view], "candidates": titles[view]}
            for view in self.views
        ]

    def set_prompts(self, groups: Sequence[Group]) -> None:
        """Takes the tokens of a round, for each view those of every variant."""
        num_variants = len(groups) // len(self.views)
        self.prompts = []
        for index, group in enumerate(groups):
            view, tokens = self.views[index // num_variants], group["candidates"]
            self.prompts.append(
                TokenRequest(
                    request_id=self.request_id,
                    instruction=group["inputs"],
                    candidates=[row[row > 0] for row in tokens],
                )
            )
            ids = group["candidate_ids"]
            self._candidate_ids[view] = ids if self._ids is None else self._ids[ids]
            self._facts["num_tokens"][view] = (tokens > 0).sum(axis=1)
            self._facts["num_chars"][view] = group["candidate_num_chars"]
            if group["target_index"] >= 0:
                self._target_index = int(view[group["target_index"]])

    def take(self, scored: Iterator[np.ndarray]) -> None:
        """Takes the log-likelihoods of its prompts, and goes on to the next round or ends."""
        num_variants = len(self.prompts) // len(self.views)
        found = [np.stack([next(scored) for _ in range(num_variants)], axis=1) for _ in self.views]
        try:
            self.views = self._rounds.send(found)
        except StopIteration as end:
            self.outcome = end.value


class ViewRenderer:
    """Renders the views of requests with some variants; threads may share it."""

    def __init__(
        self,
        variants: Sequence[Variant],
        task: str,
        feature_lengths: Mapping[str, int],
        misfit: Callable[[Any, UserError], DamagedLineError],
    ) -> None:
        """Builds the graphs, which takes a second each.

        Args:
          variants: the prompts that every view becomes.
          task: name for messages.
          feature_lengths: see `GroupRenderer`.
          misfit: gives the error for a row that does not fit, from what rendering says.
        """
        self._renderers = [GroupRenderer(variant, task, feature_lengths) for variant in variants]
        self._misfit = misfit
        self._lock = threading.Lock()

    def __call__(self, requests: Sequence[PendingRequest], damage: Damage) -> list[PendingRequest]:
        """Gives requests the prompts of their round.

        Args:
          requests: any number.
          damage: what happens to those with a view that does not fit.

        Returns:
          Those that have their prompts.
        """
        records = [record for request in requests for record in request.view_records()]
        with self._lock:
            rendered = [render(records) for render in self._renderers]
        groups = iter([group for view in zip(*rendered, strict=True) for group in view])
        ready = []
        for request in requests:
            number = len(request.views) * len(self._renderers)
            own = [next(groups) for _ in range(number)]
            errors = [group for group in own if isinstance(group, UserError)]
            if errors:
                damage.handle(self._misfit(request.row, errors[0]))
            else:
                request.set_prompts([group for group in own if not isinstance(group, UserError)])
                ready.append(request)
        return ready


def decide(
    requests: Sequence[PendingRequest],
    *,
    score: ScoreRequests,
    render: Callable[[Sequence[PendingRequest]], list[PendingRequest]],
) -> list[ScoredRequest]:
    """Scores round after round, each of all requests at once, until all are decided.

    Args:
      requests: with the prompts of their first round.
      score: gives the log-likelihoods of requests, float32 [c] each.
      render: gives requests the prompts of their next round; those that it leaves out are dropped.

    Returns:
      What is decided, in the order of the requests.
    """
    waiting = list(requests)
    while waiting:
        scored = iter(score([prompt for request in waiting for prompt in request.prompts]))
        for request in waiting:
            request.take(scored)
        waiting = [request for request in waiting if request.outcome is None]
        waiting = render(waiting) if waiting else []
    return [request.scored for request in requests if request.outcome is not None]
