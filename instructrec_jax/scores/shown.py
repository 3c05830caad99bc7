"""Scored examples in one form to be shown: of artefact E, of `generate`, and of ranked files."""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import manifest
from instructrec_jax.data.readers.rows import open_plain_or_gzip
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.scores import columns, ranked_files
from instructrec_jax.scores.parts import Scores, read_scores

_WHAT = (
    "expected a folder that `instructrec score` or `instructrec generate` wrote, or a file of "
    "`instructrec score --output`"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownCandidate:
    """A candidate, or a title that was generated.

    Attributes:
      rank: 1 the best; equal ones share the worse rank.
      ids: its item id; of a generated title the ids of all items that have it.
      text: its title; "" where only ids are known.
      score: what it is ranked by.
      log_likelihood: natural log, the sum over its tokens and EOS.
      is_target: whether it is the target; None where that is unknown.
    """

    rank: int
    ids: tuple[int, ...]
    text: str = ""
    score: float
    log_likelihood: float
    is_target: bool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownExample:
    """An example with its candidates.

    Attributes:
      example_id: of the example or request.
      template: what wrote its instruction.
      normaliser: what its candidates are ranked by.
      target_id: item id of the target; -1 where it is unknown.
      candidates: best first.
      user_id: "" where it is not looked up, or in product search.
      history: titles before the target, oldest first; () where they are not looked up.
      target: its title; "" where only ids are known.
      is_generated: whether candidates are titles found in the whole catalogue.
    """

    example_id: str
    template: str
    normaliser: str
    target_id: int
    candidates: tuple[ShownCandidate, ...]
    user_id: str = ""
    history: tuple[str, ...] = ()
    target: str = ""
    is_generated: bool = False


def read_shown(path: Path | str, template: str | None = None) -> Iterator[ShownExample]:
    """Returns the scored examples of a folder or file, in their order.

    Args:
      path: a folder of `score` or `generate`, or a file of `score --output`.
      template: those of one template alone; None: of all, one after the other.

    Raises:
      UserError: if it is none of these, is damaged, or nothing in it is of that template.
    """
    path = Path(path)
    if path.is_file():
        found = _ranked(path)
    elif next(path.glob("*.part-*.parquet"), None):
        found = _scored(read_scores(path))
    elif path.is_dir():
        found = _generated(path)
    else:
        raise UserError(f"there is no {path}; {_WHAT}")
    if template is not None:
        found = (example for example in found if example.template == template)
    first = next(found, None)
    if first is None:
        of = f" of template {template}" if template else ""
        raise UserError(f"{path} holds no example{of}")
    return itertools.chain([first], found)


def _scored(scores: Scores) -> Iterator[ShownExample]:
    """Yields the rows of artefact E."""
    normaliser = str(scores.metadata.get("normaliser", "sum"))
    for row, ids in enumerate(scores.candidate_ids):
        values = ranking.normalise(
            scores.log_likelihood[row],
            scores.num_tokens[row],
            normaliser,
            num_chars=scores.num_chars[row],
            prior_log_likelihood=scores.prior_log_likelihood[row],
        )
        ranks = ranking.ranks_of_all(values, scores.last_round[row])
        target = int(scores.target_index[row])
        yield ShownExample(
            example_id=scores.example_id[row],
            template=scores.template_id[row],
            normaliser=normaliser,
            target_id=int(ids[target]) if target >= 0 else -1,
            candidates=tuple(
                ShownCandidate(
                    rank=int(ranks[index]),
                    ids=(int(ids[index]),),
                    score=float(values[index]),
                    log_likelihood=float(scores.log_likelihood[row][index]),
                    is_target=None if target < 0 else bool(index == target),
                )
                for index in np.argsort(ranks, kind="stable")
            ),
        )


def _generated(folder: Path) -> Iterator[ShownExample]:
    """Yields the rows that `generate` wrote."""
    paths = sorted(folder.glob("*.parquet"))
    if not paths or not (folder / manifest.FILE_NAME).exists():
        raise UserError(f"{folder} holds no scores; {_WHAT}")
    manifest.check_files(folder)
    for path in paths:
        if set(_parquet(path).schema_arrow.names) != set(columns.GENERATED):
            raise UserError(f"{path} holds no scores; {_WHAT}")
        for row in _rows(path):
            titles = zip(row["item_ids"], row["log_likelihood"], strict=True)
            yield ShownExample(
                example_id=row["example_id"],
                template=path.stem,
                normaliser="sum",
                target_id=row["target_id"],
                candidates=tuple(
                    ShownCandidate(
                        rank=rank,
                        ids=tuple(ids),
                        score=value,
                        log_likelihood=value,
                        is_target=row["target_id"] in ids,
                    )
                    for rank, (ids, value) in enumerate(titles, start=1)
                ),
                is_generated=True,
            )


def _ranked(path: Path) -> Iterator[ShownExample]:
    """Yields the requests of a ranked file."""
    try:
        for _, rows in itertools.groupby(_ranked_rows(path), lambda row: row["id"]):
            own = list(rows)
            yield ShownExample(
                example_id=str(own[0]["id"]),
                template=str(own[0]["template"]),
                normaliser=str(own[0]["normaliser"]),
                target_id=next((int(r["candidate_id"]) for r in own if _is_target(r)), -1),
                target=next((str(r["candidate"]) for r in own if _is_target(r)), ""),
                candidates=tuple(
                    ShownCandidate(
                        rank=int(row["rank"]),
                        ids=(int(row["candidate_id"]),),
                        text=str(row["candidate"]),
                        score=float(row["score"]),
                        log_likelihood=float(row["log_likelihood"]),
                        is_target=_is_target(row),
                    )
                    for row in own
                ),
            )
    except (KeyError, TypeError, ValueError, EOFError, csv.Error, OSError) as error:
        raise UserError(
            f"{path} is not a file of ranked candidates, or is damaged ({error!r}); {_WHAT}"
        ) from None


def _is_target(row: Mapping[str, Any]) -> bool | None:
    """Returns what a row of any form says: true, "True" or 1; nothing where it is unknown."""
    value = row.get("is_target")
    return None if value in (None, "") else str(value) == "True"


def _ranked_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a ranked file, one a candidate, as its form gives them."""
    ending = Path(path.name.removesuffix(".gz")).suffix
    if ending not in ranked_files.ENDINGS:
        raise UserError(f"{path} is no file of ranked candidates; {_WHAT}")
    if ending == ".parquet":
        yield from _rows(path)
        return
    with open_plain_or_gzip(path) as stream:
        text = io.TextIOWrapper(stream, "utf-8", newline="")
        if ending == ".jsonl":
            for line in map(json.loads, text):
                yield from ({**line, **candidate} for candidate in line["candidates"])
        else:
            yield from csv.DictReader(text, delimiter="," if ending == ".csv" else "\t")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, a few at a time."""
    for batch in _parquet(path).iter_batches(256):
        yield from batch.to_pylist()


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); {_WHAT}") from None
