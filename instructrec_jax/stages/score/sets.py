"""The sets that a scoring run scores: requests of a task or of a file, in order, read by shards."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from instructrec_jax.damage import POLICIES, SKIP, Damage, DamagedLineError
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import Variant
from instructrec_jax.instructions.prior import prior_of, shows_candidates
from instructrec_jax.pipeline import request_tokens
from instructrec_jax.pipeline.request_tokens import Record
from instructrec_jax.requests.request_files import RequestFile
from instructrec_jax.requests.request_rows import TEXT_FIELDS
from instructrec_jax.scores.parts import Shard, shards_of
from instructrec_jax.scoring.candidate_views import AllAtOnce, Strategy
from instructrec_jax.stages.score.rounds import PendingRequest, ViewRenderer

logger = logging.getLogger(__name__)
ON_DAMAGE = "ON_DAMAGE"
_Row = TypeVar("_Row")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """How requests become tokens, the same for all sets of a run.

    Attributes:
      feature_lengths: tokens of "inputs" and "targets" (TASK_FEATURE_LENGTHS).
      shard_size: requests of a shard.
      on_damage: "fail" or "skip": what happens to requests that cannot be used.
      candidate_view: which candidates a prompt shows (CANDIDATE_VIEW).
      with_prior: whether candidates are scored under the neutral prompt too (WITH_PRIOR).
    """

    feature_lengths: Mapping[str, int]
    shard_size: int
    on_damage: str
    candidate_view: Strategy = dataclasses.field(default_factory=AllAtOnce)
    with_prior: bool = False

    def __post_init__(self) -> None:
        if self.on_damage not in POLICIES:
            raise UserError(f"{ON_DAMAGE} is {self.on_damage!r}; expected one of {POLICIES}")

    def damage(self) -> Damage:
        """Returns the policy with nothing counted; a set bears any number of bad requests."""
        return Damage(on_damage=self.on_damage, max_damaged=2**63, switch=ON_DAMAGE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestSet:
    """An ordered stream of requests under one template.

    Attributes:
      name: in counts: the task, or the template where the requests come from a file.
      variant: what its instructions are rendered with.
      num_requests: how many there are.
      open: gives the requests from the first one on, not yet parsed: to be passed over cheaply.
      parse: gives the record of a request and its candidates' ids, None for those of the record.
      misfit: gives the error for a request that does not fit, from what rendering says.
      rendering: how they become tokens.
    """

    name: str
    variant: Variant
    num_requests: int
    open: Callable[[], Iterator[Any]]
    parse: Callable[[Any], tuple[Record, np.ndarray | None]]
    misfit: Callable[[Any, UserError], DamagedLineError]
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
        if self.rendering.with_prior and self.variant == request_tokens.INSTRUCTION:
            raise UserError(
                "WITH_PRIOR is True and the requests hold whole instructions, which cannot be said "
                "without preference and intention; give REQUEST_TEMPLATES and texts instead"
            )

    @property
    def template(self) -> str:
        """The set's name in files and rows."""
        return template_name(self.variant)

    @property
    def prompts(self) -> list[Variant]:
        """What every view is rendered with: the template and, where asked for, the prior."""
        return [self.variant, *([prior_of(self.variant)] if self.rendering.with_prior else [])]

    def shards(self) -> list[Shard]:
        """Returns its shards in order."""
        size = self.rendering.shard_size
        return list(shards_of(self.template, num_requests=self.num_requests, size=size))


class SetReader:
    """Prepares shards of a set. It reads forward: shards are best asked for in their order.

    Attributes:
      set: the set.
    """

    def __init__(self, requests: RequestSet) -> None:
        self.set = requests
        self._rows = _Cursor(requests.open)
        self._render: ViewRenderer | None = None

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
        own, damage = self.set, self.set.rendering.damage()
        rows = self._rows.read(shard.numbers)
        if len(rows) < len(shard.numbers):
            raise UserError(
                f"{own.name} has fewer requests than the {own.num_requests} it had when the run "
                "began; do not change a set while it is scored"
            )
        lengths = dict(own.rendering.feature_lengths)
        num_candidates = lengths.pop("candidates", None)
        requests = []
        for row in rows:
            try:
                record, ids = own.parse(row)
            except DamagedLineError as error:
                damage.handle(error)
                continue
            if num_candidates is not None:
                record = request_tokens.with_fewer_candidates(record, num_candidates)
            requests.append(PendingRequest(row, record, ids, own.rendering.candidate_view))
        if self._render is None:
            self._render = ViewRenderer(own.prompts, own.name, lengths, own.misfit)
        return self._render(requests, damage), damage

    def next_round(
        self, requests: Sequence[PendingRequest], damage: Damage
    ) -> list[PendingRequest]:
        """Gives requests that `read` gave the prompts of their next round; any thread may.

        Raises:
          UserError: if one does not fit and the policy is "fail".
        """
        assert self._render is not None
        return self._render(requests, damage)

    def _head(self, number: int) -> list[PendingRequest]:
        numbers = range(min(number, self.set.num_requests))
        return self.read(Shard(template=self.set.template, index=0, numbers=numbers))[0]


