"""The stage `inspect`: examples of a task as the model reads them, in words and in tokens."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec_jax.data.columnar import TRAIN
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.render import EVALUATION, training_draw
from instructrec_jax.instructions.token_budget import TokenRenderer
from instructrec_jax.manifest import read_manifest
from instructrec_jax.stages.run_data import VOCABULARY_FILE, dataset_of
from instructrec_jax.tokenizer import SentencePieceModel, load_vocabulary

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
      num_words_cut: words taken from a title or a text to keep it.
    """

    example_id: str
    inputs: str
    targets: str
    num_input_tokens: int
    num_target_tokens: int
    num_history_dropped: int
    num_words_cut: int


def inspect(
    task: str,
    *,
    data_dir: Path | str,
    split: str = "train",
    num_examples: int = 3,
    input_tokens: int | None = None,
    target_tokens: int | None = None,
    task_module: str = "tasks.mixtures",
) -> list[RenderedExample]:
    """Renders the first examples of a task or mixture.

    Args:
      task: its name, such as "ml_100k.A7"; the other forms of a task show the same text. A mixture
        may hold SeqIO tasks from elsewhere.
      data_dir: output folder of `build`.
      split: "train", "validation" or "test".
      num_examples: examples to show, at least 1.
      input_tokens: most tokens of an instruction; no limit without it.
      target_tokens: most tokens of an answer; no limit without it.
      task_module: module that registers the tasks.

    Returns:
      The examples, for `as_text`.

    Raises:
      UserError: if the task, its data or the split is missing, or a number is impossible.
    """
    lengths = {"inputs": input_tokens, "targets": target_tokens}
    for name, value in (
        ("num_examples", num_examples),
        ("input_tokens", input_tokens),
        ("target_tokens", target_tokens),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name}={value}; ask for at least 1")
    # Only now: the flags of `inspect` do without TensorFlow and SeqIO.
    from instructrec_jax.pipeline import loader, record_store, registry, vocabulary

    dataset = dataset_of(task)
    registry.import_task_module(task_module, dataset)
    record_store.use_data_dir(data_dir)
    record_store.check_dataset(dataset)
    folder = Path(data_dir) / dataset
    # A model that `build` was given is T5's, which leaves its sentinel ids to its readers.
    is_given = "vocabulary" in read_manifest(folder).inputs
    extra_ids = vocabulary.T5_EXTRA_IDS if is_given else 0
    vocabulary.use_vocabulary(folder / VOCABULARY_FILE, extra_ids=extra_ids)
    name = task.removesuffix(f".{registry.GROUPED}").removesuffix(f".{registry.RANK}")
    limits = {side: number for side, number in lengths.items() if number is not None}
    words = load_vocabulary(folder / VOCABULARY_FILE, extra_ids=extra_ids)
    provider = registry.get_for(split, name)
    stream = (
        _task_examples(provider, split, limits, words)
        if isinstance(provider, registry.InstructionTask)
        else loader.examples(name, split=split, feature_lengths=limits or None)
    )
    return [_rendered(example, words) for example in itertools.islice(stream, num_examples)]


def _task_examples(
    task: "InstructionTask", split: str, lengths: Mapping[str, int], words: SentencePieceModel
) -> Iterator[Mapping[str, Any]]:
    """Yields the examples of a task of ours, named as those of `loader.examples`."""
    renderer = TokenRenderer(
        variant=task.variant, vocabulary=words, feature_lengths=lengths, task=task.name
    )
    for record in task.records(split):
        draw = training_draw(task.variant, record) if split == TRAIN else EVALUATION
        inputs, targets = renderer.instruction(record, draw), renderer.answer(record, draw)
        yield {
            "inputs": inputs.tokens,
            "targets": targets.tokens,
            "num_history_dropped": inputs.num_history_dropped,
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
    return RenderedExample(
        example_id=bytes(example["example_id"]).decode(),
        inputs=words.decode(example["inputs"].tolist()),
        targets=words.decode(example["targets"].tolist()),
        num_input_tokens=len(example["inputs"]),
        num_target_tokens=len(example["targets"]),
        num_history_dropped=int(example["num_history_dropped"]),
        num_words_cut=int(example["num_words_cut"]),
    )


def _example_text(name: str, example: RenderedExample) -> str:
    """Returns an example as a person reads it."""
    note = f"{example.num_input_tokens} tokens"
    if example.num_history_dropped:
        note += f", {example.num_history_dropped} of the oldest history items dropped"
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
    """Returns what was read, in one line."""
    if not examples:
        return "no example"
    inputs = [example.num_input_tokens for example in examples]
    targets = [example.num_target_tokens for example in examples]
    dropped = [example.num_history_dropped for example in examples]
    return (
        f"{len(examples)} examples: {min(inputs)}-{max(inputs)} tokens asked, "
        f"{min(targets)}-{max(targets)} answered; history dropped in "
        f"{sum(number > 0 for number in dropped)} ({sum(dropped)} items), words cut in "
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
