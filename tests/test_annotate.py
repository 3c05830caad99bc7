"""Artefact B: the stage that writes it, and who may read what of it."""

import logging
from pathlib import Path

import columns
import pyarrow.parquet as pq
import pytest

from instructrec_jax import files
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import read_manifest
from instructrec_jax.records import Annotation, History
from instructrec_jax.stages.annotate import AnnotateSettings, annotate
from instructrec_jax.teacher import texts
from instructrec_jax.teacher.extractive import ExtractiveTeacher
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, Row, Texts, TextsWriter

HISTORIES = columns.histories(
    [
        History(user_id="a", item_ids=(0, 1, 2, 3)),
        History(user_id="b", item_ids=(3, 2, 1)),
        History(user_id="c", item_ids=(1, 2, 0)),
    ]
)


def write(folder: Path, preferences=(), intentions=()) -> Texts:
    """Writes rows of (user, position, *texts) and opens them."""
    folder.mkdir(parents=True)
    with TextsWriter(folder) as writer:
        for name, rows in ((PREFERENCES, preferences), (INTENTIONS, intentions)):
            made = [
                Row(
                    user_id=user,
                    position=position,
                    annotation=Annotation(
                        texts=tuple(said),
                        second_texts=tuple(f"they: {text}" for text in said),
                        version="hand-1",
                    ),
                )
                for user, position, *said in rows
            ]
            writer.write(name, texts.as_table(name, made))
    return Texts(folder, HISTORIES, unpacked=folder / "unpacked")


def test_a_preference_serves_later_positions_of_its_user_and_never_earlier_ones(tmp_path):
    found = write(tmp_path / "b", preferences=[("c", 2, "late"), ("a", 1, "one", "two")])
    by_position = [[found.preference(user, n).texts for n in range(3)] for user in range(3)]
    assert by_position == [
        [(), ("one", "two"), ("one", "two")],
        [(), (), ()],
        [(), (), ("late",)],
    ]
    assert found.preference(0, 3) == Annotation(texts=("one", "two"), version="hand-1")


def test_a_later_row_takes_over_even_where_the_teacher_was_silent(tmp_path):
    found = write(tmp_path / "b", preferences=[("a", 1, "early"), ("a", 3), ("b", 1, "other")])
    assert [found.preference(0, n).texts for n in range(4)] == [(), ("early",), ("early",), ()]


def test_an_intention_serves_its_own_position_alone(tmp_path):
    found = write(tmp_path / "b", intentions=[("b", 1, "want it")])
    assert [found.intentions(1, n).texts for n in range(3)] == [(), ("want it",), ()]
    assert found.intentions(1, 1).second_texts == ("they: want it",)


@pytest.mark.parametrize(
    ("row", "message"),
    [(("nobody", 1, "x"), "a user who is not"), (("b", 3, "x"), "row 0 names a position beyond")],
)
def test_a_row_that_belongs_to_no_position_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "b", preferences=[row])


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path / "b")
    (tmp_path / "b" / "intentions.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"cannot read .*intentions\.parquet .*run `instructrec an"):
        Texts(tmp_path / "b", HISTORIES, unpacked=tmp_path / "again")


def test_every_position_gets_what_the_teacher_says_of_it(toy_prepared, toy_texts, tmp_path):
    data = read_prepared(toy_prepared)
    found = Texts(toy_texts, data.histories, unpacked=tmp_path)
    teacher = ExtractiveTeacher()
    for user, history in enumerate(data.histories[:20]):
        items = [data.items[item_id] for item_id in history.item_ids]
        for position, review_row in enumerate(history.review_rows):
            assert found.preference(user, position).texts == teacher.preferences(items[:position])
            written = found.intentions(user, position)
            said = teacher.intentions(data.reviews[review_row], items[position])
            assert (written.texts, written.second_texts) == (said.vague, said.second_vague)


def test_the_manifest_counts_what_was_written_and_left_out(toy_texts):
    found = read_manifest(toy_texts)
    assert found.settings["teacher"] == ExtractiveTeacher.name
    assert found.settings["written_by"].keys() == {ExtractiveTeacher.name}
    for name in (PREFERENCES, INTENTIONS):
        rows = pq.read_table(toy_texts / f"{name}.parquet").to_pylist()
        having = [row["user_id"] for row in rows if row["texts"]]
        assert found.counts[f"{name}_asked"] == len(rows) > 0
        assert found.counts[name] == len(having) > 0
        assert found.counts[f"users_with_{name}"] == len(set(having))
    assert found.counts["intentions"] < found.counts["intentions_asked"] or not found.drops


def test_several_processes_write_the_same_bytes(toy_prepared, toy_texts, tmp_path, monkeypatch):
    annotate(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path / "b", num_workers=2)
    for name in texts.SCHEMAS:
        path = f"{name}.parquet"
        assert files.sha256(tmp_path / "b" / path) == files.sha256(toy_texts / path)


def test_few_positions_are_spread_over_the_history(toy_prepared, tmp_path):
    settings = AnnotateSettings(max_positions=3)
    annotate(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path / "b", settings=settings)
    for name in texts.SCHEMAS:
        positions: dict[str, list[int]] = {}
        for row in pq.read_table(tmp_path / "b" / f"{name}.parquet").to_pylist():
            positions.setdefault(row["user_id"], []).append(row["position"])
        for history in read_prepared(toy_prepared).histories:
            last = len(history.item_ids) - 1
            assert positions[history.user_id] == sorted({1, round((1 + last) / 2), last})


def test_the_same_work_is_not_done_twice_and_other_work_not_overwritten(
    toy_prepared, toy_texts, caplog
):
    caplog.set_level(logging.INFO)
    annotate(dataset="toy", input_dir=toy_prepared, output_dir=toy_texts)
    assert "up to date" in caplog.text
    settings = AnnotateSettings(max_positions=1)
    with pytest.raises(UserError, match=r"settings\['max_positions'\] was None"):
        annotate(dataset="toy", input_dir=toy_prepared, output_dir=toy_texts, settings=settings)


def test_a_mistake_is_named_and_leaves_nothing(toy_prepared, tmp_path):
    with pytest.raises(UserError, match="unknown teacher 'extractve'; the nearest known: extract"):
        AnnotateSettings(teacher="extractve")
    with pytest.raises(UserError, match="max_positions is 0"):
        AnnotateSettings(max_positions=0)
    with pytest.raises(UserError, match="holds dataset 'toy', not 'toys'"):
        annotate(dataset="toys", input_dir=toy_prepared, output_dir=tmp_path / "b")
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        annotate(dataset="toy", input_dir=tmp_path, output_dir=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
