"""What `lint` measures of a sample of every task, as the model gets it: lengths, cuts, losses."""

from collections.abc import Iterator, Mapping

import numpy as np

from instructrec_jax import tokenizer
from instructrec_jax.data.columnar import TEST, TRAIN, VALIDATION
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.language import (
    QUERY_FIELDS,
    Query,
    Slot,
    Variant,
    plain_title,
    slots_of,
)
from instructrec_jax.instructions.lint import Finding, Severity
from instructrec_jax.instructions.render import Draw, render_record
from instructrec_jax.pipeline import registry, vocabulary
from instructrec_jax.pipeline.loader import Batch
from instructrec_jax.pipeline.registry import GROUPED, InstructionTask
from instructrec_jax.pipeline.samples import Sample, samples
from instructrec_jax.records import InstructionRecord
from instructrec_jax.report.lint_report import TokenSummary

_PERCENTILES = (50, 95, 100)
# The forms of a task and the splits they are read from in earnest, the first that has records.
_TRAINED_ON, _RANKED_IN = (TRAIN, VALIDATION, TEST), (TEST, VALIDATION, TRAIN)


def summarise_tasks(
    dataset: str, *, feature_lengths: Mapping[str, int], max_examples: int
) -> list[TokenSummary]:
    """Returns what a sample of every task of a dataset holds, read through its SeqIO pipeline.

    Every task is read in the form it is trained in, those of the evaluation pool also in the form
    they are ranked in.

    Args:
      dataset: name of a registered dataset of the data_dir in use.
      feature_lengths: tokens of "inputs" and "targets".
      max_examples: size of a sample; 0 for all examples.
    """
    tasks = registry.instruction_tasks(dataset)
    ranking = [
        found
        for task in tasks
        if task.variant.is_evaluated
        and isinstance(found := registry.get(f"{task.name}.{GROUPED}"), InstructionTask)
    ]
    summaries = []
    for forms, splits in ((tasks, _TRAINED_ON), (ranking, _RANKED_IN)):
        found = {}
        for split in splits:
            of_split = [task for task in forms if _first_split(task, splits) == split]
            for task, sample in samples(
                of_split, split=split, feature_lengths=feature_lengths, max_examples=max_examples
            ):
                found[task.name] = summarise(task, sample, split=split)
        summaries += [found[task.name] for task in forms if task.name in found]
    return summaries


def summarise(task: InstructionTask, sample: Sample, *, split: str) -> TokenSummary:
    """Returns what a sample holds.

    Args:
      task: the task of the sample.
      sample: its records and examples.
      split: where they are from.
    """
    tally = _Tally(task.variant, is_grouped=task.name.endswith(f".{GROUPED}"))
    misfit = ""
    try:
        for record, example in sample:
            tally.add(record, example)
    except UserError as error:
        misfit = str(error)
    return tally.summary(split, misfit)


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
    """Counts over the examples of one task."""

    def __init__(self, variant: Variant, *, is_grouped: bool) -> None:
        self._variant, self._is_grouped = variant, is_grouped
        self._shows_history = Slot.HISTORY in slots_of(variant.template.input_segments)
        self._words = vocabulary.CorpusVocabulary()
        self._inputs: list[int] = []
        self._targets: list[int] = []
        self._seen: set[int] = set()
        self._counts = dict.fromkeys(
            (
                *("num_truncated", "num_history", "num_history_dropped", "num_tokens"),
                *("num_unknown", "num_whole_targets", "num_words_cut"),
            ),
            0,
        )

    def add(self, record: InstructionRecord, example: Batch) -> None:
        """Counts one example and the record it was made from."""
        inputs = example["inputs"]
        answers = _rows(example["candidates"]) if self._is_grouped else [example["targets"]]
        self._inputs.append(len(inputs))
        self._targets += map(len, answers)
        self._seen.add(hash((inputs.tobytes(), *(row.tobytes() for row in answers))))
        tokens = np.concatenate([inputs, *answers])
        counts = self._counts
        counts["num_tokens"] += len(tokens)
        counts["num_unknown"] += int((tokens == tokenizer.UNK_ID).sum())
        counts["num_whole_targets"] += self._is_target_whole(record, example, answers)
        counts["num_history"] += len(record.history) if self._shows_history else 0
        num_dropped, num_cut = int(example["num_history_dropped"]), int(example["num_words_cut"])
        counts["num_history_dropped"] += num_dropped
        counts["num_words_cut"] += num_cut
        counts["num_truncated"] += num_dropped + num_cut > 0

    def summary(self, split: str, misfit: str) -> TokenSummary:
        """Returns what was counted."""
        return TokenSummary(
            task=self._variant.name,
            is_grouped=self._is_grouped,
            split=split,
            slots=tuple(sorted(slots_of(self._variant.template.input_segments))),
            num_examples=len(self._inputs),
            inputs=_percentiles(self._inputs),
            targets=_percentiles(self._targets),
            num_duplicates=len(self._inputs) - len(self._seen),
            misfit=misfit,
            **self._counts,
        )

    def _is_target_whole(
        self, record: InstructionRecord, example: Batch, answers: list[np.ndarray]
    ) -> bool:
        """Returns whether the answer's tokens read back as what was rendered."""
        if self._is_grouped:
            place = int(example["target_index"])
            return place >= 0 and self._read(answers[place]) == plain_title(record.target)
        return self._read(answers[0]) in set(_possible_answers(self._variant, record))

    def _read(self, tokens: np.ndarray) -> str:
        """Returns what tokens stand for."""
        return self._words.decode(tokens[tokens != tokenizer.PAD_ID].tolist())


def _possible_answers(variant: Variant, record: InstructionRecord) -> Iterator[str]:
    """Yields every answer that a draw may lead to."""
    slots = slots_of(variant.template.target_segments)
    if slots == {Slot.TARGET} and variant.template.names_an_item:
        yield plain_title(record.target)
        return
    texts = record.preference if Slot.PREFERENCE in slots else ()
    if Slot.QUERY in slots and variant.query not in (None, Query.SPECIFIC):
        texts = getattr(record, QUERY_FIELDS[variant.query])
    for text in range(max(1, len(texts))):
        for candidate in range(len(record.candidates) if Slot.ANSWER in slots else 1):
            yield render_record(variant, record, Draw(text=text, candidate=candidate))[1]


def _first_split(task: InstructionTask, splits: tuple[str, ...]) -> str | None:
    """Returns the first of the splits in which the task has examples."""
    found = task.splits
    return next((split for split in splits if split in found), None)


def _rows(candidates: np.ndarray) -> list[np.ndarray]:
    """Returns the tokens of each candidate, without padding."""
    return [row[row != tokenizer.PAD_ID] for row in candidates]


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
