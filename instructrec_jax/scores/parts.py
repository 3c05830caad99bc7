"""Artefact E: log-likelihoods of candidates in Parquet parts, written whole or not at all.

One row is one (example, template), whatever the system. Token and character counts are kept, so
that any normaliser, metric or tie rule can be computed later without a model. A part holds the rows
of one shard, the unit that a process claims, scores and writes; its bytes depend only on the set
and on what the scores come from, never on who wrote it. Its metadata name the `system`, and the
`family` of tasks and the kind of `query` that its template belongs to.
"""

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files, manifest
from instructrec_jax.damage import Damage
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking

NO_QUERY = "none"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRequest:
    """The scored candidates of one request or example: a row of artefact E.

    Attributes:
      request_id: its name.
      candidate_ids: int64 [c].
      log_likelihood: float32 [c], natural log, sum over tokens including EOS; of a system that is
        no language model any score, higher is better.
      prior_log_likelihood: the same under a prompt without preference and intention; None where
        that was not scored.
      num_tokens: int32 [c], tokens of each candidate, EOS included; None where there are no tokens.
      num_chars: int32 [c], characters of each candidate; None where nobody counted them.
      last_round: int32 [c], the round that the log-likelihood is of, from 1; candidates that took
        part in a later round rank before the others. None where there is one round.
      num_views: prompts that were scored, those for the prior are not counted.
      target_index: index of the target among the candidates, -1 where it is unknown.
    """

    request_id: str
    candidate_ids: np.ndarray
    log_likelihood: np.ndarray
    prior_log_likelihood: np.ndarray | None = None
    num_tokens: np.ndarray | None = None
    num_chars: np.ndarray | None = None
    last_round: np.ndarray | None = None
    num_views: int = 1
    target_index: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Some requests of a set.

    Attributes:
      template: the set it is of.
      index: index of the shard in the set.
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
        ("num_views", pa.int32()),
        ("target_index", pa.int32()),
    ]
)
_FIELDS = dataclasses.fields(ScoredRequest)
_TOLD = {"system", "family", "query"}
_METADATA_KEY = b"instructrec"
_DAMAGE_KEY = b"instructrec.damage"
_PART = re.compile(r"(?P<template>.+)\.part-(?P<index>\d+)\.parquet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of n (example, template) rows; candidates vary in number from row to row.

    Attributes:
      example_id: [n] names.
      template_id: [n] names.
      candidate_ids: n arrays int64 [c]; this and the next ones as in `ScoredRequest`.
      log_likelihood: n arrays float32 [c].
      prior_log_likelihood: n arrays float32 [c] or None.
      num_tokens: n arrays int32 [c] or None.
      num_chars: n arrays int32 [c] or None.
      last_round: n arrays int32 [c].
      num_views: int32 [n].
      target_index: int32 [n].
      metadata: where the scores come from, as far as all templates have it in common: system,
        split, checkpoint, hashes, versions, command.
      told: by template all that it tells of where its scores come from.
      scenarios: by template the family of tasks and, where it has one, the kind of query, such as
        "product_search.specific".
    """

    example_id: Sequence[str]
    template_id: Sequence[str]
    candidate_ids: Sequence[np.ndarray]
    log_likelihood: Sequence[np.ndarray]
    prior_log_likelihood: Sequence[np.ndarray | None]
    num_tokens: Sequence[np.ndarray | None]
    num_chars: Sequence[np.ndarray | None]
    last_round: Sequence[np.ndarray]
    num_views: np.ndarray
    target_index: np.ndarray
    metadata: Mapping[str, Any]
    told: Mapping[str, Mapping[str, Any]]
    scenarios: Mapping[str, str]

    @classmethod
    def of(
        cls,
        requests: Mapping[str, Sequence[ScoredRequest]],
        metadata: Mapping[str, Mapping[str, Any]],
    ) -> Self:
        """Returns requests by template as scores, as if they had been written and read.

        Args:
          requests: by template.
          metadata: by template, see `write_part`.
        """
        rows = [row for template, own in requests.items() for row in score_rows(template, own)]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in SCHEMA.names}
        del columns["rank"]
        for name in ("num_views", "target_index"):
            columns[name] = np.array(columns[name], np.int32)
        return cls(**columns, **_described(metadata))


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
      path: where; the name is that of `part_name`.
      rows: values by the names of SCHEMA, see `score_rows`; what is missing is null.
      metadata: JSON values that go into the file's schema, the same for all parts of a template:
        "system", "family", "query" ("none" where the template takes none) and anything that tells
        where the scores come from, such as "split" and "checkpoint".
      damage: the requests of the shard that were left out.

    Raises:
      ValueError: if the metadata lack one of the three.
    """
    if missing := _TOLD - metadata.keys():
        raise ValueError(f"metadata of {path} lack {sorted(missing)}")
    left_out = {"counts": damage.counts, "examples": damage.examples} if damage else {}
    own = {_METADATA_KEY: json.dumps(dict(metadata)), _DAMAGE_KEY: json.dumps(left_out)}
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(own))
    with files.atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def score_rows(
    template: str, scored: Iterable[ScoredRequest], *, normaliser: str = "sum"
) -> list[dict[str, Any]]:
    """Returns the rows of scored requests.

    Args:
      template: id of the template that wrote the instructions; of a system without prompts any
        name, one for each family and kind of query.
      scored: requests with the log-likelihoods of their candidates.
      normaliser: what "rank" is by.

    Raises:
      UserError: if a log-likelihood is not a number.
    """
    rows = []
    for request in scored:
        priors = request.prior_log_likelihood
        if np.isnan(request.log_likelihood).any() or (
            priors is not None and np.isnan(priors).any()
        ):
            raise UserError(
                f"a candidate of request {request.request_id!r} has a log-likelihood "
                "that is not a number (NaN); the model has diverged or its weights are damaged: "
                "score with another checkpoint"
            )
        row = {field.name: getattr(request, field.name) for field in _FIELDS}
        if row["last_round"] is None:
            row["last_round"] = np.ones(len(request.candidate_ids), np.int32)
        values = ranking.normalise(
            request.log_likelihood,
            request.num_tokens,
            normaliser,
            num_chars=request.num_chars,
            prior_log_likelihood=priors,
        )
        rank = ranking.ranks_of_all(values, row["last_round"]).astype(np.int32)
        row |= {"example_id": row.pop("request_id"), "template_id": template, "rank": rank}
        rows.append(row)
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
        of_part = _told(shard.file_name, (found.metadata or {}).get(_DAMAGE_KEY, b"{}"))
        left_out.add(Damage(**of_part))
    return num_rows, left_out


