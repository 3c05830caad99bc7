"""The stage `inspect`: examples of a task as the model reads them, in words and in tokens."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from pathlib import Path

from instructrec_jax.errors import UserError
from instructrec_jax.pipeline import loader, record_store, registry, vocabulary
from instructrec_jax.pipeline.task_registration import GROUPED, RANK
from instructrec_jax.stages.run_data import VOCABULARY_FILE, dataset_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """One example of a task.

    Attributes:
      example_id: of its record.
      inputs: the instruction, decoded from its tokens.
      targets: the answer, decoded from its tokens.
      num_input_tokens: EOS included.
      num_target_tokens: EOS included.
      num_history_dropped: history items left out to keep the token budget.
    """

    example_id: str
    inputs: str
    targets: str
    num_input_tokens: int
    num_target_tokens: int
    num_history_dropped: int


def inspect(
    task: str,
    *,
    data_dir: Path | str,
    split: str = "train",
    num_examples: int = 3,
    feature_lengths: Mapping[str, int] | None = None,
    module: str = "tasks.mixtures",
) -> list[RenderedExample]:
    """Shows the first examples of a task or mixture.

    Args:
      task: its name, such as "ml_100k.A7"; the other forms of a task show the same text.
      data_dir: output folder of `build`.
      split: "train", "validation" or "test".
      num_examples: how many, at least 1.
      feature_lengths: tokens of "inputs" and "targets"; None for no limit.
      module: module that registers the tasks.

    Returns:
      The examples, which are also shown.

    Raises:
      UserError: if the task, its data or the split is missing.
    """
    if num_examples < 1:
        raise UserError(f"num_examples={num_examples}; ask for at least 1")
    dataset = dataset_of(task)
    registry.import_task_module(module, dataset)
    record_store.use_data_dir(data_dir)
    record_store.check_dataset(dataset)
    vocabulary.use_vocabulary(Path(data_dir) / dataset / VOCABULARY_FILE)
    name = task.removesuffix(f".{GROUPED}").removesuffix(f".{RANK}")
    stream = loader.examples(name, split=split, feature_lengths=feature_lengths)
    found = [_rendered(example) for example in itertools.islice(stream, num_examples)]
    for example in found:
        _show(task, split, example)
    return found


def _rendered(example: loader.Batch) -> RenderedExample:
    """Returns an example in words."""
    words = vocabulary.CorpusVocabulary()
    return RenderedExample(
        example_id=bytes(example["example_id"]).decode(),
        inputs=words.decode(example["inputs"].tolist()),
        targets=words.decode(example["targets"].tolist()),
        num_input_tokens=len(example["inputs"]),
        num_target_tokens=len(example["targets"]),
        num_history_dropped=int(example["num_history_dropped"]),
    )


def _show(task: str, split: str, example: RenderedExample) -> None:
    """Logs an example as a person reads it."""
    logger.info("%s %s, example %s", task, split, example.example_id)
    logger.info(
        "  inputs  (%d tokens, %d history items dropped): %s",
        example.num_input_tokens,
        example.num_history_dropped,
        example.inputs,
    )
    logger.info("  targets (%d tokens): %s", example.num_target_tokens, example.targets)
