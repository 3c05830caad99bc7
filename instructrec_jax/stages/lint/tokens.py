"""What `lint` measures of a sample of every task, as the model gets it: lengths, cuts, losses."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from instructrec_jax import tokenizer
from instructrec_jax.data.columnar import TEST, TRAIN, VALIDATION
from instructrec_jax.instructions.language import Slot, slots_of
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.instructions.render import EVALUATION, render_record, training_draw
from instructrec_jax.instructions.token_budget import MisfitError, TokenRenderer, arrange
from instructrec_jax.pipeline.record_store import as_record
from instructrec_jax.pipeline.registry import InstructionTask
from instructrec_jax.records import InstructionRecord
from instructrec_jax.report.lint_report import TokenSummary
from instructrec_jax.tokenizer import SentencePieceModel

_PERCENTILES = (50, 95, 100)
# The forms of a task and the splits they are read from in earnest, the first that has records.
_TRAINED_ON, _RANKED_IN = (TRAIN, VALIDATION, TEST), (TEST, VALIDATION, TRAIN)


def summarise_tasks(
    tasks: Sequence[InstructionTask],
    vocabulary: SentencePieceModel,
    *,
    feature_lengths: Mapping[str, int],
    max_examples: int,
) -> list[TokenSummary]:
    """Returns what a sample of every task of a dataset holds.

    Every task is read in the form it is trained in, those of the evaluation pool also in the form
    they are ranked in. Records that have what a task needs may be rare: they are looked for once
    for all tasks that need the same.

    Args:
      tasks: those of `inputs` and `targets`, of a dataset of the data_dir in use.
      vocabulary: how to tokenise.
      feature_lengths: tokens of "inputs" and "targets".
      max_examples: size of a sample, the first records in file order; 0 for all examples.
    """
    ranking = [task for task in tasks if task.variant.is_evaluated]
    tallies, groups = list[_Tally](), dict[tuple[str, frozenset[str], str], list[_Tally]]()
    sources = {}
    for of_form, is_grouped, splits in ((tasks, False, _TRAINED_ON), (ranking, True, _RANKED_IN)):
        for task in of_form:
            if split := _first_split(task, splits):
                tally = _Tally(task, split, vocabulary, feature_lengths, is_grouped=is_grouped)
                key = (task.config, task.variant.needs, split)
                groups.setdefault(key, []).append(tally)
                sources[key] = task.source
                tallies.append(tally)
    for key, members in groups.items():
        for row in itertools.islice(sources[key].rows(key[-1]), max_examples or None):
            record = as_record(row)
            for tally in members:
                tally.add(record)
    return [tally.summary() for tally in tallies]


def token_findings(summaries: list[TokenSummary]) -> list[Finding]:
    """Returns what is wrong with the samples of a dataset's tasks, one finding a fault."""
    errors = [
        Finding(severity=Severity.ERROR, subject=summary.task, message=summary.misfit)
        for summary in summaries
        if summary.misfit
    ]
    warnings = {
        "duplicates": "have examples with the instruction and the answer of another one",
        "unknown_tokens": "have tokens that the vocabulary does not know",
    }
    findings: list[Finding] = []
    for name, message in warnings.items():
        shares = {summary.task: summary.shares[name] for summary in summaries}
        findings += _warning(shares, message)
    lost = {
        summary.task: 1 - summary.shares["whole_targets"]
        for summary in summaries
        if summary.num_examples
    }
    message = "have answers that do not read back as written, cut or spelt otherwise"
    return errors + findings + _warning(lost, message)


