"""Ranked candidates in a file that people and tables read: JSONL, CSV, TSV or Parquet.

JSONL has a request a line, its candidates in a list, best first. Of the others a row is a
candidate, those of a request below each other, best first. `columns.RANKED` says what each means.
"""

import contextlib
import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("rank", pa.int32()),
        ("candidate", pa.string()),
        ("score", pa.float32()),
        ("log_likelihood", pa.float32()),
        ("mean", pa.float32()),
        ("char", pa.float32()),
        ("candidate_id", pa.int64()),
        ("is_target", pa.bool_()),
        ("template", pa.string()),
        ("normaliser", pa.string()),
    ]
)
OF_REQUEST = ("id", "template", "normaliser")  # in JSONL beside the list of candidates
STDOUT = "-"
ENDINGS = (".jsonl", ".csv", ".tsv", ".parquet")

Row = dict[str, Any]  # by the names of SCHEMA
Write = Callable[[Sequence[Sequence[Row]]], None]  # takes the rows of each of some requests


def ranked_rows(
    scored: Mapping[str, Any], titles: Mapping[int, str], *, normaliser: str
) -> list[Row]:
    """Returns the candidates of a request, best first; equal ones stay in their order.

    Args:
      scored: its row of artefact E, see `parts.score_rows`.
      titles: texts of the candidates by their ids.
      normaliser: what "rank" there is by.
    """
    values = {
        name: ranking.normalise(
            scored["log_likelihood"], scored["num_tokens"], name, num_chars=scored["num_chars"]
        )
        for name in ("sum", "mean", "char")
    }
    target = scored["target_index"]
    return [
        {
            "id": scored["example_id"],
            "rank": int(scored["rank"][index]),
            "candidate": titles[int(scored["candidate_ids"][index])],
            "score": _number(values[normaliser][index]),
            "log_likelihood": _number(values["sum"][index]),
            "mean": _number(values["mean"][index]),
            "char": _number(values["char"][index]),
            "candidate_id": int(scored["candidate_ids"][index]),
            "is_target": None if target < 0 else bool(index == target),
            "template": scored["template_id"],
            "normaliser": normaliser,
        }
        for index in np.argsort(scored["rank"], kind="stable")
    ]


def _number(value: np.float32) -> float:
    """Returns a number that is written in as few digits as tell it from all other float32."""
    return float(str(value))


def check_output(output: str) -> None:
    """Checks that a file can be written there.

    Raises:
      UserError: if something stands there already, or there is no such folder.
    """
    path = Path(output)
    if path.exists() or path.is_symlink():
        raise UserError(f"{output} is there already; remove it, or name another output file")
    if not path.parent.is_dir():
        raise UserError(
            f"{output} cannot be written: there is no folder {path.parent}; make it, or name "
            "another output file"
        )


@contextlib.contextmanager
def ranked_writer(output: str, ending: str) -> Iterator[Write]:
    """Yields what writes the rows of requests; the file appears whole, when the block ends.

    Args:
      output: its path; "-" for the standard output, where rows appear when they are written.
      ending: of its form, one of `ENDINGS`; JSONL on the standard output.
    """
    if output == STDOUT:
        yield _json_writer(sys.stdout.buffer)
        return
    with files.atomic_file(output) as temporary:
        if ending == ".parquet":
            with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
                yield lambda requests: writer.write_table(
                    pa.Table.from_pylist([row for rows in requests for row in rows], SCHEMA)
                )
            return
        with contextlib.ExitStack() as opened:
            stream: BinaryIO = opened.enter_context(temporary.open("wb"))
            if output.endswith(".gz"):  # without its name and the time: equal runs, equal bytes
                packed = gzip.GzipFile("", "wb", fileobj=stream, mtime=0)
                stream = cast(BinaryIO, opened.enter_context(packed))
            if ending == ".jsonl":
                yield _json_writer(stream)
            else:
                text = opened.enter_context(io.TextIOWrapper(stream, "utf-8", newline=""))
                yield _table_writer(text, "," if ending == ".csv" else "\t")


def _json_writer(stream: BinaryIO) -> Write:
    def write(requests: Sequence[Sequence[Row]]) -> None:
        for rows in requests:
            head = {name: rows[0][name] for name in OF_REQUEST}
            line = json.dumps(head | {"candidates": [*map(_own, rows)]}, ensure_ascii=False)
            stream.write(line.encode() + b"\n")
        stream.flush()

    return write


def _own(row: Row) -> Row:
    """Returns what a row tells of its candidate alone."""
    return {
        name: value
        for name, value in row.items()
        if name not in OF_REQUEST and (name != "is_target" or value is not None)
    }


def _table_writer(stream: io.TextIOWrapper, delimiter: str) -> Write:
    writer = csv.DictWriter(stream, SCHEMA.names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    return lambda requests: writer.writerows(row for rows in requests for row in rows)
