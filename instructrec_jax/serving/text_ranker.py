"""A request of texts -> tokens, and its log-likelihoods -> ranked candidates.

Requests are read, cut and rendered as `instructrec score --model` does, so their numbers are the
same.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructrec_jax.instructions.language import Variant, plain_title
from instructrec_jax.instructions.task_modules import ranking_variant
from instructrec_jax.instructions.token_budget import TokenRenderer, arrange
from instructrec_jax.records import InstructionRecord
from instructrec_jax.requests.request_files import (
    INSTRUCTION,
    TEXT_FIELDS,
    RequestFile,
    fitting_template,
)
from instructrec_jax.requests.row_files import SingleRow
from instructrec_jax.scores.parts import ScoredRequest, score_rows
from instructrec_jax.scores.ranked_files import Row, ranked_rows
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.seeds import stable_seed
from instructrec_jax.tokenizer import SentencePieceModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request that is ready to be scored.

    Attributes:
      record: as it was given, without the candidates that it excludes.
      shown: as the model sees it, its titles plain and cut.
      tokens: its instruction and its candidates.
      template: what wrote the instruction.
      num_history_hidden: items of its history that the instruction does not show.
      num_titles_cut: titles that are shown cut.
    """

    record: InstructionRecord
    shown: InstructionRecord
    tokens: TokenRequest
    template: str
    num_history_hidden: int
    num_titles_cut: int


class TextRanker:
    """What turns texts into token requests, and back; threads may share it."""

    def __init__(
        self, vocabulary: SentencePieceModel, lengths: Mapping[str, int], *, task_module: str
    ) -> None:
        """Makes a ranker.

        Args:
          vocabulary: the SentencePiece model.
          lengths: feature lengths; "candidates" is no limit here, all candidates are ranked.
          task_module: module that declares the templates.
        """
        self.lengths = {name: n for name, n in lengths.items() if name != "candidates"}
        self.vocabulary, self._module = vocabulary, task_module
        self._variant = functools.lru_cache(functools.partial(ranking_variant, task_module))

    def check_template(self, name: str) -> None:
        """Checks a template's name.

        Raises:
          UserError: if the task module has no such template, or it ranks no candidates.
        """
        self._variant(name)

    def cell(self, name: str) -> str:
        """Returns the paper's cell of a template, such as "<P1,I1,T3>"."""
        return self._variant(name).cell

    def chosen_template(
        self, templates: Sequence[str], values: Mapping[str, Any], unit: str
    ) -> str | None:
        """Returns the template of a user, of those that show no more than a request holds.

        Args:
          templates: to choose from.
          values: of the request.
          unit: whose it is; equal ones get the same of the same templates.

        Returns:
          None where no template suits.
        """
        filled = {name for name, value in values.items() if value}
        suiting = [
            name
            for name in templates
            if {TEXT_FIELDS[need] for need in self._variant(name).needs} <= filled
        ]
        if not suiting:
            return None
        return suiting[stable_seed("template", *suiting, unit) % len(suiting)]

    def prepare(self, values: Mapping[str, Any], *, template: str | None = None) -> Prepared:
        """Returns a request as tokens.

        Args:
          values: by the fields of a file of requests, see `requests.request_files`.
          template: what writes the instruction; None: one that suits the texts.

        Raises:
          UserError: if the request cannot be used.
        """
        row = SingleRow(values)
        name = template or fitting_template(row)
        variant: Variant = self._variant(name) if name else INSTRUCTION
        record = RequestFile(row, [variant]).parse((1, values))
        shown, num_titles_cut = arrange(record, self.lengths, self.vocabulary)
        renderer = TokenRenderer(
            variant=variant,
            vocabulary=self.vocabulary,
            feature_lengths=self.lengths,
            task=variant.name,
        )
        candidates = renderer.candidates(shown)
        tokens, num_dropped, _ = renderer.instruction(shown)
        return Prepared(
            record=record,
            shown=shown,
            tokens=TokenRequest(
                request_id=record.example_id, instruction=tokens, candidates=candidates
            ),
            template=variant.name,
            num_history_hidden=len(record.history) - len(shown.history) + num_dropped,
            num_titles_cut=num_titles_cut,
        )

    def ranked(
        self, prepared: Prepared, log_likelihood: np.ndarray, *, normaliser: str
    ) -> list[Row]:
        """Returns the candidates of a request, best first.

        Args:
          prepared: from `prepare`.
          log_likelihood: float32 [c], natural log.
          normaliser: what they are ranked by.

        Raises:
          UserError: if a log-likelihood is not a number.
        """
        record, candidates = prepared.record, prepared.tokens.candidates
        scored = ScoredRequest(
            request_id=record.example_id,
            candidate_ids=np.array(record.candidate_ids, np.int64),
            log_likelihood=log_likelihood,
            num_tokens=np.array([len(tokens) for tokens in candidates], np.int32),
            num_chars=np.array([len(plain_title(t)) for t in prepared.shown.candidates], np.int32),
        )
        (row,) = score_rows(prepared.template, [scored], normaliser=normaliser)
        titles = dict(zip(record.candidate_ids, record.candidates, strict=True))
        return ranked_rows(row, titles, normaliser=normaliser)

    def instruction_text(self, prepared: Prepared) -> str:
        """Returns the instruction as the model reads it, pieces joined."""
        return self.vocabulary.decode(prepared.tokens.instruction[:-1].tolist())
