"""`instructrec candidates`: artefact A -> the same items and histories with other candidates."""

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from instructrec_jax import files
from instructrec_jax.data import candidate_lists, titles
from instructrec_jax.data.candidates import draw_evaluation, evaluation_targets, of_same_category
from instructrec_jax.data.columnar import TEST, VALIDATION
from instructrec_jax.data.prepared import ORIGIN, STAGE, PreparedData, hashes_of, read_prepared
from instructrec_jax.data.prepared_writer import PreparedWriter
from instructrec_jax.data.reviews import FILE_NAME as REVIEWS
from instructrec_jax.data.settings import ANY_ITEM, MAX_DRAWS, OTHER_CATEGORY, SEARCH_NEGATIVES
from instructrec_jax.manifest import Manifest, find_finished, read_manifest
from instructrec_jax.settings import MAX_CANDIDATES, OneOf, Range, Seed, check_arguments

_logger = logging.getLogger(__name__)
_Number = Annotated[int, Range(2, MAX_CANDIDATES)]
_Made = tuple[PreparedData, Counter[str]]


def uniform(
    *,
    prepared_dir: Path | str,
    output_dir: Path | str,
    num_candidates: _Number = 10,
    test_draws: Annotated[int, Range(1, MAX_DRAWS)] = 1,
    search_negatives: Annotated[str, OneOf(SEARCH_NEGATIVES)] = ANY_ITEM,
    allow_fewer_candidates: bool = False,
    seed: Seed = 0,
) -> Manifest:
    """Draws negatives uniformly again, such as 99 of them.

    Args:
      prepared_dir: artefact A.
      output_dir: folder for the new one.
      num_candidates: candidates of an evaluation example, the target among them.
      test_draws: candidate lists of each test event, each with its own negatives.
      search_negatives: negatives of product search: "any" item, or those of "other_category" than
        the target's, all of which answer a query for a category.
      allow_fewer_candidates: a small catalogue gives smaller candidate sets instead of an error.
      seed: of the draw.

    Returns:
      The manifest of the new artefact A.

    Raises:
      UserError: if the catalogue has too few items, or the folder holds other work.
    """
    check_arguments(uniform, locals())
    settings = {
        "negatives": "uniform",
        "num_candidates": num_candidates,
        "test_draws": test_draws,
        "search_negatives": search_negatives,
        "allow_fewer_candidates": allow_fewer_candidates,
        "seed": seed,
    }

    def make(data: PreparedData) -> _Made:
        found = draw_evaluation(
            evaluation_targets(data.histories, data.search_splits, test_draws=test_draws),
            data.seen_items,
            title_ids=titles.title_ids([item.title for item in data.items]),
            num_candidates=num_candidates,
            dataset=data.dataset,
            seed=seed,
            allow_fewer=allow_fewer_candidates,
            not_for=of_same_category(data.items) if search_negatives == OTHER_CATEGORY else None,
        )
        return dataclasses.replace(data, candidates=found), Counter()

    return write_changed(prepared_dir, output_dir, changed={"candidates": settings}, make=make)


def lists(
    *,
    prepared_dir: Path | str,
    output_dir: Path | str,
    test_file: Path | str,
    validation_file: Path | str | None = None,
    num_candidates: _Number = 10,
    seed: Seed = 0,
) -> Manifest:
    """Takes the negatives of leave-one-out examples from the lists of a retriever.

    Args:
      prepared_dir: artefact A.
      output_dir: folder for the new one.
      test_file: a line for each user, user_id and item_ids (raw ids, best first), as LLMRank and
        `baseline matcher` write; users without a list have no test example.
      validation_file: likewise for validation, which without it keeps its candidates.
      num_candidates: the target and the first negatives of a list.
      seed: of the order in which an example shows them.

    Returns:
      The manifest of the new artefact A.

    Raises:
      UserError: if a file is damaged or of other data, or the folder holds other work.
    """
    check_arguments(lists, locals())
    paths = {VALIDATION: validation_file, TEST: test_file}
    named = {split: Path(path) for split, path in paths.items() if path is not None}
    for path in named.values():
        files.check_is_file(path)
    settings = {
        "negatives": "lists of a retriever without the user's items",
        "splits": [*named],
        "num_candidates": num_candidates,
        "seed": seed,
    }

    def make(data: PreparedData) -> _Made:
        drops: Counter[str] = Counter()
        new = {}
        title_ids = titles.title_ids([item.title for item in data.items])
        for split, path in named.items():
            given, unknown = candidate_lists.read_lists(path, data)
            new[split], removed = candidate_lists.with_hard_negatives(
                data,
                given,
                split=split,
                title_ids=title_ids,
                num_candidates=num_candidates,
                seed=seed,
            )
            drops += Counter({f"{split}_{k}": n for k, n in (unknown + removed).items()})
        found = candidate_lists.replaced(data, new)
        return dataclasses.replace(data, candidates=found), drops

    hashes = {f"{split}_lists": files.sha256(path) for split, path in named.items()}
    return write_changed(
        prepared_dir, output_dir, changed={"candidates": settings}, make=make, inputs=hashes
    )


def write_changed(
    prepared_dir: Path | str,
    output_dir: Path | str,
    *,
    changed: Mapping[str, Any],
    make: Callable[[PreparedData], _Made],
    inputs: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes prepared data with a change, unless that is there already.

    Args:
      prepared_dir: artefact A.
      output_dir: folder for the new one.
      changed: what changes, added to the settings of the manifest.
      make: returns the changed data, and what was left out by reason.
      inputs: hashes of what is read beside A.
    """
    before, prepared_dir = read_manifest(prepared_dir), Path(prepared_dir)
    data = read_prepared(prepared_dir)
    planned = Manifest(
        stage=STAGE,
        inputs={
            **(inputs or {}),
            ORIGIN: hashes_of(prepared_dir)[-1],
            "candidates": files.sha256(prepared_dir / "candidates.parquet"),
        },
        settings={**before.settings, **changed},
    )
    manifest = find_finished(output_dir, planned)
    if manifest is None:
        data, drops = make(data)
        found = data.candidates
        counts = {"candidate_lists": len(found)}
        for split in (VALIDATION, TEST):
            is_own = found.columns.is_test == (split == TEST)
            counts[f"{split}_examples"] = int((is_own & (found.columns.history_rows >= 0)).sum())
        with files.atomic_directory(output_dir) as folder:
            with PreparedWriter(folder) as writer:
                writer.add_items(data.items, data.search_splits)
                writer.add(data.histories, data.seen_items, found)
            if (reviews := prepared_dir / REVIEWS).exists():
                shutil.copyfile(reviews, folder / REVIEWS)
            manifest = dataclasses.replace(
                planned, counts={**before.counts, **counts}, drops=dict(drops)
            )
            manifest.write_finished(folder)
    told = ", ".join(
        f"{name.replace('_', ' ')} {manifest.counts[name]:,}"
        for name in ("validation_examples", "test_examples")
    )
    _logger.info("%s: %s of leave-one-out", output_dir, told)
    removed = ", ".join(f"{k.replace('_', ' ')} {n:,}" for k, n in manifest.drops.items() if n)
    _logger.info("removed or left out: %s", removed or "nothing")
    return manifest
