"""The audit of a teacher's texts: sheet, report beside the paper's figures, publication."""

import csv
import json
import shutil

import pytest
from pytest import approx

from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.agreement import cohen_kappa, wilson_interval
from instructrec_jax.stages.audit import publish, sample
from instructrec_jax.stages.audit.report import report
from instructrec_jax.teacher import audit
from instructrec_jax.teacher.audit import COLUMNS, QUESTIONS, Example
from instructrec_jax.teacher.texts import INTENTIONS, PREFERENCES, published


@pytest.fixture(scope="module")
def sampled(toy_prepared, toy_texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "sample"
    sample(
        dataset="toy",
        input_dir=toy_prepared,
        texts_dir=toy_texts,
        output_dir=folder,
        num_texts=20,
    )
    return folder


def rows_of(folder):
    with (folder / "sheet.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def fill(folder, path, answer, *, delimiter=","):
    """Writes a sheet whose answers a function of the row's index and the question gives."""
    rows = rows_of(folder)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        for n, row in enumerate(rows):
            writer.writerow({**row, **{name: answer(n, name) for name in QUESTIONS}})
    return str(path)


def test_a_sheet_holds_texts_with_what_they_were_made_from_and_no_user(sampled, toy_texts):
    rows = rows_of(sampled)
    assert [row["kind"] for row in rows] == [PREFERENCES] * 20 + [INTENTIONS] * 20
    assert list(rows[0]) == [*COLUMNS, *QUESTIONS]
    assert not any(row[name] for row in rows for name in QUESTIONS)
    assert len({row["number"] for row in rows}) == 40
    import pyarrow.parquet as pq

    for kind in (PREFERENCES, INTENTIONS):
        table = pq.read_table(toy_texts / f"{kind}.parquet").to_pylist()
        known = {text for row in table for text in row["texts"]}
        assert {row["text"] for row in rows if row["kind"] == kind} <= known
        written = (sampled / "sheet.csv").read_text() + (sampled / "sheet.html").read_text()
        assert not [row["user_id"] for row in table if row["user_id"] in written]


def test_the_same_seed_draws_the_same_texts(sampled, toy_prepared, toy_texts, tmp_path):
    inputs = {"dataset": "toy", "input_dir": toy_prepared, "texts_dir": toy_texts}
    sample(**inputs, output_dir=tmp_path / "same", num_texts=20)
    sample(**inputs, output_dir=tmp_path / "other", num_texts=20, seed=1)
    assert rows_of(tmp_path / "same") == rows_of(sampled) != rows_of(tmp_path / "other")


def test_a_page_escapes_titles_and_a_csv_has_no_formulas():
    from instructrec_jax.manifest import Manifest
    from instructrec_jax.report import page
    from instructrec_jax.stages.audit import _page

    planted = Example(
        number="a",
        kind=PREFERENCES,
        made_from="<script>x</script>",
        text="=1+1",
        target="t",
        target_id=0,
    )
    about = Manifest(stage="s", inputs={}, settings={"teacher": "t", "dataset": "d"})
    assert "<script>x" not in page.as_html(_page(about, [planted]))
    (row,) = csv.DictReader(audit.as_csv([planted]).splitlines())
    assert row["text"] == "'=1+1"


def test_a_report_counts_two_people_beside_the_paper(sampled, tmp_path, capsys):
    first = fill(sampled, tmp_path / "a.csv", lambda n, name: "yes" if n % 2 else "no")
    second = fill(
        sampled,
        tmp_path / "b.csv",
        lambda n, name: "" if n == 39 else ("Y" if n % 4 else "N"),
        delimiter=";",
    )
    line = ["audit", "report", f"--sample_dir={sampled}", f"--output_dir={tmp_path / 'r'}"]
    assert main.main([*line, "--sheet", first, second]) == 0
    shown = capsys.readouterr().out
    assert "50% [30%, 70%] n=20" in shown and "75% [53%, 89%] n=20" in shown
    assert all(figure in shown for figure in ("93%", "87%", "88%", "48%", "22%", "69%"))
    found = json.loads((tmp_path / "r" / "audit.json").read_text())["answers"]
    grounded = found[INTENTIONS]["grounded"]
    assert [person["number"] for person in grounded["annotators"]] == [20, 19]
    assert grounded["paper"] == 0.9
    assert found[PREFERENCES]["grounded"]["kappa"] == {"annotator 1, annotator 2": approx(0.5)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("yes", "maybe", 1), "line 2: grounded is 'maybe'; expected yes"),
        (lambda text: text.replace("grounded", "ground", 1), "no column 'grounded'"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "lacks 1 rows of the sample"),
        (lambda text: text + text.splitlines()[-1], "stands there twice"),
        (lambda text: text + "deadbeef,,,,,,,,", "'deadbeef' is not of this sample"),
        (lambda text: text.replace("yes", ""), "has no answer yet"),
    ],
)
def test_a_sheet_that_is_not_as_expected_is_refused(sampled, tmp_path, spoil, message):
    path = tmp_path / "a.csv"
    fill(sampled, path, lambda n, name: "yes")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=message):
        report(sample_dir=sampled, sheets=[str(path)], output_dir=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_audited_texts_are_published_and_others_are_not(sampled, toy_texts, tmp_path):
    texts = shutil.copytree(toy_texts, tmp_path / "texts")
    path = fill(sampled, tmp_path / "a.csv", lambda n, name: "no")
    report(sample_dir=sampled, sheets=[path], output_dir=tmp_path / "r")
    assert published(texts) is None
    assert publish(texts_dir=texts, report_dir=tmp_path / "r") == "extractive-3"
    note = published(texts)
    assert (note["num_texts"], note["num_annotators"]) == (40, 1)
    with pytest.raises(UserError, match="holds no report of an audit"):
        publish(texts_dir=texts, report_dir=sampled)
    manifest = (texts / "manifest.json").read_text()
    (texts / "manifest.json").write_text(manifest.replace("\n", "\n ", 1))
    assert published(texts) is None
    with pytest.raises(UserError, match="is on other texts than those"):
        publish(texts_dir=texts, report_dir=tmp_path / "r")


def test_wilson_and_kappa_by_hand():
    found = wilson_interval(9, 10)
    assert (found.estimate, found.low, found.high) == approx((0.9, 0.5958, 0.9821), abs=1e-4)
    assert wilson_interval(0, 5).low == 0.0 and wilson_interval(5, 5).high == 1.0
    assert cohen_kappa([True, True, False, False], [True, False, False, False]) == approx(0.5)
    assert cohen_kappa([True, True], [True, True]) is None
    assert cohen_kappa([True, False], [False, True]) == approx(-1.0)
