"""MovieLens as GroupLens publishes it: `ratings` and `movies`, `.dat` with "::" or `.csv`.

Every rating is an event, whatever it says. `.dat` files have no header; of 1M they are Latin-1.
"""

import csv
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.damage import Damage, damaged
from instructrec_jax.data.readers.raw_log import (
    Format,
    LogBuilder,
    RawItem,
    RawLog,
    RowEvents,
    find_one,
)
from instructrec_jax.data.readers.recbole import genres_path
from instructrec_jax.data.readers.rows import fail, read_lines
from instructrec_jax.data.readers.values import as_id

_RATINGS = ("userId", "movieId", "rating", "timestamp")
_MOVIES = ("movieId", "title", "genres")


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the two files."""
    ratings = find_one(folder, ("ratings.dat", "ratings.csv"))
    if ratings is None:
        return ()
    name = ratings.name.replace("ratings", "movies").removesuffix(".gz")
    movies = find_one(folder, (name,))
    return () if movies is None else (ratings, movies)


def _read(
    paths: Sequence[Path], builder: LogBuilder, damage: Damage, _: Mapping[str, str]
) -> RawLog:
    """Reads both files."""
    ratings, movies = paths
    again = functools.partial(_open_events, ratings)
    builder.add_events(again(damage), again=again, damage=damage)
    for line, (item, title, genres) in _rows(movies, _MOVIES, damage):
        raw_id = as_id(item, movies, line, "movieId")
        builder.add_item(RawItem(raw_id=raw_id, title=title, category=genres_path(genres)))
    return builder.build(has_unix_times=True)


def _open_events(path: Path, damage: Damage) -> RowEvents:
    """Begins a pass over the ratings."""
    rows: Iterator[tuple[int, list[Any]]] = (
        (line, [user, item, time, None])
        for line, (user, item, _, time) in _rows(path, _RATINGS, damage)
    )
    return RowEvents(path=path, rows=rows, damage=damage)


def _rows(path: Path, names: Sequence[str], damage: Damage) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of a file."""
    is_csv = ".csv" in path.suffixes
    lines = read_lines(path, damage, fallback="latin-1")
    if is_csv:
        number, header = next(lines)
        if header.split(",") != list(names):
            fail(path, number, f"the header is {header[:80]!r}, expected {','.join(names)!r}")

    def parse(line: int, text: str) -> tuple[int, list[str]]:
        fields = next(csv.reader([text])) if is_csv else text.split("::")
        if len(fields) != len(names):
            problem = f"{len(fields)} fields, expected {len(names)}: {', '.join(names)}"
            damaged(path, line, "wrong_fields", problem)
        return line, fields

    return damage.parsed(lines, parse)


FORMAT = Format(
    name="movielens",
    understood="MovieLens' ratings.dat with movies.dat, or ratings.csv with movies.csv",
    find=_find,
    read=_read,
)
