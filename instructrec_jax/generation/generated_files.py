"""What `generate` writes: the likeliest titles of each example, one Parquet file a template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files

METADATA_KEY = b"instructrec"
SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "target_id": pa.int32(),
        "item_ids": pa.list_(pa.list_(pa.int32())),  # of each title, best first
        "log_likelihood": pa.list_(pa.float32()),
        "rank": pa.int32(),  # of the target's title; one behind the last where it is not there
    }
)


def write_generated(
    path: Path | str,
    chunks: Iterable[Sequence[Mapping[str, Any]]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes rows chunk by chunk, the file whole or not at all.

    Args:
      path: of the file.
      chunks: rows as `SCHEMA` has them; no more than one chunk is held at a time.
      metadata: JSON values, which go into the file's schema.
    """
    schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(dict(metadata)).encode()})
    with (
        files.atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for rows in chunks:
            writer.write_table(pa.Table.from_pylist(list(rows), schema=schema))
