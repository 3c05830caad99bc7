"""The stage `inspect`: examples of a task as the model reads them, in words and in tokens."""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instructrec_jax.data.columnar import TRAIN
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.token_budget import TokenRenderer, arrange
from instructrec_jax.settings import Count, Natural, check_arguments, check_fields
from instructrec_jax.stages.run_data import RunData, dataset_of, plain_data
from instructrec_jax.tokenizer import SentencePieceModel

if TYPE_CHECKING:
    from instructrec_jax.pipeline.registry import InstructionTask

_WIDTH, _INDENT = 100, "    "


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """One example of a task.

    Attributes:
      example_id: of its record; "" where a SeqIO task from elsewhere has none.
      inputs: the instruction, decoded from its tokens.
      targets: the answer, decoded from its tokens.
      num_input_tokens: EOS included.
      num_target_tokens: EOS included.
      num_history_dropped: history items left out to keep the token budget.
      num_titles_cut: titles of its history and its candidates that are cut.
      num_words_cut: words taken from a title or a text to keep the budget.
    """

    example_id: str
    inputs: str
    targets: str
    num_input_tokens: int
    num_target_tokens: int
    num_history_dropped: int
    num_titles_cut: int
    num_words_cut: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownRun:
    """The run whose examples are shown.

    Attributes:
      data: its records, tasks, feature lengths and vocabulary.
      seed: of the order and the draws of training (RANDOM_SEED).
      num_candidates: candidates of a training example (`TrainSettings.num_candidates`).
    """

    data: RunData
    seed: int = 0
    num_candidates: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """How long a shown example may be.

    Attributes:
      input_tokens: most tokens of an instruction; by default the run's, without one no limit.
      target_tokens: most tokens of an answer, likewise.
    """

    input_tokens: Count | None = None
    target_tokens: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def inspect(
    task: str,
    *,
    data_dir: Path | str | None = None,
    split: str = "train",
    num_examples: Count = 3,
    numbers: Sequence[Natural] = (),
    limits: TokenLimits | None = None,
    task_module: str | None = None,
    run: Callable[[], ShownRun] | None = None,
) -> list[RenderedExample]:
    """Renders the first examples of a task or mixture as a run reads them.

    Of the training split these are the first that training reads with the run's seed: as pairs, or
    of a `.grouped` one as rankings, which a listwise objective reads. Of the others they
    are the first in file order, as `score` and `eval` read them.

    Args:
      task: its name, such as "ml_100k.A7". A mixture may hold SeqIO tasks from elsewhere.
      data_dir: output folder of `build`; by default the run's.
      split: "train", "validation" or "test".
      num_examples: examples to show, at least 1.
      numbers: examples of training to show in place of the first, by their place in its order, as
        messages and incidents.jsonl of a run name them.
      limits: of tokens; by default the run's, without one none.
      task_module: module that registers the tasks; by default the run's, else the shipped one.
      run: returns the run that reads the examples; without it they are read without limits.

    Returns:
      The examples, for `as_text`.

    Raises:
      UserError: if the task, its data or the split is missing, or a number is impossible.
    """
    check_arguments(inspect, locals())
    limits = limits or TokenLimits()
    if numbers and split != TRAIN:
        raise UserError(
            f"--numbers are places in the order of training, but --split is {split!r}; leave one "
            "of the two out"
        )
    if run is None and data_dir is None:
        raise UserError("neither --data_dir nor --gin_file is given; name the output of `build`")
    # Only now: the flags of `inspect` do without TensorFlow and SeqIO.
    from instructrec_jax.pipeline import record_store

    if data_dir is not None:
        record_store.use_data_dir(data_dir)
        record_store.check_dataset(dataset_of(task))
    shown = run() if run else ShownRun(data=plain_data(str(data_dir), task))
    most = {"inputs": limits.input_tokens, "targets": limits.target_tokens}
    given = {side: number for side, number in most.items() if number is not None}
    data = dataclasses.replace(
        shown.data,
        data_dir=str(data_dir or shown.data.data_dir),
        module=task_module or shown.data.module,
        feature_lengths={**shown.data.feature_lengths, **given},
    )
    words = data.open(task)
    stream = _examples(task, split, dataclasses.replace(shown, data=data), words, numbers)
    number = len(numbers) or num_examples
    return [_rendered(example, words) for example in itertools.islice(stream, number)]