def read_scores(folder: Path | str) -> Scores:
    """Reads all parts of a finished scoring run, by template and then in the order of the set.

    Raises:
      UserError: if there is no part, one is not of this format or of another run, or rows are
        missing.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.part-*.parquet"), key=_part_order)
    if not paths:
        raise UserError(f"no scores in {folder}; run `instructrec score` with that output folder")
    tables = [_read_part(path) for path in paths]
    metadata = _metadata(paths, tables)
    table = pa.concat_tables(tables).combine_chunks()
    if (folder / manifest.FILE_NAME).exists():  # it is not where someone copied parts
        found = manifest.read_manifest(folder)
        _check_complete(folder, table.num_rows, found)
        manifest.check_files(folder, may_lack=True)
        for told in metadata.values():
            told["command"] = found.command
    return Scores(
        example_id=table["example_id"].to_pylist(),
        template_id=table["template_id"].to_pylist(),
        candidate_ids=_arrays(table["candidate_ids"]),
        log_likelihood=_arrays(table["log_likelihood"]),
        prior_log_likelihood=_arrays_or_none(table["prior_log_likelihood"]),
        num_tokens=_arrays_or_none(table["num_tokens"]),
        num_chars=_arrays_or_none(table["num_chars"]),
        last_round=_arrays(table["last_round"]),
        num_views=table["num_views"].to_numpy(),
        target_index=table["target_index"].to_numpy(),
        **_described(metadata),
    )


def _part_order(path: Path) -> tuple[str, int]:
    """Returns what parts are sorted by: part 100000 comes after part 99999."""
    match = _PART.fullmatch(path.name)
    return (match["template"], int(match["index"])) if match else (path.name, 0)


def _metadata(paths: Sequence[Path], tables: Sequence[pa.Table]) -> dict[str, dict[str, Any]]:
    """Returns by template what parts say of where they come from, and checks that it is one run."""
    found: dict[str, dict[str, Any]] = {}
    run = None
    for path, table in zip(paths, tables, strict=True):
        told = _told(path, table.schema.metadata[_METADATA_KEY])
        run = run or (path, told.get("work"))
        if told.get("work") != run[1]:
            raise UserError(
                f"{path} is a part of another run than {run[0].name}; move the parts of one of "
                "them elsewhere"
            )
        templates = [path.name.rpartition(".part-")[0], *table["template_id"].unique().to_pylist()]
        found |= {template: dict(told) for template in templates}
    return found


def _described(metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what all templates have in common, what each tells, and the scenario of each."""
    first, *others = metadata.values()
    common = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    scenarios = {
        template: told["family"] + ("" if told["query"] == NO_QUERY else f".{told['query']}")
        for template, told in metadata.items()
    }
    return {"metadata": common, "told": metadata, "scenarios": scenarios}


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
    files.check_is_file(path)
    try:
        return read(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({error}); delete it and score again"
        ) from None


def _told(path: Path | str, text: bytes) -> dict[str, Any]:
    """Returns what a part says of itself."""
    try:
        told = files.parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and score again") from None
    if not isinstance(told, dict):
        raise UserError(f"{path} is damaged: it says {text[:80]!r}; delete it and score again")
    return told


def _read_part(path: Path) -> pa.Table:
    read = functools.partial(pq.read_table, page_checksum_verification=True)
    table = _readable(path, read)
    metadata = table.schema.metadata or {}
    if _METADATA_KEY not in metadata:
        raise UserError(f"{path} is not a part written by `instructrec score`")
    if not table.schema.equals(SCHEMA) or not _told(path, metadata[_METADATA_KEY]).keys() >= _TOLD:
        raise UserError(
            f"{path} is in the format of another version of this program; "
            "run `instructrec score` again into a new folder"
        )
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
