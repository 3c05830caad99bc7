"""What a scoring run scores: sets of requests, read by shards and turned into prompts."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from instructrec_jax.damage import SKIP, Damage, DamagedLineError
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Variant, plain_title
from instructrec_jax.instructions.render import prior_of, shows_candidates, wording_hash
from instructrec_jax.instructions.token_budget import (
    Arranged,
    MisfitError,
    TokenRenderer,
    arrange,
    with_candidates,
)
from instructrec_jax.records import InstructionRecord
from instructrec_jax.requests.request_files import INSTRUCTION, RequestFile
from instructrec_jax.requests.row_files import RowFile
from instructrec_jax.scores.parts import ScoredRequest, Shard, shards_of
from instructrec_jax.scoring.candidate_views import AllAtOnce, Outcome, Strategy
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.tokenizer import SentencePieceModel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """How requests become tokens, the same for all sets of a run.

    Attributes:
      vocabulary: the SentencePiece model.
      feature_lengths: tokens of "inputs" and "targets" (TASK_FEATURE_LENGTHS).
      shard_size: requests of a shard.
      on_damage: "fail" or "skip": what happens to requests that cannot be used.
      candidate_view: which candidates a prompt shows (CANDIDATE_VIEW).
      with_prior: whether candidates are scored under the neutral prompt too (WITH_PRIOR).
      switch: the macro or flag that sets `on_damage`, for messages.
    """

    vocabulary: SentencePieceModel
    feature_lengths: Mapping[str, int]
    shard_size: int
    on_damage: str
    candidate_view: Strategy = dataclasses.field(default_factory=AllAtOnce)
    with_prior: bool = False
    switch: str = "ON_DAMAGE"

    def damage(self) -> Damage:
        """Returns the policy with nothing counted; a set may have any number of bad requests."""
        return Damage(on_damage=self.on_damage, max_damaged=2**63, switch=self.switch)


class Requests(Protocol):
    """An ordered stream of requests: a `RequestFile` or a `_TaskRecords`."""

    def rows(self) -> Iterator[Any]:
        """Yields the requests from the first one on, not yet parsed: cheap to pass over."""

    def parse(self, row: Any) -> InstructionRecord:
        """Returns a request of `rows`; raises DamagedLineError if it cannot be used."""

    def misfit(self, row: Any, error: MisfitError) -> DamagedLineError:
        """Returns the error for a request that cannot become tokens, with its place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestSet:
    """Requests under one template.

    Attributes:
      name: in counts: the task, or the template where the requests come from a file.
      variant: what its instructions are rendered with.
      num_requests: how many there are.
      requests: where they come from.
      rendering: how they become tokens.
    """

    name: str
    variant: Variant
    num_requests: int
    requests: Requests
    rendering: Rendering

    def __post_init__(self) -> None:
        """Checks that the settings make sense with the template.

        Raises:
          UserError: if there is nothing to shuffle, or no prompt to compare with.
        """
        name = type(self.rendering.candidate_view).__name__
        if name != AllAtOnce.__name__ and not shows_candidates(self.variant):
            raise UserError(
                f"CANDIDATE_VIEW is {name} and template {self.template} shows no candidates, so "
                "any number of them fits beside its prompt; use candidate_views.AllAtOnce, or a "
                "template that shows them, such as A7"
            )
        if self.rendering.with_prior and self.variant == INSTRUCTION:
            raise UserError(
                "WITH_PRIOR is True and the requests hold whole instructions, which cannot be said "
                "without preference and intention; give REQUEST_TEMPLATES and texts instead"
            )

    @property
    def template(self) -> str:
        """The set's name in files and rows."""
        return self.variant.name

    @property
    def prompts(self) -> list[Variant]:
        """What every view is rendered with: the template and, where asked for, the prior."""
        return [self.variant, *([prior_of(self.variant)] if self.rendering.with_prior else [])]

    def shards(self) -> list[Shard]:
        """Returns its shards in order."""
        size = self.rendering.shard_size
        return list(shards_of(self.template, num_requests=self.num_requests, size=size))

    def wording_hash(self) -> str:
        """Returns the sha256 of what its prompts say, and of what they take for their query."""
        return wording_hash(self.prompts)


