"""Systems fused from others: weighted sums of their scores, or means that need no weights.

Each part's scores are divided by their spread on validation, so that weights compare what is alike
and a part that is sure of an example still counts for more there. The weights, in tenths, are
chosen on validation too, as a template is. Log-probabilities among the candidates, ranks and
reciprocal ranks are means of parts that count alike, as those of seeds do.

Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion Outperforms Condorcet and Individual
Rank Learning Methods" (SIGIR 2009), with its constant of 60.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError, unknown_name
from instructrec_jax.metrics import ranking
from instructrec_jax.report import results
from instructrec_jax.report.results import Choice
from instructrec_jax.scores.parts import NO_QUERY, ScoredRequest, Scores
from instructrec_jax.stages.report.choice import FUSE_BY, VALIDATION, Entry
from instructrec_jax.stages.report.systems import Known, Run, ScoredSplit, System

SIGN = "+"  # between the names of the parts
_STEPS = 10
_MAX_WEIGHTED = 4
_RANK_CONSTANT = 60
_MEANS = tuple(name for name in FUSE_BY if name != VALIDATION)
_PerExample = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_Mix = NDArray[np.float64] | str  # weights, or the label of a mean


class FusedName(NamedTuple):
    """The name of a fused system, the systems that it is made of, and what it ranks by."""

    name: str
    parts: Sequence[str]
    by: str


def parts_of(given: str, systems: Sequence[str], by: str = VALIDATION) -> FusedName:
    """Returns what a fused system is called and made of.

    Args:
      given: such as "model+cooccurrence", or "both=model+cooccurrence" with a name of its own.
      systems: names of the systems whose scores were given.
      by: a name of `FUSE_BY`.

    Raises:
      UserError: if there are less than two parts, more than four to weigh, one twice, or one
        without scores, or if the name is taken.
    """
    name, _, listed = given.rpartition("=")
    parts, most = listed.split(SIGN), _MAX_WEIGHTED if by == VALIDATION else len(systems)
    if not 2 <= len(parts) <= most or len(set(parts)) < len(parts):
        raise UserError(
            f"--fuse is {given!r}; expected 2 to {most} different systems, such as "
            f"model{SIGN}cooccurrence"
        )
    for part in parts:
        if part not in systems:
            raise unknown_name(f"system of --fuse {given}", part, systems)
    if name in systems:
        raise UserError(f"--fuse is {given!r}, but {name!r} has scores; give it another name")
    return FusedName(name or listed, parts, by)


def fused_entry(
    name: str, scenario: str, parts: Sequence[Entry], known: Known, *, by: str = VALIDATION
) -> Entry:
    """Returns the system that some others make together in one scenario.

    Args:
      name: of the system.
      scenario: such as "sequential".
      parts: the others, each with the template and normaliser that it chose.
      known: the candidate lists of A.
      by: a name of `FUSE_BY`.

    Raises:
      UserError: if validation has to choose and one has no scores of it, one ranked its candidates
        in several rounds, or they share no example.
    """
    of_validation = [run for part in parts if (run := part.validation_run()) is not None]
    if by == VALIDATION and len(of_validation) < len(parts):
        lacking = next(p.system.name for p in parts if p.system.validation is None)
        raise UserError(
            f"--fuse {name} chooses weights on validation, of which {lacking} has no scores; give "
            f"{lacking}=VALIDATION:TEST, or --fuse_by={_MEANS[0]}"
        )
    splits: dict[str, _Aligned] = {}
    if len(of_validation) == len(parts):
        splits["validation"] = _Aligned.of(of_validation, name)
    of_test = [part.run(part.system.test, np.arange(len(part.examples))) for part in parts]
    splits["test"] = _Aligned.of(of_test, name)
    names = [part.system.name for part in parts]
    mixes: dict[str, _Mix] = {FUSE_BY[by]: FUSE_BY[by]}
    if by == VALIDATION:
        mixes = dict(_mixes(names, splits["validation"].spreads()))
    choices = _choices(splits.get("validation"), mixes)
    chosen = results.choose(choices) if choices else _only(FUSE_BY[by])
    family, _, query = scenario.partition(".")
    told = {
        "system": name,
        "family": family,
        "query": query or NO_QUERY,
        "parts": ", ".join(
            f"{part.system.name} ({part.chosen.template_id}, {part.chosen.normaliser})"
            for part in parts
        ),
    }

    def split_of(split: str) -> ScoredSplit:
        requests = splits[split].requests(mixes[chosen.template_id])
        scores = Scores.of({chosen.template_id: requests}, {chosen.template_id: told})
        return ScoredSplit(scores, split, known, name=name)

    validation = split_of("validation") if "validation" in splits else None
    system = System(name=name, validation=validation, test=split_of("test"))
    return Entry(system=system, choices=choices, chosen=chosen, parts=names)


def _choices(validation: "_Aligned | None", mixes: Mapping[str, _Mix]) -> list[Choice]:
    """Returns how each mix did on validation."""
    if validation is None:
        return []
    return [
        Choice(
            template_id=label,
            normaliser="sum",
            num_examples=len(validation.examples),
            metrics=ranking.evaluate(ranking.ranks(validation.mixed(mix), validation.target_index)),
        )
        for label, mix in mixes.items()
    ]


def _only(label: str) -> Choice:
    return Choice(template_id=label, normaliser="sum", num_examples=0, metrics={})


def _mixes(names: Sequence[str], spreads: NDArray[np.float64]) -> Iterator[tuple[str, _Mix]]:
    """Yields the mixes to choose among: a label, and what each part is multiplied by.

    The label has tenths of the spread of each part, float64 [parts]. Means come last.
    """
    for tenths in itertools.product(range(_STEPS, -1, -1), repeat=len(names)):
        if sum(tenths) == _STEPS:
            shown = [
                f"{tenth / _STEPS:g} {name}" for tenth, name in zip(tenths, names, strict=True)
            ]
            yield " + ".join(shown), np.array(tenths) / _STEPS / spreads
    for label in _PER_EXAMPLE:
        yield label, label


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Aligned:
    """The scores of several systems for the examples they share.

    Attributes:
      examples: n ids.
      candidate_ids: n arrays int64 [c], ascending.
      centred: float64 [parts, n, longest], of mean 0 in each row, -inf at padding.
      alike: likewise, by label what the mean of is taken.
      target_index: int64 [n].
    """

    examples: Sequence[str]
    candidate_ids: Sequence[NDArray[np.int64]]
    centred: NDArray[np.float64]
    alike: Mapping[str, NDArray[np.float64]]
    target_index: NDArray[np.int64]

    @classmethod
    def of(cls, runs: Sequence[Run], name: str) -> "_Aligned":
        """Returns what the runs have in common."""
        for run in runs:
            if run.scores.has_rounds(run.template):
                raise UserError(
                    f"--fuse {name}: {run.name} ranked its candidates in several rounds, whose "
                    "scores do not compare; score with candidate_views.AllAtOnce"
                )
        values = [_values_by_example(run) for run in runs]
        shared = [example for example in values[0] if all(example in own for own in values)]
        if not shared:
            raise UserError(f"--fuse {name}: its parts scored no example in common")
        first = {found.example.example_id: found.example for found in runs[0].ranked()}
        ids = [np.sort(np.asarray(first[example].candidate_ids, np.int64)) for example in shared]

        def stacked(make: _PerExample) -> NDArray[np.float64]:
            rows = [[make(own[example]) for example in shared] for own in values]
            return np.stack([ranking.stack_rows(own, -np.inf) for own in rows])

        targets = [first[example].target_id for example in shared]
        indices = [np.searchsorted(own, target) for own, target in zip(ids, targets, strict=True)]
        return cls(
            examples=shared,
            candidate_ids=ids,
            centred=stacked(_centred),
            alike={label: stacked(make) for label, make in _PER_EXAMPLE.items()},
            target_index=np.array(indices, np.int64),
        )

    def spreads(self) -> NDArray[np.float64]:
        """Returns the mean deviation of each part's scores of an example, [parts]; 1 where all are
        equal."""
        deviations = np.ma.masked_invalid(self.centred).std(axis=2).mean(axis=1)
        return np.where(deviations > 0, deviations, 1.0)

    def mixed(self, mix: _Mix) -> NDArray[np.float64]:
        """Returns the fused scores, [n, longest]; by weights, or by the label of a mean."""
        if isinstance(mix, str):
            return self.alike[mix].mean(axis=0)
        used = np.flatnonzero(mix)  # 0 times padding would be no number
        return np.einsum("p,pnc->nc", mix[used], self.centred[used])

    def requests(self, mix: _Mix) -> list[ScoredRequest]:
        """Returns the fused scores as rows of artefact E."""
        rows = zip(
            self.examples, self.candidate_ids, self.mixed(mix), self.target_index, strict=True
        )
        return [
            ScoredRequest(
                request_id=example,
                candidate_ids=ids,
                log_likelihood=row[: len(ids)].astype(np.float32),
                target_index=int(target),
            )
            for example, ids, row, target in rows
        ]


def _values_by_example(run: Run) -> dict[str, NDArray[np.float64]]:
    """Returns the scores of each example, in ascending order of its candidates' ids."""
    return {
        found.example.example_id: found.values[np.argsort(found.candidate_ids)].astype(np.float64)
        for found in run.ranked()
    }


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values with mean 0; what is not finite is taken for the least."""
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min(initial=0.0))
    return values - values.mean()


def _log_probabilities(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns values as natural logs of probabilities that add up to 1 among the candidates."""
    centred = _centred(values)
    return centred - np.logaddexp.reduce(centred)


def _ranks_below_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return -ranking.ranks_of_all(values).astype(np.float64)


def _reciprocal_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (_RANK_CONSTANT + ranking.ranks_of_all(values))


_PER_EXAMPLE: Mapping[str, _PerExample] = {
    FUSE_BY["log_probability"]: _log_probabilities,
    FUSE_BY["rank"]: _ranks_below_zero,
    FUSE_BY["reciprocal_rank"]: _reciprocal_ranks,
}
