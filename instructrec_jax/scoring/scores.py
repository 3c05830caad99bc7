"""Artefact E: the log-likelihoods of every candidate, in Parquet parts written whole or not at all.

One row is one (example, template). Token and character counts are kept, so that any normaliser,
metric or tie rule can be computed later without a model.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files, manifest
from instructrec_jax.errors import UserError

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("template_id", pa.string()),
        ("candidate_ids", pa.list_(pa.int32())),
        ("log_likelihood", pa.list_(pa.float32())),
        ("num_tokens", pa.list_(pa.int32())),
        ("num_chars", pa.list_(pa.int32())),
        ("target_index", pa.int32()),
    ]
)
_METADATA_KEY = b"instructrec"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of n (example, template) rows; candidates vary in number from row to row.

    Attributes:
      example_id: [n] names.
      template_id: [n] names.
      candidate_ids: n arrays int32 [c].
      log_likelihood: n arrays float32 [c], natural log, sum over tokens including EOS.
      num_tokens: n arrays int32 [c], tokens counted.
      num_chars: n arrays int32 [c], characters of the title.
      target_index: int32 [n], -1 where the target is unknown.
      metadata: where the scores come from: checkpoint, hashes, versions, command.
    """

    example_id: Sequence[str]
    template_id: Sequence[str]
    candidate_ids: Sequence[np.ndarray]
    log_likelihood: Sequence[np.ndarray]
    num_tokens: Sequence[np.ndarray]
    num_chars: Sequence[np.ndarray]
    target_index: np.ndarray
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def part_name(template: str, index: int) -> str:
    """Returns the file name of one part of one template's scores."""
    return f"{template}.part-{index:05d}.parquet"


def num_finished_parts(folder: Path | str, template: str) -> int:
    """Returns how many parts of a template are there, counted from the first one on."""
    index = 0
    while (Path(folder) / part_name(template, index)).exists():
        index += 1
    return index


def num_rows(folder: Path | str, template: str) -> int:
    """Returns how many rows the finished parts of a template hold together."""
    indices = range(num_finished_parts(folder, template))
    parts = [Path(folder) / part_name(template, index) for index in indices]
    return sum(_readable(path, pq.read_metadata).num_rows for path in parts)


def write_part(path: Path | str, rows: Sequence[Mapping[str, Any]], metadata: Mapping) -> None:
    """Writes one part atomically; `metadata` (JSON values) goes into the file's schema."""
    schema = SCHEMA.with_metadata({_METADATA_KEY: json.dumps(dict(metadata)).encode()})
    table = pa.Table.from_pylist(list(rows), schema=schema)
    with files.atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def batch_rows(
    template: str,
    batch: Mapping[str, np.ndarray],
    log_likelihood: np.ndarray,
    num_tokens: np.ndarray,
) -> list[dict[str, Any]]:
    """Returns the rows of one scored batch, without padding rows and padding candidates.

    Args:
      template: id of the template that wrote the instructions.
      batch: a ranking batch.
      log_likelihood: float32 [batch, candidates].
      num_tokens: int32 [batch, candidates].
    """
    rows = []
    for row in np.flatnonzero(batch["example_id"] != ""):
        real = num_tokens[row] > 0
        rows.append(
            {
                "example_id": str(batch["example_id"][row]),
                "template_id": template,
                "candidate_ids": batch["candidate_ids"][row][real],
                "log_likelihood": log_likelihood[row][real],
                "num_tokens": num_tokens[row][real],
                "num_chars": batch["candidate_num_chars"][row][real],
                "target_index": int(batch["target_index"][row]),
            }
        )
    return rows


def read_scores(folder: Path | str) -> Scores:
    """Reads all parts of a finished scoring run, in the order of their names.

    Raises:
      UserError: if there is no part, one is not of this format, or rows are missing.
    """
    paths = sorted(Path(folder).glob("*.part-*.parquet"))
    if not paths:
        raise UserError(f"no scores in {folder}; run `instructrec score` with that output folder")
    tables = [_read_part(path) for path in paths]
    metadata = json.loads(tables[0].schema.metadata[_METADATA_KEY])
    table = pa.concat_tables(tables).combine_chunks()
    _check_complete(Path(folder), table.num_rows)
    return Scores(
        example_id=table["example_id"].to_pylist(),
        template_id=table["template_id"].to_pylist(),
        candidate_ids=_arrays(table["candidate_ids"]),
        log_likelihood=_arrays(table["log_likelihood"]),
        num_tokens=_arrays(table["num_tokens"]),
        num_chars=_arrays(table["num_chars"]),
        target_index=table["target_index"].to_numpy(),
        metadata=metadata,
    )


def _check_complete(folder: Path, num_found: int) -> None:
    """Raises where the run counted other rows than its parts hold."""
    if not (folder / manifest.FILE_NAME).exists():  # parts that someone copied
        return
    num_expected = sum(manifest.read_manifest(folder).counts.values())
    if num_found != num_expected:
        raise UserError(
            f"{folder} holds {num_found} rows of {num_expected or 'a run that has not finished'}; "
            "run `instructrec score` with the same settings again, it adds what is missing"
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