def task_sets(
    tasks: Sequence[str], *, split: str, rendering: Rendering, limit: int | None
) -> list[RequestSet]:
    """Returns the sets of the ranking tasks that tasks and mixtures stand for.

    Args:
      tasks: registered tasks or mixtures.
      split: "validation" or "test".
      rendering: how their records become tokens.
      limit: requests of each; None for all.

    Raises:
      UserError: if one is not registered, or ranks no candidates.
    """
    from instructrec_jax.pipeline import registry  # SeqIO, which requests from a file do without

    found = []
    for name in registry.evaluated_tasks(tasks, split=split):
        task = registry.instruction_task(name)
        number = task.source.num_input_examples(split)
        found.append(
            RequestSet(
                name=name,
                variant=task.variant,
                num_requests=number if limit is None else min(number, limit),
                requests=_TaskRecords(name, task.source, split),
                rendering=rendering,
            )
        )
    return found


class _TaskRecords:
    """The records that a ranking task renders, in file order."""

    def __init__(self, task: str, source: Any, split: str) -> None:
        self._task, self._source, self._split = task, source, split

    def rows(self) -> Iterator[Mapping[str, Any]]:
        return self._source.rows(self._split)

    def parse(self, row: Mapping[str, Any]) -> InstructionRecord:
        from instructrec_jax.pipeline.record_store import as_record

        return as_record(row)

    def misfit(self, row: Mapping[str, Any], error: MisfitError) -> DamagedLineError:
        place = f"{self._task} example {row['example_id'].decode()}"
        return DamagedLineError(str(error), reason=error.reason, place=place)


def file_sets(
    file: RowFile, variants: Sequence[Variant], *, rendering: Rendering, limit: int | None
) -> list[RequestSet]:
    """Returns the sets of a file of requests, one a template, and checks every row.

    Args:
      file: the rows of the requests.
      variants: the templates, or `INSTRUCTION` alone.
      rendering: how they become tokens.
      limit: requests of each set; None for all.

    Raises:
      UserError: for the first row that cannot be used, unless the policy is to skip.
    """
    damage, requests = rendering.damage(), RequestFile(file, variants)
    num_rows = requests.survey(damage)
    if damage.on_damage == SKIP and damage.counts:
        logger.info("%s: leaving out %s", file.name, damage.counts)
    return [
        RequestSet(
            name=variant.name,
            variant=variant,
            num_requests=num_rows if limit is None else min(num_rows, limit),
            requests=requests,
            rendering=rendering,
        )
        for variant in variants
    ]


class PendingRequest:
    """One request whose candidates are being compared.

    Attributes:
      row: the request as its set gave it, for messages.
      record: the same, parsed, as the run shows it.
      num_titles_cut: titles of it that the run shows cut.
      candidates: tokens of each candidate, int32 [t].
      views: indices of the candidates in each prompt of this round.
      prompts: the tokens of this round, for each view those of every variant.
      num_history_dropped: history items that did not fit into one of them.
      outcome: None until the last round is scored.
    """

    def __init__(
        self,
        row: Any,
        arranged: Arranged,
        candidates: Sequence[np.ndarray],
        strategy: Strategy,
    ) -> None:
        """Begins the first round."""
        self.row, self.candidates = row, candidates
        self.record, self.num_titles_cut = arranged
        self._rounds = strategy.rounds(len(candidates), self.record.example_id)
        self.views = next(self._rounds)
        self.prompts: list[TokenRequest] = []
        self.num_history_dropped = 0
        self.outcome: Outcome | None = None

    @property
    def scored(self) -> ScoredRequest:
        """The request with its outcome, once the last round is scored."""
        assert self.outcome is not None
        record, values = self.record, self.outcome.log_likelihood
        is_known = record.target_id in record.candidate_ids
        return ScoredRequest(
            request_id=record.example_id,
            candidate_ids=np.array(record.candidate_ids, np.int64),
            log_likelihood=values[:, 0],
            prior_log_likelihood=values[:, 1] if values.shape[1] > 1 else None,
            num_tokens=np.array([len(tokens) for tokens in self.candidates], np.int32),
            num_chars=np.array([len(plain_title(t)) for t in record.candidates], np.int32),
            last_round=self.outcome.last_round,
            num_views=self.outcome.num_views,
            target_index=record.candidate_ids.index(record.target_id) if is_known else -1,
        )

    @property
    def has_equal_candidates(self) -> bool:
        """Whether two candidates have the same tokens, so that no model tells them apart."""
        return len({tokens.tobytes() for tokens in self.candidates}) < len(self.candidates)

    def render(self, renderers: Sequence[TokenRenderer]) -> None:
        """Makes the prompts of this round.

        Raises:
          MisfitError: if one does not fit.
        """
        self.prompts = []
        for view in self.views:
            shown = with_candidates(self.record, view.tolist())
            candidates = [self.candidates[index] for index in view]
            for renderer in renderers:
                tokens, num_dropped, _ = renderer.instruction(shown)
                self.num_history_dropped = max(self.num_history_dropped, num_dropped)
                self.prompts.append(
                    TokenRequest(
                        request_id=shown.example_id, instruction=tokens, candidates=candidates
                    )
                )

    def take(self, scored: Iterator[np.ndarray]) -> None:
        """Takes the log-likelihoods of its prompts, and goes on to the next round or ends."""
        num_variants = len(self.prompts) // len(self.views)
        found = [np.stack([next(scored) for _ in range(num_variants)], axis=1) for _ in self.views]
        try:
            self.views = self._rounds.send(found)
        except StopIteration as end:
            self.outcome = end.value


