"""Logs in Parquet files, and datasets that Hugging Face's `save_to_disk` wrote."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_logs import named_events, read_logs

from instructrec_jax.errors import UserError


def saved(folder: Path, table: pa.Table, *, names: tuple[str, ...]) -> None:
    """Writes a table as `save_to_disk` of Hugging Face's datasets does, half in each file."""
    folder.mkdir(parents=True)
    half = -(-len(table) // len(names))
    for number, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table.slice(number * half, half))
    (folder / "cache-of-a-map.arrow").write_bytes(b"not a part of it")
    state = {"_data_files": [{"filename": name} for name in names], "_split": "interactions"}
    (folder / "state.json").write_text(json.dumps(state))


EVENTS = pa.table(
    {
        "item_id": [7, 8, 9],
        "user_id": ["u1", "u1", "u2"],
        "timestamp": pa.array([30_000, None, 10_500], pa.timestamp("ms", tz="UTC")).fill_null(
            20_000
        ),
        "price": [None, 1.0, 2.0],
    }
)
GOODS = pa.table(
    {
        "item_id": [7, 8, 9],
        "title": ["Red Kite", "Blue Kite", "Moon Doll"],
        "category": [["Toys", "Kites"], [], None],
        "brand": pa.array(["Acme", "Acme", None]).dictionary_encode(),
    }
)


def test_saved_datasets_and_parquet_files_give_the_same_log(tmp_path):
    saved(tmp_path / "saved" / "interactions", EVENTS, names=("data-1.arrow", "data-0.arrow"))
    saved(tmp_path / "saved" / "items", GOODS, names=("data-0.arrow",))
    (tmp_path / "files" / "items").mkdir(parents=True)
    pq.write_table(EVENTS, tmp_path / "files" / "interactions.parquet")
    for number in range(3):
        pq.write_table(GOODS.slice(number, 1), tmp_path / "files" / "items" / f"{number}.parquet")
    logs = [read_logs(tmp_path / name) for name in ("saved", "files")]
    for log in logs:
        assert named_events(log) == [("u1", "7", 30.0), ("u1", "8", 20.0), ("u2", "9", 10.5)]
        assert [item.title for item in log.items] == GOODS["title"].to_pylist()
        assert [item.category for item in log.items] == ["Toys, Kites", "", ""]
        assert [item.brand for item in log.items] == ["Acme", "Acme", ""]


def test_tables_that_cannot_be_read_say_what_is_wrong(tmp_path):
    pq.write_table(GOODS, tmp_path / "items.parquet")
    for write, expected in (
        (lambda path: path.mkdir(), "interactions holds no table"),
        (lambda path: (path / "state.json").write_text("{}"), "does not list the files"),
        (
            lambda path: (path / "state.json").write_text('{"_data_files": [{"filename": "a"}]}'),
            "names a, which is not there",
        ),
        (lambda path: (path / "a").write_bytes(b"no table"), "cannot be read as a table"),
        (
            lambda path: (
                (path / "state.json").unlink(),
                pq.write_table(GOODS, path / "0.parquet"),
            ),
            "no column 'user_id'; the header has 'item_id', 'title'",
        ),
        (lambda path: (path / "0.parquet").write_bytes(b"PAR1"), "cannot be read as a table"),
        (lambda path: pq.write_table(EVENTS.slice(0, 0), path / "0.parquet"), "holds no rows"),
    ):
        write(tmp_path / "interactions")
        with pytest.raises(UserError, match=re.escape(expected)):
            read_logs(tmp_path)
