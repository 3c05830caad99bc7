"""Pre-ordered logs: one line a user with all items, oldest first, and an `items` file.

They carry no times, and whoever ordered them has filtered them too: a k-core of sequences that
were cut before would remove items that the whole log keeps, so none is applied unless asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec_jax.damage import Damage, damaged
from instructrec_jax.data.raw_log import LogBuilder, RawLog
from instructrec_jax.data.readers.formats import Format, find_one
from instructrec_jax.data.readers.plain import find_items, read_items
from instructrec_jax.data.readers.rows import Column, as_id, tsv_rows

_COLUMNS = (Column(("user_id",)), Column(("item_ids",)))


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the files."""
    sequences = find_one(folder, ("sequences.tsv",))
    return () if sequences is None else (sequences, *find_items(folder, sequences))


def _read(paths: Sequence[Path], damage: Damage) -> RawLog:
    """Reads the sequences, then the catalogue."""
    sequences, *items = paths
    builder = LogBuilder()
    first_lines: dict[str, int] = {}

    def parse(line: int, row: list[Any]) -> tuple[str, list[str]]:
        user = as_id(row[0], sequences, line, "user_id")
        first = first_lines.setdefault(user, line)
        if first != line:
            problem = f"user {user!r} stands in line {first} too; join the sequences"
            damaged(sequences, line, "user_again", problem)
        if not row[1].strip():
            problem = "item_ids is empty; expected ids with blanks between them"
            damaged(sequences, line, "empty_sequence", problem)
        return user, row[1].split()

    for user, item_ids in damage.parsed(tsv_rows(sequences, _COLUMNS, damage), parse):
        for item in item_ids:
            builder.add_event(user, item, None)
    read_items(items, builder, damage)
    return builder.build()


FORMAT = Format(
    name="sequences",
    understood=(
        "sequences.tsv (user_id, item_ids with blanks between them, oldest first) "
        "with items.tsv or .jsonl (item_id, title, optionally category, brand)"
    ),
    find=_find,
    read=_read,
    default_k_core=1,
)