class SetReader:
    """Prepares shards of a set. It reads forward: shards are best asked for in their order.

    Attributes:
      set: the set.
    """

    def __init__(self, requests: RequestSet) -> None:
        self.set = requests
        self._rows: Iterator[Any] = iter(())
        self._next: int | None = None  # number of the row that comes next
        self._renderers = [
            TokenRenderer(
                variant=variant,
                vocabulary=requests.rendering.vocabulary,
                feature_lengths=requests.rendering.feature_lengths,
                task=requests.name,
            )
            for variant in requests.prompts
        ]

    def first(self, num_prompts: int) -> list[PendingRequest]:
        """Returns the first requests of the set, about as many as make so many prompts.

        Those that cannot be used are left out.
        """
        each = sum(len(request.prompts) for request in self._head(1))
        return self._head(max(num_prompts // max(each, 1), 1))

    def read(self, shard: Shard) -> tuple[list[PendingRequest], Damage]:
        """Returns the requests of a shard in their first round, and which were left out.

        Raises:
          UserError: if one cannot be used and the policy is "fail", or the set has shrunk.
        """
        own, rendering = self.set, self.set.rendering
        damage = rendering.damage()
        rows = self._read_rows(shard.numbers)
        if len(rows) < len(shard.numbers):
            raise UserError(
                f"{own.name} has fewer requests than the {own.num_requests} it had when the run "
                "began; do not change a set while it is scored"
            )
        ready = []
        for row in rows:
            try:
                arranged = arrange(
                    own.requests.parse(row), rendering.feature_lengths, rendering.vocabulary
                )
                candidates = self._renderers[0].candidates(arranged.record)
            except DamagedLineError as error:
                damage.handle(error)
            except MisfitError as error:
                damage.handle(own.requests.misfit(row, error))
            else:
                ready.append(PendingRequest(row, arranged, candidates, rendering.candidate_view))
        return self.next_round(ready, damage), damage

    def next_round(
        self, requests: Sequence[PendingRequest], damage: Damage
    ) -> list[PendingRequest]:
        """Returns the requests that have the prompts of their next round; any thread may call it.

        Args:
          requests: any number.
          damage: what happens to those with a view that does not fit.

        Raises:
          UserError: if one does not fit and the policy is "fail".
        """
        ready = []
        for request in requests:
            try:
                request.render(self._renderers)
            except MisfitError as error:
                damage.handle(self.set.requests.misfit(request.row, error))
            else:
                ready.append(request)
        return ready

    def _head(self, number: int) -> list[PendingRequest]:
        numbers = range(min(number, self.set.num_requests))
        return self.read(Shard(template=self.set.template, index=0, numbers=numbers))[0]

    def _read_rows(self, numbers: range) -> list[Any]:
        """Returns the rows with these numbers, fewer where the stream ends."""
        if self._next is None or self._next > numbers.start:
            self._rows, self._next = self.set.requests.rows(), 0
        passed = itertools.islice(self._rows, numbers.stop - self._next)
        found = [row for number, row in enumerate(passed, self._next) if number >= numbers.start]
        self._next = numbers.stop
        return found
