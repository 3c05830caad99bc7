"""The systems of a report: their scores of both splits, checked against artefact A, as ranks."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.ranking import PMI
from instructrec_jax.records import CandidateList
from instructrec_jax.report.results import template_order
from instructrec_jax.scores.importers import read_any_scores
from instructrec_jax.scores.parts import Scores
from instructrec_jax.stages.baseline.scores import NO_PROMPT

SPLITS = ("validation", "test")
_NO_SETTINGS = {"strategy", "sure_ranks"}
# What a number needs beside it to mean something: names in the report, and in the metadata of E.
_FACTS = {
    "written_by": "system",
    "ranked_by": "by",
    "prompt_version": "prompt_version",
    "date": "date",
    "instances": "instances",
    "unusable_answers": "unusable",
    "checkpoint_step": "checkpoint_step",
    "checkpoint_sha256": "checkpoint",
    "ensemble": "ensemble",
    "teacher": "teacher",
    "TASK_FEATURE_LENGTHS": "feature_lengths",
    "parts": "parts",
    "score_command": "command",
}
_NEEDS = {"mean": "num_tokens", "char": "num_chars", PMI: "prior_log_likelihood"}
Known = Mapping[tuple[str, str], CandidateList]  # by split and example id


def known_lists(data: PreparedData) -> Known:
    """Returns the candidate lists of A by split and example id."""
    return {(example.split, example.example_id): example for example in data.candidates}


class ScoredSplit:
    """One system's scores of one split by template, checked against the candidates of A."""

    def __init__(self, scores: Scores, split: str, known: Known, *, name: str) -> None:
        """Groups the scores.

        Args:
          scores: of any number of templates.
          split: "validation" or "test".
          known: the candidate lists of A.
          name: of the system.
        """
        self.metadata = scores.metadata
        self.what = f"the {split} scores of {name}"
        self._scores, self._split, self._known = scores, split, known
        self._rows: dict[str, list[int]] = {}
        for row, template_id in enumerate(scores.template_id):
            self._rows.setdefault(template_id, []).append(row)
        self._examples: dict[str, list[CandidateList]] = {}

    def templates(self) -> dict[str, list[str]]:
        """Returns the templates of each scenario, A9 before A10."""
        found: dict[str, list[str]] = {}
        for template_id in sorted(self._rows, key=template_order):
            found.setdefault(self._scores.scenarios[template_id], []).append(template_id)
        return found

    def scenario(self, template_id: str) -> str:
        """Returns the scenario of a template."""
        return self._scores.scenarios[template_id]

    def told(self, template_id: str) -> Mapping[str, Any]:
        """Returns all that the scores of a template tell of where they come from."""
        return self._scores.told[template_id]

    def examples(self, template_id: str) -> list[CandidateList]:
        """Returns the candidate lists of a template's examples, in order of the scores.

        Raises:
          UserError: if the template was not scored, or on other candidates.
        """
        if template_id not in self._rows:
            raise UserError(
                f"{self.what} lack template {template_id}, which validation chose; "
                "score the same templates on both splits"
            )
        if template_id not in self._examples:
            found = [self._example(row) for row in self._rows[template_id]]
            if len({example.example_id for example in found}) != len(found):
                raise UserError(f"{self.what} hold an example of {template_id} twice; score again")
            self._examples[template_id] = found
        return self._examples[template_id]

    def normalisers(self, template_id: str, asked: Sequence[str] | None) -> Sequence[str]:
        """Returns which normalisers a template has: scores of no tokens are taken as they are.

        Args:
          template_id: one that was scored.
          asked: the user's choice; None: all there are, the model's own first.
        """
        columns = {name: self._column(column, template_id) for name, column in _NEEDS.items()}
        has = {name: column is not None for name, column in columns.items()}
        if not has["mean"]:
            return ("sum",)
        if asked is not None:
            return asked
        own = self.metadata.get("normaliser")
        found = [name for name in ranking.NORMALISERS if has.get(name, True)]
        return sorted(found, key=lambda name: name != own)

    def ranks_and_ties(
        self, template_id: str, normaliser: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the target's rank in every example of a template, and how many are equal."""
        values = self._values(template_id, normaliser)
        last_round = self._column("last_round", template_id)
        assert last_round is not None
        return ranking.ranks_and_ties(values, self.target_index(template_id), last_round)

    def ranked(
        self, template_id: str, normaliser: str, rows: NDArray[np.int64]
    ) -> Iterator["RankedExample"]:
        """Yields examples of a template by their numbers, with the order of their candidates."""
        values, target_index = self._values(template_id, normaliser), self.target_index(template_id)
        for row in rows:
            number = self._rows[template_id][row]
            ids = np.asarray(self._scores.candidate_ids[number])
            own, is_target = values[row][: len(ids)], np.arange(len(ids)) == target_index[row]
            # By the last key first; lexsort sorts upwards.
            keys = (ids, is_target, -own, -np.asarray(self._scores.last_round[number]))
            yield RankedExample(
                example=self.examples(template_id)[row],
                candidate_ids=ids,
                log_likelihood=np.asarray(self._scores.log_likelihood[number]),
                values=own,
                order=np.lexsort(keys),
                target_index=int(target_index[row]),
            )

    def table(self, template_id: str, normaliser: str) -> "RankedTable":
        """Returns what the candidates of a template's examples are ranked by, side by side."""
        ids = [self._scores.candidate_ids[row] for row in self._rows[template_id]]
        last_round = self._column("last_round", template_id)
        log_likelihood = self._column("log_likelihood", template_id, fill=-np.inf)
        assert last_round is not None and log_likelihood is not None
        return RankedTable(
            candidate_ids=ranking.stack_rows(ids, -1),
            log_likelihood=log_likelihood,
            values=self._values(template_id, normaliser),
            last_round=last_round,
            target_index=self.target_index(template_id),
        )

    def _values(self, template_id: str, normaliser: str) -> NDArray[np.float32]:
        """Returns what the candidates of a template's examples are ranked by, [n, longest]."""
        self.examples(template_id)
        log_likelihood = self._column("log_likelihood", template_id, fill=-np.inf)
        assert log_likelihood is not None
        prior = self._column("prior_log_likelihood", template_id) if normaliser == PMI else None
        if normaliser == PMI and prior is None:
            raise UserError(
                f"normaliser {PMI!r} needs scores WITH_PRIOR = True, which {self.what} by "
                f"{template_id} are not; score again into another folder"
            )
        return ranking.normalise(
            log_likelihood,
            self._column("num_tokens", template_id),
            normaliser,
            num_chars=self._column("num_chars", template_id),
            prior_log_likelihood=prior,
        )

    def target_index(self, template_id: str) -> NDArray[np.int64]:
        """Returns the target's index among the candidates in every example of a template."""
        ids, rows = self._scores.candidate_ids, self._rows[template_id]
        lists = zip(rows, self.examples(template_id), strict=True)
        return np.array([np.flatnonzero(ids[row] == e.target_id)[0] for row, e in lists], np.int64)

    @property
    def view(self) -> Mapping[str, Any]:
        """Which candidates each prompt showed: strategy, settings and the ranks it is sure of."""
        return self.metadata.get("candidate_view", NO_PROMPT)

    def view_facts(self, template_id: str) -> str:
        """Returns how the candidates of a template's examples were compared, for the protocol."""
        if self.view == NO_PROMPT:
            return "no prompt"
        number = float(np.asarray(self._scores.num_views)[self._rows[template_id]].mean())
        settings = [f"{name} {self.view[name]}" for name in sorted(self.view.keys() - _NO_SETTINGS)]
        return f"{', '.join([self.view['strategy'], *settings])}; {number:g} prompts an example"

    def unsure(self, template_id: str) -> list[str]:
        """Returns the metrics whose K is larger than the ranks that the views make sure of."""
        sure = self.view["sure_ranks"]
        if sure is None or not self.has_rounds(template_id):
            return []
        return [name for name in ranking.METRIC_NAMES if int(name.split("@")[1]) > sure]

    def has_rounds(self, template_id: str) -> bool:
        """Returns whether some candidates of a template's examples took part in a later round."""
        return any(self._scores.last_round[row].max() > 1 for row in self._rows[template_id])

    def shows_all(self) -> bool:
        """Returns whether each prompt shows all candidates, in their order."""
        return self.view["strategy"] == "AllAtOnce"

    def _column(self, field: str, template_id: str, fill: float = 0) -> NDArray | None:
        """Returns a field of a template, [n, longest], `fill` at padding; None if rows lack it."""
        values = getattr(self._scores, field)
        found = [values[row] for row in self._rows[template_id]]
        return None if any(row is None for row in found) else ranking.stack_rows(found, fill)

    def _example(self, row: int) -> CandidateList:
        """Returns the candidate list that a row was scored on."""
        example_id = self._scores.example_id[row]
        example = self._known.get((self._split, example_id))
        if example is None:
            raise UserError(
                f"{self.what} hold example {example_id!r}, which is no {self._split} "
                "example of the prepared folder; name the folder they were made from"
            )
        scored = tuple(int(item) for item in self._scores.candidate_ids[row])
        target = int(self._scores.target_index[row])
        has_other_target = target >= 0 and scored[target : target + 1] != (example.target_id,)
        if sorted(scored) != sorted(example.candidate_ids) or has_other_target:
            raise UserError(
                f"{self.what} rank example {example_id!r} among other candidates than "
                "the prepared folder lists; build and score again from that folder"
            )
        return example


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RankedExample:
    """The candidates of one example as a system ranks them.

    Attributes:
      example: the candidate list of A.
      candidate_ids: int64 [c], in the order in which they were scored.
      log_likelihood: float32 [c], as scored.
      values: float32 [c], under the normaliser.
      order: int64 [c], indices of the candidates, best first; of equal ones the target is the last
        and the others are sorted by id.
      target_index: index of the target among the candidates.
    """

    example: CandidateList
    candidate_ids: NDArray[np.int64]
    log_likelihood: NDArray[np.float32]
    values: NDArray[np.float32]
    order: NDArray[np.int64]
    target_index: int

    @property
    def rank(self) -> int:
        """Rank of the target, 1 = best."""
        return int(np.flatnonzero(self.order == self.target_index)[0]) + 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RankedTable:
    """The candidates of n examples and what a system ranks them by; -1 and -inf are padding.

    Attributes:
      candidate_ids: int64 [n, longest].
      log_likelihood: float32 [n, longest], as scored.
      values: float32 [n, longest], under the normaliser.
      last_round: int32 [n, longest]; a higher one is better whatever the values are.
      target_index: int64 [n].
    """

    candidate_ids: NDArray[np.int64]
    log_likelihood: NDArray[np.float32]
    values: NDArray[np.float32]
    last_round: NDArray[np.int32]
    target_index: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """What a system ranked in one scenario and split, by the template and normaliser it chose.

    Attributes:
      name: of the system.
      scores: of the split.
      template: id of the template.
      normaliser: what it ranks by.
      rows: int64 [n], numbers of the examples among the template's.
    """

    name: str
    scores: ScoredSplit
    template: str
    normaliser: str
    rows: NDArray[np.int64]

    @property
    def examples(self) -> list[CandidateList]:
        """The candidate lists of its examples."""
        own = self.scores.examples(self.template)
        return [own[row] for row in self.rows]

    def ranks_and_ties(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns [n] the target's ranks, and how many other candidates are equal to it."""
        rank, num_tied = self.scores.ranks_and_ties(self.template, self.normaliser)
        return rank[self.rows], num_tied[self.rows]

    @functools.cached_property
    def table(self) -> RankedTable:
        """Its examples side by side."""
        found = self.scores.table(self.template, self.normaliser)
        return RankedTable(**{name: column[self.rows] for name, column in vars(found).items()})

    def ranked(self) -> Iterator[RankedExample]:
        """Yields its examples."""
        return self.scores.ranked(self.template, self.normaliser, self.rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """A system whose scores were given.

    Attributes:
      name: in the report.
      validation: chooses template and normaliser; None for a system with one way to rank.
      test: gives the numbers.
    """

    name: str
    validation: ScoredSplit | None
    test: ScoredSplit

    def templates(self) -> dict[str, list[str]]:
        """Returns the templates of each scenario to choose among, A9 before A10."""
        return (self.validation or self.test).templates()

    def facts(self, template_id: str) -> dict[str, Any]:
        """Returns what the numbers of a template depend on, as far as its scores tell."""
        told = self.test.told(template_id)
        return {name: told[key] for name, key in _FACTS.items() if told.get(key) is not None}


def splits_of(paths: Sequence[Path]) -> Sequence[str]:
    """Returns the splits that a system's scores are of: validation and test, or test."""
    return SPLITS[-len(paths) :]


def both_splits(paths: Sequence[Path | str]) -> list[Path]:
    """Returns the paths of a system's scores; one folder of both splits stands for its two."""
    found = [Path(path) for path in paths]
    inner = [found[0] / split for split in SPLITS]
    return inner if len(found) == 1 and all(path.is_dir() for path in inner) else found


def read_system(name: str, paths: Sequence[Path], known: Known) -> System:
    """Reads the scores of a system.

    Args:
      name: in the report.
      paths: of the validation and of the test split's scores, or of the latter alone.
      known: the candidate lists of A.

    Raises:
      UserError: if they cannot be read, or are not of both splits by the same checkpoint.
    """
    scores = [read_any_scores(path) for path in paths]
    splits = splits_of(paths)
    for split, path, own in zip(splits, paths, scores, strict=True):
        if own.metadata.get("split") not in (split, None):  # None: whoever wrote them does not say
            raise UserError(
                f"{path} holds scores of the {own.metadata['split']} split, not of {split}; "
                "were the folders exchanged?"
            )
    *others, test = (
        ScoredSplit(own, split, known, name=name) for split, own in zip(splits, scores, strict=True)
    )
    if not others:
        return System(name=name, validation=None, test=test)
    (validation,) = others
    if validation.view != test.view:
        raise UserError(
            f"{paths[0]} was scored with CANDIDATE_VIEW {dict(validation.view)} and {paths[1]} "
            f"with {dict(test.view)}; score both splits with the same"
        )
    steps = [own.metadata.get("checkpoint_step") for own in scores]
    if scores[0].metadata.get("checkpoint") != scores[1].metadata.get("checkpoint"):
        raise UserError(
            f"{paths[0]} was scored with checkpoint step {steps[0]} and {paths[1]} with another of "
            f"step {steps[1]}; score both splits with the same checkpoint"
        )
    return System(name=name, validation=validation, test=test)