def template_name(variant: Variant) -> str:
    """Returns the name of a template in files: "B7.specific"; "instruction" where none is used."""
    whole = request_tokens.INSTRUCTION
    return whole.template.template_id if variant == whole else variant.name


def wording_hash(prompts: Sequence[Variant]) -> str:
    """Returns the sha256 of what templates say, and of what they take for their query."""
    parts = [
        part
        for variant in prompts
        for part in (variant.template.inputs, variant.template.targets, variant.query or "")
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def task_sets(
    tasks: Sequence[str], *, split: str, rendering: Rendering, limit: int | None = None
) -> list[RequestSet]:
    """Returns the sets of registered ranking tasks.

    Args:
      tasks: their names.
      split: "validation" or "test".
      rendering: how their records become tokens.
      limit: requests of each; None for all.
    """
    return [_task_set(task, split, rendering, limit) for task in tasks]


def file_sets(
    file: RequestFile, variants: Sequence[Variant], *, rendering: Rendering, limit: int | None
) -> list[RequestSet]:
    """Returns the sets of a file of requests, one a template, and checks every row.

    Args:
      file: the requests.
      variants: the templates.
      rendering: how they become tokens.
      limit: requests of each set; None for all.

    Raises:
      UserError: for the first row that cannot be used, unless the policy is to skip.
    """
    damage = rendering.damage()
    num_rows = file.survey(damage)
    if damage.on_damage == SKIP and damage.counts:
        logger.info("%s: leaving out %s", file.path, damage.counts)

    def parse(row: Any) -> tuple[Record, np.ndarray]:
        found = file.parse(*row)
        return request_tokens.as_arrays(found.record), found.candidate_ids

    return [
        RequestSet(
            name=template_name(variant),
            variant=variant,
            num_requests=_number(num_rows, limit),
            open=file.rows,
            parse=parse,
            misfit=lambda row, error: file.misfit(row[0], error),
            rendering=rendering,
        )
        for variant in variants
    ]


def request_file(path: str, variants: Sequence[Variant]) -> RequestFile:
    """Returns a file of requests for some templates; nothing of it is read.

    Raises:
      UserError: if there is none.
    """
    if list(variants) == [request_tokens.INSTRUCTION]:
        return RequestFile(path, needs=None)
    needs = frozenset().union(*(variant.needs for variant in variants))
    return RequestFile(path, needs={TEXT_FIELDS[name] for name in needs})


def _task_set(task: str, split: str, rendering: Rendering, limit: int | None) -> RequestSet:
    number = request_tokens.num_task_records(task, split=split)

    def misfit(record: Record, error: UserError) -> DamagedLineError:
        place = f"{task} example {bytes(record['example_id']).decode()}"
        return DamagedLineError(str(error), reason="too_long", place=place)

    return RequestSet(
        name=task,
        variant=request_tokens.task_variant(task, split=split),
        num_requests=_number(number, limit),
        open=lambda: request_tokens.task_records(task, split=split),
        parse=lambda record: (record, None),
        misfit=misfit,
        rendering=rendering,
    )


def _number(there: int, limit: int | None) -> int:
    return there if limit is None else min(there, limit)


class _Cursor(Generic[_Row]):
    """Ranges of a stream that can only be read forward, or anew."""

    def __init__(self, open_stream: Callable[[], Iterator[_Row]]) -> None:
        self._open = open_stream
        self._rows: Iterator[_Row] = iter(())
        self._next: int | None = None  # number of the row that comes next

    def read(self, numbers: range) -> list[_Row]:
        """Returns the rows with these numbers, fewer where the stream ends."""
        if self._next is None or self._next > numbers.start:
            self._rows, self._next = self._open(), 0
        found = []
        while self._next < numbers.stop:
            try:
                row = next(self._rows)
            except StopIteration:
                break
            if self._next >= numbers.start:
                found.append(row)
            self._next += 1
        return found
