"""Tables of Parquet and Arrow: a file, or a folder as Hugging Face `datasets` and pandas save one.

`Dataset.save_to_disk` writes a folder with state.json, which names its Arrow files in order; a
folder without it holds Parquet files, which are read in the order of their names.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.data.readers.rows import Column, indices
from instructrec_jax.errors import UserError

_STATE = "state.json"
_ENDING = ".parquet"
_ARROW_FILE = b"ARROW1"  # begins a file of Arrow; what lacks it is a stream, as `datasets` writes


def is_table(path: Path) -> bool:
    """Whether a path is read here: a folder, or a Parquet file by its name."""
    return _is_folder(path) or path.suffix == _ENDING


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder of a table; one that is named as a file, `x.tsv`, is none."""
    return path.is_dir() and not path.suffix


def files_of(path: Path) -> list[Path]:
    """Returns the files that a path stands for, in order; itself where it is no folder.

    Raises:
      UserError: if a folder holds no table, or a file that it names is missing.
    """
    if not _is_folder(path):
        return [path]
    if (state := path / _STATE).is_file():
        found = [path / name for name in _saved_names(state)]
    else:
        found = sorted(path.glob(f"*{_ENDING}"))
    for file in found:
        if not file.is_file():
            raise UserError(f"{state} names {file.name}, which is not there; save the table again")
    if not found:
        raise UserError(
            f"{path} holds no table; expected Parquet files, or what `save_to_disk` of Hugging "
            f"Face's datasets writes ({_STATE} and Arrow files)"
        )
    return found


def _saved_names(state: Path) -> list[str]:
    """Returns the names of the Arrow files of a saved dataset."""
    try:
        names = [
            entry["filename"] for entry in files.parse_json(files.read_text(state))["_data_files"]
        ]
        are_names = all(Path(name).name == name for name in names)
    except (ValueError, TypeError, KeyError):
        are_names = False
    if not are_names:
        raise UserError(f"{state} does not list the files of a saved dataset; save it again")
    return names


def table_rows(path: Path, columns: Sequence[Column]) -> Iterator[tuple[int, list[Any]]]:
    """Yields (row number from 1, values in the order of `columns`); None where a value is absent.

    Times and dates become seconds since 1970.

    Args:
      path: a file or folder for which `is_table` holds.
      columns: what to read; nothing else is.

    Raises:
      UserError: on a required column that is missing, or a file that is damaged or no table.
    """
    number = 0
    for file in files_of(path):
        files.check_is_file(file)
        try:
            for batch in _batches(file, columns):
                for row in zip(*batch, strict=True):
                    number += 1
                    yield number, list(row)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{file} cannot be read as a table after row {number} ({reason}); write it again"
            ) from None
    if not number:
        raise UserError(f"{path} holds no rows")


def _batches(file: Path, columns: Sequence[Column]) -> Iterator[list[list[Any]]]:
    """Yields the values of some rows at a time, column by column."""
    with contextlib.ExitStack() as opened:
        if file.suffix == _ENDING:
            table = opened.enter_context(pq.ParquetFile(file))
            names = table.schema_arrow.names
            found_at = indices(file, names, columns)
            wanted = [names[index] for index in found_at if index is not None]
            batches = table.iter_batches(columns=wanted)
        else:
            source = opened.enter_context(pa.memory_map(str(file)))
            is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
            source.seek(0)
            reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
            names = reader.schema.names
            found_at = indices(file, names, columns)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield [
                [None] * len(batch) if index is None else _values(batch.column(names[index]))
                for index in found_at
            ]


def _values(column: pa.Array) -> list[Any]:
    """Returns a column as Python values; times and dates as seconds since 1970."""
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        return column.to_pylist()
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    units = column.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
    return [None if value is None else value / 1e6 for value in units.to_pylist()]
