"""Artefact B: the texts of a teacher on histories and reviews, as two Parquet files.

`preferences.parquet` has a row for each position of a user that a teacher looked at: texts on the
taste that the items before it show. `intentions.parquet` has a row for each review that it read:
texts on the intention behind the choice, in the user's voice and seen from outside. A row without
texts says that the teacher was silent. `version` tells who wrote a row; the manifest's setting
`written_by` holds the model, the prompt version and the date of every version.

A preference also serves the later positions of its user, up to the next row: whoever wrote it has
seen nothing that they may not show. It never serves an earlier one. An intention is about one item
and serves its own position alone.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from instructrec_jax import files
from instructrec_jax.data.columnar import Histories
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import FILE_NAME, Manifest, check_files, read_manifest
from instructrec_jax.records import Annotation, Item

STAGE = "annotate"
FORMAT = 1  # of the files below; part of the manifest
PREFERENCES, INTENTIONS = "preferences", "intentions"
PUBLISHED = "published.json"  # says by which audit the texts were found fit for training
Table: TypeAlias = pa.Table
_TEXTS = pa.list_(pa.string())
_ROW = {"user_id": pa.string(), "position": pa.int32(), "texts": _TEXTS}
SCHEMAS = {
    PREFERENCES: pa.schema({**_ROW, "version": pa.string()}),
    INTENTIONS: pa.schema({**_ROW, "second_texts": _TEXTS, "version": pa.string()}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intentions:
    """What a teacher made of one review: the intention behind the choice, twice.

    Attributes:
      vague: texts of I1, in the user's own voice; () where the review shows no intention.
      second_vague: texts of I1*, seen from outside.
      rejected: texts left out by reason, such as {"quotes_title": 1}.
    """

    vague: tuple[str, ...] = ()
    second_vague: tuple[str, ...] = ()
    rejected: Mapping[str, int] = dataclasses.field(default_factory=dict)


class Teacher(Protocol):
    """Who writes preferences and intentions (paper section 2.2.2).

    Attributes:
      name: name and version, written into every row.
    """

    name: str

    def preferences(self, history: Sequence[Item]) -> tuple[str, ...]:
        """Returns texts on the taste that a history shows, oldest item first; () for none."""
        ...

    def intentions(self, review: str, target: Item) -> Intentions:
        """Returns the intentions that a review of the target tells of."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What was written on one position.

    Attributes:
      user_id: as in the raw log.
      position: in the user's history.
      annotation: the texts; none where the teacher was silent.
    """

    user_id: str
    position: int
    annotation: Annotation


def as_table(name: str, rows: Iterable[Row]) -> Table:
    """Returns rows as a table of one of the files, "preferences" or "intentions"."""
    plain = [
        {"user_id": row.user_id, "position": row.position, **vars(row.annotation)} for row in rows
    ]
    return pa.Table.from_pylist(plain, schema=SCHEMAS[name])


class TextsWriter:
    """Writes both files into a folder that exists, table by table. A context."""

    def __init__(self, folder: Path | str) -> None:
        self._writers = {
            name: pq.ParquetWriter(Path(folder) / f"{name}.parquet", schema, compression="zstd")
            for name, schema in SCHEMAS.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, name: str, table: Table) -> None:
        """Appends a table of "preferences" or "intentions"."""
        self._writers[name].write_table(table)


def read_texts_manifest(folder: Path | str, *, prepared: Sequence[str]) -> Manifest:
    """Reads the manifest of artefact B.

    Args:
      folder: output folder of `annotate`.
      prepared: `hashes_of` the prepared data that the texts must belong to.

    Raises:
      UserError: if the folder holds no such texts, or they are damaged.
    """
    found = read_manifest(folder)
    if found.stage != STAGE:
        raise UserError(
            f"{folder} holds the output of {found.stage!r}, expected that of {STAGE!r}; "
            f"name the folder that `instructrec {STAGE}` wrote"
        )
    if found.settings.get("format") != FORMAT:
        raise UserError(
            f"{folder} holds texts of format {found.settings.get('format')!r}, expected {FORMAT}; "
            f"run `instructrec {STAGE}` again"
        )
    if found.inputs.get("prepared") not in prepared:
        raise UserError(
            f"{folder} holds texts on other prepared data than these; run `instructrec {STAGE}` "
            "on the folder that `build` reads"
        )
    check_files(folder)
    return found


def published(folder: Path | str) -> dict[str, Any] | None:
    """Returns what `audit publish` noted on the texts of a folder, None where it did not.

    Raises:
      UserError: if the note is damaged.
    """
    path = Path(folder) / PUBLISHED
    if not path.exists():
        return None
    note = files.read_json(path, dict, remedy="run `instructrec audit publish` again")
    return note if note.get("texts") == files.sha256(Path(folder) / FILE_NAME) else None


class Texts:
    """The texts of artefact B; a `records.TeacherTexts`.

    Any position can be asked for at any time, so the texts are unpacked once into Arrow files,
    which are mapped and not read: many processes share them, and their size does not matter.
    """

    def __init__(self, folder: Path | str, histories: Histories, *, unpacked: Path | str) -> None:
        """Opens the texts.

        Args:
          folder: output folder of `annotate`.
          histories: those of the prepared data that the texts were written on.
          unpacked: folder for the Arrow files; those that are there already are taken.

        Raises:
          UserError: if a file is damaged or names a position that the histories do not have.
        """
        tables = {}
        for name in SCHEMAS:
            source, path = Path(folder) / f"{name}.parquet", Path(unpacked) / f"{name}.arrow"
            try:
                if not path.exists():
                    _unpack(source, path, SCHEMAS[name])
                tables[name] = _Table(path, histories)
            except (OSError, pa.ArrowInvalid, ValueError) as error:
                raise UserError(
                    f"cannot read {source} ({str(error).splitlines()[0]}); remove its folder and "
                    f"run `instructrec {STAGE}` again"
                ) from None
        self._preferences, self._intentions = tables[PREFERENCES], tables[INTENTIONS]
        self._preferences.carry_forward()

    def preference(self, user: int, position: int) -> Annotation:
        """Returns what was last written on the user's taste at this position or before it."""
        return self._preferences.at(user, position)

    def intentions(self, user: int, position: int) -> Annotation:
        """Returns what was written on the user's review of the item at this position."""
        return self._intentions.at(user, position)


