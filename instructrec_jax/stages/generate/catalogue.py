"""What `generate` asks: examples of T2 tasks, the catalogue, and the items not to be said again."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instructrec_jax import files, manifest, tokenizer
from instructrec_jax.data.columnar import LEAVE_ONE_OUT
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.generation.catalogue_trie import CatalogueTrie, build_trie
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.pipeline import loader, record_store, registry, vocabulary
from instructrec_jax.stages.run_data import RunData, dataset_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogueRequest:
    """One instruction whose answer is some title of the catalogue.

    Attributes:
      example_id: as in the records.
      instruction: int32 [s], tokens ending in EOS.
      target_id: the item to be found.
      excluded: int32 [n], items that are not to be said.
    """

    example_id: str
    instruction: np.ndarray
    target_id: int
    excluded: np.ndarray


def open_catalogue(prepared_dir: str, task: str) -> PreparedData:
    """Returns the prepared data that the records of an opened task were built from.

    Raises:
      UserError: if the records were built from other data.
    """
    folder, records = Path(prepared_dir), record_store.data_dir_in_use() / dataset_of(task)
    prepared = read_prepared(folder)
    built_from = manifest.read_manifest(records).inputs.get("prepared")
    if built_from != files.sha256(folder / manifest.FILE_NAME):
        raise UserError(
            f"the records in {records} were not built from PREPARED_DIR {folder} (of dataset "
            f"{prepared.dataset}), so its item ids mean other titles; name the folder that "
            "`instructrec build` read"
        )
    return prepared


def make_trie(prepared: PreparedData, *, max_tokens: int) -> CatalogueTrie:
    """Returns the titles of all items as the targets of the tasks spell them.

    Args:
      prepared: the catalogue.
      max_tokens: of a title, EOS included.

    Raises:
      UserError: if a title is longer, or nothing is left of it.
    """
    encode = vocabulary.CorpusVocabulary().encode
    titles = []
    for item in prepared.items:
        tokens = [*encode(plain_title(item.title)), tokenizer.EOS_ID]
        if len(tokens) > max_tokens:
            raise UserError(
                f"the title of item {item.item_id} has {len(tokens)} tokens, and "
                f"TASK_FEATURE_LENGTHS allows {max_tokens} of targets: {item.title!r}; allow more, "
                "or shorten titles with `instructrec prepare --max_title_chars`"
            )
        titles.append(np.array(tokens, np.int32))
    return build_trie(titles, [item.item_id for item in prepared.items])


def requests(
    task: str, prepared: PreparedData, data: RunData, *, split: str, exclude_history: bool
) -> Iterator[CatalogueRequest]:
    """Yields the examples of a T2 task.

    Args:
      task: its name.
      prepared: the data that its records were built from.
      data: of the run.
      split: "validation" or "test".
      exclude_history: leave out the items before the target in the user's history, the target
        excepted.
    """
    candidates = prepared.evaluation(registry.instruction_task(task).config, split)
    columns, histories = candidates.columns, candidates.histories
    place = {request.example_id: index for index, request in enumerate(candidates)}
    for example in loader.examples(task, split=split, feature_lengths=data.feature_lengths):
        example_id = bytes(example["example_id"]).decode()
        index = place[example_id]
        row, target = columns.history_rows[index], int(columns.target_ids[index])
        excluded = np.zeros(0, np.int32)
        if exclude_history and registry.instruction_task(task).config == LEAVE_ONE_OUT:
            begin = histories.starts[row]
            excluded = histories.item_ids[begin : begin + columns.positions[index]]
        yield CatalogueRequest(
            example_id=example_id,
            instruction=example["inputs"],
            target_id=target,
            excluded=excluded[excluded != target],
        )


def in_chunks(
    stream: Iterator[CatalogueRequest], size: int, limit: int | None
) -> Iterator[list[CatalogueRequest]]:
    """Yields the first requests, up to `limit` of them, some at a time."""
    first = itertools.islice(stream, limit)
    while chunk := list(itertools.islice(first, size)):
        yield chunk
