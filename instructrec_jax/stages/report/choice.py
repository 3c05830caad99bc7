"""What each system of a report chooses on validation: a template and a normaliser."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data import prepared as prepared_files
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.records import CandidateList
from instructrec_jax.report import results
from instructrec_jax.report.results import Choice
from instructrec_jax.scores.importers import read_any_scores
from instructrec_jax.settings import OneOf, check_fields
from instructrec_jax.stages.report.systems import Run, ScoredSplit, System, known_lists

_logger = logging.getLogger(__name__)
VALIDATION = "validation"
FUSE_BY = {  # what a fused system ranks by, and what a report calls it
    VALIDATION: "",
    "log_probability": "mean log-probability",
    "rank": "mean rank",
    "reciprocal_rank": "reciprocal ranks",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
    """What each system chooses among on validation.

    Attributes:
      normalisers: what candidates may be ranked by: sum, mean (per token), char (per character),
        pmi (needs scores WITH_PRIOR). By default all that the scores allow, first the one that the
        model was trained to be ranked by, which wins where others do not differ.
      fuse: systems to add, each made of others, such as model+cooccurrence or
        both=model+cooccurrence.
      fuse_by: what they are ranked by: "validation", the weighted sum or the mean that does best
        there; or the mean of "log_probability" among the candidates, of "rank", or of
        "reciprocal_rank", in which all parts count alike and which need no validation scores.
    """

    normalisers: Sequence[str] | None = None
    fuse: Sequence[str] = ()
    fuse_by: Annotated[str, OneOf(tuple(FUSE_BY))] = VALIDATION

    def __post_init__(self) -> None:
        check_fields(self)
        if self.normalisers is not None:
            ranking.checked_normalisers(self.normalisers)

    def told(self) -> dict[str, Any]:
        """Returns the settings as manifests hold them."""
        names = self.normalisers
        found: dict[str, Any] = {"normalisers": "all" if names is None else list(names)}
        if self.fuse:
            found |= {"fuse": list(self.fuse)}
        return found | ({} if self.fuse_by == VALIDATION else {"fuse_by": self.fuse_by})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A system in one scenario, with what it chose on validation.

    Attributes:
      system: the system.
      choices: what it chose among; none where it had no choice.
      chosen: by which it ranks.
      parts: names of the systems that it is fused from.
    """

    system: System
    choices: Sequence[Choice]
    chosen: Choice
    parts: Sequence[str] = ()

    @property
    def examples(self) -> list[CandidateList]:
        """The test examples that it scored."""
        return self.system.test.examples(self.chosen.template_id)

    def run(self, scores: ScoredSplit, rows: NDArray[np.int64]) -> Run:
        """Returns what it ranked of some examples of a split."""
        template, normaliser = self.chosen.template_id, self.chosen.normaliser
        return Run(
            name=self.system.name,
            scores=scores,
            template=template,
            normaliser=normaliser,
            rows=rows,
        )

    def validation_run(self) -> Run | None:
        """Returns what it ranked of the validation split, if its scores were given."""
        if (scores := self.system.validation) is None:
            return None
        return self.run(scores, np.arange(len(scores.examples(self.chosen.template_id))))


def entry_of(
    system: System, scenario: str, templates: Sequence[str], names: Sequence[str] | None
) -> Entry:
    """Has a system choose its template and normaliser on validation, if there is a choice."""
    if system.validation is not None:
        choices = _choices(system.validation, templates, names)
        return Entry(system=system, choices=choices, chosen=results.choose(choices))
    if len(templates) > 1:
        raise UserError(
            f"{system.name} has scores of {', '.join(templates)} in {scenario}, among which "
            "validation has to choose: give NAME=VALIDATION:TEST, or scores of one template"
        )
    (template,) = templates
    normaliser, *_ = system.test.normalisers(template, names)
    only = Choice(template_id=template, normaliser=normaliser, num_examples=0, metrics={})
    return Entry(system=system, choices=[], chosen=only)


def entries_by_scenario(
    systems: Sequence[System], names: Sequence[str] | None
) -> dict[str, list[Entry]]:
    """Returns the systems of each scenario that any of them scored, each with its choice.

    Args:
      systems: in the order in which they are to stand.
      names: normalisers to choose among; None: all that the scores allow.
    """
    found: dict[str, list[Entry]] = {}
    for system in systems:
        for scenario, templates in system.templates().items():
            found.setdefault(scenario, []).append(entry_of(system, scenario, templates, names))
    return found


def shared_examples(
    scenario: str, entries: Sequence[Entry]
) -> tuple[list[CandidateList], list[NDArray[np.int64]]]:
    """Returns the test examples that all systems scored, and each system's rows of them.

    Args:
      scenario: for messages.
      entries: the systems.

    Raises:
      UserError: if there is none.
    """
    indices = [
        {example.example_id: row for row, example in enumerate(entry.examples)} for entry in entries
    ]
    shared = [e for e in entries[0].examples if all(e.example_id in index for index in indices)]
    names = ", ".join(entry.system.name for entry in entries)
    if not shared:
        raise UserError(f"{names} scored no {scenario} example in common; score the same split")
    for entry in entries:
        if left_out := len(entry.examples) - len(shared):
            _logger.warning(
                "%s: %d examples of %s are left out, which another system did not score",
                *(scenario, left_out, entry.system.name),
            )
    rows = [np.array([index[e.example_id] for e in shared], dtype=np.int64) for index in indices]
    return shared, rows


def chosen_templates(prepared_dir: Path | str, scores: Path | str) -> dict[str, str]:
    """Returns by scenario the template that a report chooses, which the test split then needs.

    Args:
      prepared_dir: artefact A.
      scores: of the validation split, see `scores.importers`.

    Raises:
      UserError: if they cannot be read, or are not of the candidates of A.
    """
    data = prepared_files.read_prepared(prepared_dir)
    found = read_any_scores(Path(scores))
    validation = ScoredSplit(found, "validation", known_lists(data), name=str(scores))
    return {
        scenario: results.choose(_choices(validation, templates, None)).template_id
        for scenario, templates in validation.templates().items()
    }


def _choices(
    validation: ScoredSplit, templates: Iterable[str], names: Sequence[str] | None
) -> list[Choice]:
    """Returns how each template did on validation under each normaliser."""
    choices = []
    for template in templates:
        for name in validation.normalisers(template, names):
            rank, _ = validation.ranks_and_ties(template, name)
            choices.append(
                Choice(
                    template_id=template,
                    normaliser=name,
                    num_examples=len(rank),
                    metrics=ranking.evaluate(rank),
                )
            )
    return choices