def _examples(
    task: str, split: str, run: ShownRun, words: SentencePieceModel, numbers: Sequence[int]
) -> Iterator[Mapping[str, Any]]:
    """Returns the examples as the run reads them; of training all, or those of some numbers."""
    from instructrec_jax.pipeline import loader, registry

    name = task.removesuffix(f".{registry.RANK}")
    if split != TRAIN:
        name = name.removesuffix(f".{registry.GROUPED}")
    provider, lengths = registry.get_for(split, name), run.data.feature_lengths
    if split == TRAIN:
        return loader.training_examples(
            name,
            feature_lengths={**lengths, "candidates": run.num_candidates},
            seed=run.seed,
            numbers=numbers or None,
        )
    if isinstance(provider, registry.InstructionTask):
        return _evaluated_examples(provider, split, lengths, words)
    return loader.examples(name, split=split, feature_lengths=lengths)


def _evaluated_examples(
    task: "InstructionTask", split: str, lengths: Mapping[str, int], words: SentencePieceModel
) -> Iterator[Mapping[str, Any]]:
    """Yields the examples of a task of ours as `score` reads them, named as by `loader`."""
    renderer = TokenRenderer(
        variant=task.variant, vocabulary=words, feature_lengths=lengths, task=task.name
    )
    for record in task.records(split):
        record, num_titles_cut = arrange(record, lengths, words)
        inputs, targets = renderer.instruction(record), renderer.answer(record)
        yield {
            "inputs": inputs.tokens,
            "targets": targets.tokens,
            "num_history_dropped": inputs.num_history_dropped,
            "num_titles_cut": num_titles_cut,
            "num_words_cut": inputs.num_words_cut + targets.num_words_cut,
            "example_id": record.example_id.encode(),
        }


def as_text(examples: Sequence[RenderedExample], task: str) -> str:
    """Returns examples of a task as a person reads them, with what was counted at the end."""
    shown = [
        _example_text(f"{task}, example {example.example_id or number}", example)
        for number, example in enumerate(examples, start=1)
    ]
    return "\n".join([*shown, _counts_text(examples)])


def _rendered(example: Mapping[str, Any], words: SentencePieceModel) -> RenderedExample:
    """Returns an example in words."""
    if "candidates" in example:
        targets = example["candidates"][example["target_index"]]
        targets = targets[: np.count_nonzero(targets)]
    else:
        targets = example["targets"]
    return RenderedExample(
        example_id=bytes(example["example_id"]).decode(),
        inputs=words.decode(example["inputs"].tolist()),
        targets=words.decode(targets.tolist()),
        num_input_tokens=len(example["inputs"]),
        num_target_tokens=len(targets),
        num_history_dropped=int(example["num_history_dropped"]),
        num_titles_cut=int(example["num_titles_cut"]),
        num_words_cut=int(example["num_words_cut"]),
    )


def _example_text(name: str, example: RenderedExample) -> str:
    """Returns an example as a person reads it."""
    note = f"{example.num_input_tokens} tokens"
    if example.num_history_dropped:
        note += f", {example.num_history_dropped} of the oldest history items dropped"
    if example.num_titles_cut:
        note += f", {example.num_titles_cut} titles cut"
    if example.num_words_cut:
        note += f", {example.num_words_cut} words cut"
    lines = (
        name,
        f"  instruction ({note}):",
        _wrapped(example.inputs),
        f"  answer ({example.num_target_tokens} tokens):",
        _wrapped(example.targets),
    )
    return "\n".join(lines)


def _counts_text(examples: Sequence[RenderedExample]) -> str:
    """Returns what was read, in two lines."""
    if not examples:
        return "no example"
    inputs = [example.num_input_tokens for example in examples]
    targets = [example.num_target_tokens for example in examples]
    dropped = [example.num_history_dropped for example in examples]
    return (
        f"{len(examples)} examples: {min(inputs)}-{max(inputs)} tokens asked, "
        f"{min(targets)}-{max(targets)} answered\nhistory dropped in "
        f"{sum(number > 0 for number in dropped)} ({sum(dropped)} items), titles cut in "
        f"{sum(example.num_titles_cut > 0 for example in examples)}, words cut in "
        f"{sum(example.num_words_cut > 0 for example in examples)}"
    )


def _wrapped(text: str) -> str:
    """Returns a text in indented lines that fit a terminal, broken at blanks alone."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
