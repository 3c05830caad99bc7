"""The scores of one split as a report reads them: by template, checked against artefact A."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.ranking import PMI, normalise
from instructrec_jax.records import CandidateList
from instructrec_jax.report import evaluation
from instructrec_jax.scores.parts import Scores

_NO_SETTINGS = {"strategy", "sure_ranks"}


def ballots_of(scores: Scores) -> Mapping[str, Any]:
    """Returns which candidates each prompt of some scores showed; T5X shows all."""
    metadata = scores.metadata
    told = metadata.get("candidate_view") or metadata.get("ballots") or {"sure_ranks": None}
    is_whole = told.get("strategy", "Whole") == "Whole"  # the name of it until parts had views
    return {**told, "strategy": "AllAtOnce"} if is_whole else told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ballots:
    """How the candidates of a template's examples were compared.

    Attributes:
      description: for the protocol.
      show_all: whether each prompt shows all candidates, in their order.
      sure_ranks: ranks that the draw of groups cannot spoil; None for all.
    """

    description: str
    show_all: bool
    sure_ranks: int | None

    def is_sure(self, metric: str) -> bool:
        """Returns whether a metric's K is among the ranks that are sure."""
        return self.sure_ranks is None or int(metric.split("@")[1]) <= self.sure_ranks


class ScoredSplit:
    """One split's scores by template, checked against the candidates of A."""

    def __init__(
        self,
        scores: Scores,
        split: str,
        known: Mapping[tuple[str, str], CandidateList],
    ):
        self._scores = scores
        self._split = split
        self._known = known
        self.rows: dict[str, list[int]] = {}
        for row, template_id in enumerate(scores.template_id):
            self.rows.setdefault(template_id, []).append(row)

    def examples(self, template_id: str) -> list[CandidateList]:
        """Returns the candidate lists of a template's examples, in order of the scores."""
        if template_id not in self.rows:
            raise UserError(
                f"the {self._split} scores lack template {template_id}, which validation chose; "
                "score the same templates on both splits"
            )
        found = [self._example(row) for row in self.rows[template_id]]
        if len({example.example_id for example in found}) != len(found):
            raise UserError(
                f"the {self._split} scores hold an example of {template_id} twice; score again"
            )
        return found

    def rank(self, template_id: str, normaliser: str) -> NDArray[np.int64]:
        """Returns the target's rank in every example of a template."""
        self.examples(template_id)
        rows = self.rows[template_id]
        log_likelihood = evaluation.stack_rows(
            [self._scores.log_likelihood[row] for row in rows], -np.inf
        )
        values = normalise(
            log_likelihood,
            self._stacked("num_tokens", rows),
            normaliser,
            num_chars=self._stacked("num_chars", rows),
            prior_log_likelihood=self._prior(template_id) if normaliser == PMI else None,
        )
        last_round = self._stacked("last_round", rows)
        return ranking.ranks(values, self.target_index(template_id), last_round)

    def target_index(self, template_id: str) -> NDArray[np.int64]:
        """Returns the target's place among the candidates in every example of a template."""
        return np.asarray(self._scores.target_index, dtype=np.int64)[self.rows[template_id]]

    def ballots(self, template_id: str) -> Ballots:
        """Returns how the candidates of a template's examples were compared."""
        told = ballots_of(self._scores)
        rows = self.rows[template_id]
        has_rounds = any(self._scores.last_round[row].max() > 1 for row in rows)
        number = float(np.asarray(self._scores.num_ballots)[rows].mean())
        settings = [f"{name} {told[name]}" for name in sorted(told.keys() - _NO_SETTINGS)]
        name = ", ".join([told["strategy"], *settings])
        return Ballots(
            description=f"{name}; {number:g} prompts an example",
            show_all=told["strategy"] == "AllAtOnce",
            sure_ranks=told["sure_ranks"] if has_rounds else None,
        )

    def _prior(self, template_id: str) -> NDArray[np.float32]:
        """Returns the log-likelihoods under the prompt that tells nothing of the user."""
        found = [self._scores.prior_log_likelihood[row] for row in self.rows[template_id]]
        values = [prior for prior in found if prior is not None]
        if len(values) < len(found):
            raise UserError(
                f"normaliser {PMI!r} needs scores WITH_PRIOR = True, which the {self._split} "
                f"scores of {template_id} are not; score again into another folder"
            )
        return evaluation.stack_rows(values, 0)

    def _stacked(self, field: str, rows: Sequence[int]) -> NDArray[np.int32]:
        """Returns a field of some rows, [n, longest], 0 at padding."""
        values = getattr(self._scores, field)
        return evaluation.stack_rows([values[row] for row in rows], 0)

    def _example(self, row: int) -> CandidateList:
        """Returns the candidate list that a row was scored on."""
        example_id = self._scores.example_id[row]
        example = self._known.get((self._split, example_id))
        if example is None:
            raise UserError(
                f"the {self._split} scores hold example {example_id!r}, which is no {self._split} "
                "example of the prepared folder; name the folder they were made from"
            )
        scored = tuple(int(item) for item in self._scores.candidate_ids[row])
        target = int(self._scores.target_index[row])
        same_target = 0 <= target < len(scored) and scored[target] == example.target_id
        if sorted(scored) != sorted(example.candidate_ids) or not same_target:
            raise UserError(
                f"the {self._split} scores rank example {example_id!r} among other candidates than "
                "the prepared folder lists; build and score again from that folder"
            )
        return example
