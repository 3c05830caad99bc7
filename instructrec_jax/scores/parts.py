"""Artefact E: log-likelihoods of candidates in Parquet parts, written whole or not at all.

One row is one (example, template). Token and character counts are kept, so that any normaliser,
metric or tie rule can be computed later without a model. A part holds the rows of one shard, the
unit that a process claims, scores and writes; its bytes depend on the set and on what the scores
come from alone, never on who wrote it.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files, manifest
from instructrec_jax.damage import Damage
from instructrec_jax.errors import UserError
from instructrec_jax.scoring.candidate_views import Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRequest:
    """What the row of a request tells beside the log-likelihoods.

    Attributes:
      request_id: its name.
      candidate_ids: int64 [c].
      num_tokens: int32 [c], tokens of each candidate, EOS included.
      num_chars: int32 [c], characters of each candidate.
      target_index: place of the target among the candidates, -1 where it is unknown.
    """

    request_id: str
    candidate_ids: np.ndarray
    num_tokens: np.ndarray
    num_chars: np.ndarray
    target_index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Some requests of a set.

    Attributes:
      template: the set it is of.
      index: place of the shard in the set.
      numbers: of its requests in the set, from 0.
    """

    template: str
    index: int
    numbers: range

    @property
    def file_name(self) -> str:
        """Name of the file with its rows."""
        return part_name(self.template, self.index)


def part_name(template: str, index: int) -> str:
    """Returns the name of the file with the rows of a shard."""
    return f"{template}.part-{index:05d}.parquet"


def shards_of(template: str, *, num_requests: int, size: int) -> Iterator[Shard]:
    """Yields the shards of a set; the last one may be smaller.

    Args:
      template: name of the set.
      num_requests: how many it holds.
      size: requests of a shard, at least 1.

    Example:
      5 requests in shards of 2 are the ranges 0..1, 2..3 and 4..4.
    """
    for index, first in enumerate(range(0, num_requests, size)):
        numbers = range(first, min(first + size, num_requests))
        yield Shard(template=template, index=index, numbers=numbers)


SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("template_id", pa.string()),
        ("candidate_ids", pa.list_(pa.int64())),
        ("log_likelihood", pa.list_(pa.float32())),
        ("prior_log_likelihood", pa.list_(pa.float32())),
        ("num_tokens", pa.list_(pa.int32())),
        ("num_chars", pa.list_(pa.int32())),
        ("last_round", pa.list_(pa.int32())),
        ("rank", pa.list_(pa.int32())),
        ("num_ballots", pa.int32()),
        ("target_index", pa.int32()),
    ]
)
_METADATA_KEY = b"instructrec"
_DAMAGE_KEY = b"instructrec.damage"
_PART = re.compile(r"(?P<template>.+)\.part-(?P<index>\d+)\.parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of n (example, template) rows; candidates vary in number from row to row.

    Attributes:
      example_id: [n] names.
      template_id: [n] names.
      candidate_ids: n arrays int64 [c].
      log_likelihood: n arrays float32 [c], natural log, sum over tokens including EOS.
      prior_log_likelihood: the same against a prompt without preference and intention; None
        where that was not scored.
      num_tokens: n arrays int32 [c], tokens counted.
      num_chars: n arrays int32 [c], characters of the title.
      last_round: n arrays int32 [c], the round that the log-likelihood is of, from 1; whoever took
        part in a later one ranks before whoever did not, see `ballots`.
      num_ballots: int32 [n], prompts that were scored, those for the prior not counted.
      target_index: int32 [n], -1 where the target is unknown.
      metadata: where the scores come from: checkpoint, hashes, versions, command.
    """

    example_id: Sequence[str]
    template_id: Sequence[str]
    candidate_ids: Sequence[np.ndarray]
    log_likelihood: Sequence[np.ndarray]
    prior_log_likelihood: Sequence[np.ndarray | None]
    num_tokens: Sequence[np.ndarray]
    num_chars: Sequence[np.ndarray]
    last_round: Sequence[np.ndarray]
    num_ballots: np.ndarray
    target_index: np.ndarray
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_written(folder: Path | str, shard: Shard) -> bool:
    """Returns whether the part of a shard is there; it is whole then."""
    return (Path(folder) / shard.file_name).exists()


def write_part(
    path: Path | str,
    rows: Sequence[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    damage: Damage | None = None,
) -> None:
    """Writes one part atomically.

    Args:
      path: where.
      rows: values by the names of SCHEMA; what is missing is null.
      metadata: JSON values that go into the file's schema, the same for all parts of a template.
      damage: the requests of the shard that were left out.
    """
    left_out = {"counts": damage.counts, "examples": damage.examples} if damage else {}
    own = {_METADATA_KEY: json.dumps(dict(metadata)), _DAMAGE_KEY: json.dumps(left_out)}
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(own))
    with files.atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def score_rows(
    template: str, decided: Iterable[tuple[PreparedRequest, Outcome]]
) -> list[dict[str, Any]]:
    """Returns the rows of scored requests.

    Args:
      template: id of the template that wrote the instructions.
      decided: requests, and their candidates' log-likelihoods: under the template's prompt and,
        where that was scored too, under the prior's.

    Raises:
      UserError: if a log-likelihood is not a number.
    """
    rows = []
    for prepared, outcome in decided:
        values = outcome.log_likelihood
        if np.isnan(values).any():
            raise UserError(
                f"a candidate of request {prepared.request_id!r} has a log-likelihood "
                "that is not a number (NaN); the model has diverged or its weights are damaged: "
                "score with another checkpoint"
            )
        rows.append(
            {
                "example_id": prepared.request_id,
                "template_id": template,
                "candidate_ids": prepared.candidate_ids,
                "log_likelihood": values[:, 0],
                "prior_log_likelihood": values[:, 1] if values.shape[1] > 1 else None,
                "num_tokens": prepared.num_tokens,
                "num_chars": prepared.num_chars,
                "last_round": outcome.last_round,
                "rank": outcome.rank,
                "num_ballots": outcome.num_views,
                "target_index": prepared.target_index,
            }
        )
    return rows


def count_rows(folder: Path | str, shards: Iterable[Shard]) -> tuple[int, Damage]:
    """Returns how many rows the parts of these shards hold together, and what they left out.

    Raises:
      UserError: if one of them is missing or cannot be read.
    """
    num_rows, left_out = 0, Damage()
    for shard in shards:
        found = _readable(Path(folder) / shard.file_name, pq.read_metadata)
        num_rows += found.num_rows
        of_part = json.loads((found.metadata or {}).get(_DAMAGE_KEY, b"{}"))
        left_out.add(Damage(**of_part))
    return num_rows, left_out


def read_scores(folder: Path | str) -> Scores:
    """Reads all parts of a finished scoring run, by template and then in the order of the set.

    Raises:
      UserError: if there is no part, one is not of this format or of another run, or rows are
        missing.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.part-*.parquet"), key=_place)
    if not paths:
        raise UserError(f"no scores in {folder}; run `instructrec score` with that output folder")
    tables = [_read_part(path) for path in paths]
    metadata = _common_metadata(paths, tables)
    table = pa.concat_tables(tables).combine_chunks()
    if (folder / manifest.FILE_NAME).exists():  # it is not where someone copied parts
        found = manifest.read_manifest(folder)
        _check_complete(folder, table.num_rows, found)
        metadata |= {"command": found.command}
    return Scores(
        example_id=table["example_id"].to_pylist(),
        template_id=table["template_id"].to_pylist(),
        candidate_ids=_arrays(table["candidate_ids"]),
        log_likelihood=_arrays(table["log_likelihood"]),
        prior_log_likelihood=_arrays_or_none(table["prior_log_likelihood"]),
        num_tokens=_arrays(table["num_tokens"]),
        num_chars=_arrays(table["num_chars"]),
        last_round=_arrays(table["last_round"]),
        num_ballots=table["num_ballots"].to_numpy(),
        target_index=table["target_index"].to_numpy(),
        metadata=metadata,
    )


def _place(path: Path) -> tuple[str, int]:
    """Returns what parts are sorted by: part 100000 comes after part 99999."""
    match = _PART.fullmatch(path.name)
    return (match["template"], int(match["index"])) if match else (path.name, 0)


def _common_metadata(paths: Sequence[Path], tables: Sequence[pa.Table]) -> dict[str, Any]:
    """Returns what all parts say of where they come from, and checks that it is one place."""
    first: dict[str, Any] = {}
    for path, table in zip(paths, tables, strict=True):
        found = json.loads(table.schema.metadata[_METADATA_KEY])
        first = first or found
        if found.get("work") != first.get("work"):
            raise UserError(
                f"{path} is a part of another run than {paths[0].name}; move the parts of one of "
                "them elsewhere"
            )
    return first


def _check_complete(folder: Path, num_found: int, found: manifest.Manifest) -> None:
    """Raises where the run counted other rows than its parts hold."""
    num_expected = sum(found.counts.values()) if found.counts else "a run that has not finished"
    if num_found != num_expected:
        raise UserError(
            f"{folder} holds {num_found} rows of {num_expected}; run `instructrec score` with the "
            "same settings again, it adds what is missing"
        )


def _readable(path: Path, read: Callable[[Path], Any]) -> Any:
    """Reads a Parquet file, or names the one that cannot be read."""
    try:
        return read(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({error}); delete it and score again"
        ) from None


def _read_part(path: Path) -> pa.Table:
    table = _readable(path, pq.read_table)
    if not table.schema.equals(SCHEMA) or _METADATA_KEY not in (table.schema.metadata or {}):
        raise UserError(f"{path} is not a part written by `instructrec score`")
    return table


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Returns the lists of a column as numpy arrays, without a Python object per number."""
    if not len(column):
        return []
    chunk = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    values = chunk.values.to_numpy(zero_copy_only=False)
    offsets = chunk.offsets.to_numpy()
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def _arrays_or_none(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Returns the lists of a column as numpy arrays, None for those that are null."""
    found: list[np.ndarray | None] = list(_arrays(column))
    for row in np.flatnonzero(column.is_null().to_numpy()):
        found[row] = None
    return found