class _Tally:
    """Counts over the examples of one task in one form."""

    def __init__(
        self,
        task: InstructionTask,
        split: str,
        vocabulary: SentencePieceModel,
        feature_lengths: Mapping[str, int],
        *,
        is_grouped: bool,
    ) -> None:
        self._variant, self._split, self._is_grouped = task.variant, split, is_grouped
        self._renderer = TokenRenderer(
            variant=task.variant,
            vocabulary=vocabulary,
            feature_lengths=feature_lengths,
            task=task.name,
        )
        self._shows_history = Slot.HISTORY in slots_of(task.variant.template.input_segments)
        self._misfit = ""
        self._inputs: list[int] = []
        self._targets: list[int] = []
        self._seen: set[int] = set()
        self._counts = dict.fromkeys(
            (
                *("num_truncated", "num_history", "num_history_dropped", "num_tokens"),
                *("num_unknown", "num_whole_targets", "num_words_cut", "num_titles_cut"),
            ),
            0,
        )

    def add(self, record: InstructionRecord) -> None:
        """Counts the example of a record, unless an earlier one did not fit."""
        if self._misfit:
            return
        draw = EVALUATION
        if self._split == TRAIN and not self._is_grouped:
            draw = training_draw(self._variant, record)
        renderer = self._renderer
        try:
            record, num_titles_cut = arrange(record, renderer.feature_lengths, renderer.vocabulary)
            inputs, num_dropped, num_cut = renderer.instruction(record, draw)
            if self._is_grouped:
                answers = renderer.candidates(record)
                index = record.candidate_ids.index(record.target_id)
                is_whole = self._read(answers[index]) == record.target
            else:
                answer = renderer.answer(record, draw)
                answers, num_cut = [answer.tokens], num_cut + answer.num_words_cut
                expected = render_record(self._variant, record, draw)[1]
                is_whole = self._read(answer.tokens) == expected
        except MisfitError as error:
            self._misfit = str(error)
            return
        self._inputs.append(len(inputs))
        self._targets += map(len, answers)
        self._seen.add(hash((inputs.tobytes(), *(row.tobytes() for row in answers))))
        tokens = np.concatenate([inputs, *answers])
        counts = self._counts
        counts["num_tokens"] += len(tokens)
        counts["num_unknown"] += int((tokens == tokenizer.UNK_ID).sum())
        counts["num_whole_targets"] += is_whole
        counts["num_history"] += len(record.history) if self._shows_history else 0
        counts["num_history_dropped"] += num_dropped
        counts["num_words_cut"] += num_cut
        counts["num_titles_cut"] += num_titles_cut
        counts["num_truncated"] += num_titles_cut + num_dropped + num_cut > 0

    def summary(self) -> TokenSummary:
        """Returns what was counted."""
        return TokenSummary(
            task=self._variant.name,
            is_grouped=self._is_grouped,
            split=self._split,
            slots=tuple(sorted(slots_of(self._variant.template.input_segments))),
            num_examples=len(self._inputs),
            inputs=_percentiles(self._inputs),
            targets=_percentiles(self._targets),
            num_duplicates=len(self._inputs) - len(self._seen),
            misfit=self._misfit,
            **self._counts,
        )

    def _read(self, tokens: np.ndarray) -> str:
        """Returns what tokens stand for."""
        return self._renderer.vocabulary.decode(tokens.tolist())


def _first_split(task: InstructionTask, splits: tuple[str, ...]) -> str | None:
    """Returns the first of the splits in which the task has examples."""
    found = task.splits
    return next((split for split in splits if split in found), None)


def _percentiles(lengths: list[int]) -> tuple[int, ...]:
    """Returns median, 95th percentile and maximum, each a length that occurs."""
    if not lengths:
        return (0,) * len(_PERCENTILES)
    found = np.percentile(lengths, _PERCENTILES, method="higher")
    return tuple(int(value) for value in found)


def _warning(shares: Mapping[str, float], message: str) -> list[Finding]:
    """Returns the finding that some tasks have a fault, and which of them has it most."""
    found = {task: share for task, share in shares.items() if share > 0}
    if not found:
        return []
    worst = max(found, key=lambda task: found[task])
    text = f"{len(found)} tasks {message}; most in {worst}, {found[worst]:.2%}"
    return [Finding(severity=Severity.WARNING, subject="samples", message=text)]
