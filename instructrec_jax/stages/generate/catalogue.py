"""What `generate` searches for: examples of T2 tasks, the catalogue, and the excluded items."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from instructrec_jax import files, manifest
from instructrec_jax.data.columnar import LEAVE_ONE_OUT
from instructrec_jax.data.prepared import PreparedData, read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.generation.catalogue_trie import CatalogueTrie, build_trie
from instructrec_jax.instructions.language import plain_title
from instructrec_jax.instructions.token_budget import (
    TokenRenderer,
    arrange,
    cut_title,
    title_limit,
)
from instructrec_jax.pipeline import record_store, registry
from instructrec_jax.stages.run_data import dataset_of
from instructrec_jax.tokenizer import SentencePieceModel, tokens_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatalogueRequest:
    """One instruction whose answer is some title of the catalogue.

    Attributes:
      example_id: as in the records.
      instruction: int32 [s], tokens ending in EOS.
      target_id: the item to be found.
      excluded: int32 [n], items that are not to be generated.
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


def make_trie(
    prepared: PreparedData, vocabulary: SentencePieceModel, feature_lengths: Mapping[str, int]
) -> CatalogueTrie:
    """Returns the titles of all items as the targets of the tasks spell them, cut as there.

    Args:
      prepared: the catalogue.
      vocabulary: what makes them tokens.
      feature_lengths: of the run (TASK_FEATURE_LENGTHS).

    Raises:
      UserError: if a title is longer, or nothing is left of it.
    """
    limit, max_tokens = title_limit(feature_lengths), feature_lengths["targets"]
    titles, num_cut = [], 0
    for item in prepared.items:
        plain = plain_title(item.title)
        title = cut_title(plain, vocabulary, limit)
        num_cut += title != plain
        tokens = tokens_of(vocabulary, title)
        if len(tokens) > max_tokens:
            raise UserError(
                f"the title of item {item.item_id} has {len(tokens)} tokens, and "
                f"TASK_FEATURE_LENGTHS allows {max_tokens} of targets: {item.title!r}; allow more, "
                "or shorten titles with `instructrec prepare --max_title_chars`"
            )
        titles.append(tokens)
    if num_cut:
        logger.info("%d of %d titles are cut at %d tokens", num_cut, len(titles), limit)
    return build_trie(titles, [item.item_id for item in prepared.items])


def requests(
    task: str,
    prepared: PreparedData,
    vocabulary: SentencePieceModel,
    feature_lengths: Mapping[str, int],
    *,
    split: str,
    exclude_history: bool,
) -> Iterator[CatalogueRequest]:
    """Yields the examples of a T2 task.

    Args:
      task: its name.
      prepared: the data that its records were built from.
      vocabulary: what makes them tokens.
      feature_lengths: of the run (TASK_FEATURE_LENGTHS).
      split: "validation" or "test".
      exclude_history: leave out the items before the target in the user's history, the target
        excepted.

    Raises:
      UserError: if an instruction does not fit.
    """
    own = registry.instruction_task(task)
    renderer = TokenRenderer(
        variant=own.variant, vocabulary=vocabulary, feature_lengths=feature_lengths, task=task
    )
    evaluated = prepared.evaluation(own.config, split)
    columns, histories = evaluated.columns, evaluated.histories
    index_of = {name: index for index, name in enumerate(evaluated.example_ids())}
    for record in own.records(split):
        index = index_of[record.example_id]
        if evaluated.draws[index] > 1:  # other negatives, which no instruction of T2 shows
            continue
        record, _ = arrange(record, feature_lengths, vocabulary)
        target, excluded = int(columns.target_ids[index]), np.zeros(0, np.int32)
        if exclude_history and own.config == LEAVE_ONE_OUT:
            begin = histories.starts[columns.history_rows[index]]
            excluded = histories.item_ids[begin : begin + columns.positions[index]]
        yield CatalogueRequest(
            example_id=record.example_id,
            instruction=renderer.instruction(record).tokens,
            target_id=target,
            excluded=excluded[excluded != target],
        )


def in_chunks(
    stream: Iterator[CatalogueRequest], size: int, limit: int
) -> Iterator[list[CatalogueRequest]]:
    """Yields the first `limit` requests, `size` at a time."""
    first = itertools.islice(stream, limit)
    while chunk := list(itertools.islice(first, size)):
        yield chunk