class _Table:
    """Rows of a file by user and position."""

    def __init__(self, path: Path, histories: Histories) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._columns = {
            name: table[name] for name in table.column_names if name not in ("user_id", "position")
        }
        self._starts = histories.starts
        users = pc.fill_null(pc.index_in(table["user_id"], value_set=histories.user_ids), -1)
        self._row_of_event = _rows_of_events(
            users.to_numpy(), table["position"].to_numpy(), self._starts
        )

    def carry_forward(self) -> None:
        """Lets each row serve the later positions of its user, up to the next row."""
        events = np.arange(len(self._row_of_event))
        latest = np.maximum.accumulate(np.where(self._row_of_event >= 0, events, -1))
        first = np.repeat(self._starts[:-1], np.diff(self._starts))
        self._row_of_event = np.where(latest >= first, self._row_of_event[latest], -1)

    def at(self, user: int, position: int) -> Annotation:
        """Returns the row that serves a position; an empty one if there is none."""
        row = int(self._row_of_event[self._starts[user] + position])
        if row < 0:
            return Annotation()
        found: dict[str, Any] = {name: self._columns[name][row].as_py() for name in self._columns}
        version = found.pop("version") or ""
        return Annotation(version=version, **{name: tuple(t or ()) for name, t in found.items()})


def _rows_of_events(
    users: npt.NDArray[np.integer], positions: npt.NDArray[np.integer], starts: npt.NDArray
) -> npt.NDArray[np.int64]:
    """Returns [total] the row of each entry of the histories, -1 for none.

    Raises:
      ValueError: if a row names a user or a position that is not there.
    """
    if len(users) and users.min() < 0:
        raise ValueError("it names a user who is not in the prepared data")
    is_outside = (positions < 0) | (positions >= np.diff(starts)[users])
    if is_outside.any():
        raise ValueError(f"row {int(np.argmax(is_outside))} names a position beyond its history")
    rows = np.full(int(starts[-1]), -1, dtype=np.int64)
    rows[starts[users] + positions] = np.arange(len(users))
    return rows


def _unpack(source: Path, path: Path, schema: pa.Schema) -> None:
    """Writes a Parquet file as an Arrow file, batch by batch."""
    files.check_is_file(source)
    with files.atomic_file(path) as temporary, pq.ParquetFile(source) as parquet:
        if not parquet.schema_arrow.equals(schema):
            raise ValueError(f"it has the columns {', '.join(parquet.schema_arrow.names)}")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for batch in parquet.iter_batches():
                file.write_batch(batch)
