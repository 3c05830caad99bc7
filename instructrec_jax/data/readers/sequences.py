"""Pre-ordered logs: one line a user with all items, oldest first, and an `items` file.

They carry no times, and whoever ordered them has filtered them too: a k-core of sequences that
were cut before would remove items that the whole log keeps, so none is applied unless asked for.
"""

from collections.abc import Sequence
from pathlib import Path

from instructrec_jax.data.raw_log import LogBuilder, RawLog
from instructrec_jax.data.readers.formats import Format, find_one, need_one
from instructrec_jax.data.readers.lines import fail
from instructrec_jax.data.readers.plain import ITEM_FILES, read_items
from instructrec_jax.data.readers.rows import Column, as_id, tsv_rows

_COLUMNS = (Column(("user_id",)), Column(("item_ids",)))


def _find(folder: Path) -> tuple[Path, ...]:
    """Finds the two files."""
    sequences = find_one(folder, ("sequences.tsv",))
    return () if sequences is None else (sequences, need_one(folder, ITEM_FILES, sequences))


def _read(paths: Sequence[Path]) -> RawLog:
    """Reads the sequences, then the catalogue."""
    sequences, items = paths
    builder = LogBuilder()
    first_lines: dict[str, int] = {}
    for line, (user, item_ids) in tsv_rows(sequences, _COLUMNS):
        user = as_id(user, sequences, line, "user_id")
        first = first_lines.setdefault(user, line)
        if first != line:
            fail(sequences, line, f"user {user!r} stands in line {first} too; join the sequences")
        if not item_ids.strip():
            fail(sequences, line, "item_ids is empty; expected ids with blanks between them")
        for item in item_ids.split():
            builder.add_event(user, item, None, path=sequences, line=line)
    read_items(items, builder)
    return builder.build()


FORMAT = Format(
    name="sequences",
    understood=(
        "sequences.tsv (user_id, item_ids with blanks between them, oldest first) "
        "with items.tsv or .jsonl (item_id, title, optionally category)"
    ),
    find=_find,
    read=_read,
    default_k_core=1,
)
