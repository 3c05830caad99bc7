"""The report: choice on validation, baselines beside the model, and what it refuses."""

import dataclasses
import json
import shutil

import columns
import numpy as np
import pytest
from report_toy import (
    NUM_ITEMS,
    NUM_USERS,
    TEST,
    make_data,
    make_folders,
    model,
    run,
    write_scores,
)

from instructrec_jax.data import prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.metrics import ranking
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report import ranking_report, results, tables
from instructrec_jax.report.results import Choice
from instructrec_jax.scores import parts
from instructrec_jax.stages.report.choice import chosen_templates


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("report"))


def test_validation_chooses_the_template_even_where_test_would_choose_another(folders, tmp_path):
    found = run(folders, tmp_path / "out")["scenarios"]["sequential"]
    assert found["chosen"]["model"]["template_id"] == "A9"
    assert {choice["template_id"] for choice in found["validation"]["model"]} == {"A7", "A9"}


def test_what_the_report_will_choose_is_known_before_the_test_split_is_scored(folders, tmp_path):
    chosen = chosen_templates(folders / "prepared", folders / "validation")
    found = run(folders, tmp_path / "out", normalisers=None)["scenarios"]
    assert chosen == {name: own["chosen"]["model"]["template_id"] for name, own in found.items()}


def test_every_scenario_has_its_systems_and_their_intervals(folders, tmp_path):
    found = run(folders, tmp_path / "out")["scenarios"]
    assert list(found) == ["sequential", "product_search.specific", "personalized_search.specific"]
    with_history = ["random", "popularity", "cooccurrence", "model"]
    assert list(found["sequential"]["test"]) == with_history
    assert list(found["personalized_search.specific"]["test"]) == with_history
    assert list(found["product_search.specific"]["test"]) == ["random", "popularity", "model"]
    for result in found.values():
        for metrics in result["test"].values():
            assert list(metrics) == ["hr@1", "hr@3", "hr@5", "ndcg@3", "ndcg@5"]
            for value in metrics.values():
                assert 0 <= value["low"] <= value["estimate"] <= value["high"] <= 1


def test_the_model_leads_random_by_the_difference_of_their_rows(folders, tmp_path):
    found = run(folders, tmp_path / "out")["scenarios"]["sequential"]
    lead = found["minus"]["model"]["random"]["hr@1"]
    rows = found["test"]
    expected = rows["model"]["hr@1"]["estimate"] - rows["random"]["hr@1"]["estimate"]
    assert lead["estimate"] == pytest.approx(expected)
    assert lead["low"] > 0


def test_every_number_carries_its_protocol(folders, tmp_path):
    for result in run(folders, tmp_path / "out")["scenarios"].values():
        protocol = result["protocol"]
        assert protocol["dataset"] == "toy" and protocol["split"] == "test"
        assert protocol["num_candidates"] == 10 and protocol["num_examples"] in (NUM_USERS, 10)
        assert protocol["num_examples_left_out"] == 0
        own = protocol["systems"]["model"]
        assert own["teacher"] == "hand-1" and own["checkpoint_step"] == 30
        assert own["written_by"] == "instructrec" and own["normaliser"] in ("sum", "mean")
        assert len(protocol["candidates_sha256"]) == 64
        assert protocol["command"] and protocol["interval"]


def test_draws_of_an_event_are_averaged_and_do_not_count_as_examples(tmp_path):
    data = make_data()
    again = [
        dataclasses.replace(
            example,
            example_id=f"{example.example_id}#2",
            candidate_ids=tuple(
                sorted(example.candidate_ids, key=lambda item: (item * 7) % NUM_ITEMS)
            ),
        )
        for example in data.candidates
        if example.split == "test"
    ]
    both = sorted([*data.candidates, *again], key=lambda e: (e.position < 0, e.example_id))
    data = dataclasses.replace(data, candidates=columns.candidates(both, data.histories))
    (tmp_path / "prepared").mkdir()
    columns.write_prepared(tmp_path / "prepared", data)
    Manifest(stage="prepare", inputs={}, settings={"dataset": "toy"}).write(tmp_path / "prepared")
    data = prepared.read_prepared(tmp_path / "prepared")
    for split in ("validation", "test"):
        write_scores(tmp_path / split, data, split, {"A9": 2.5})
    folders = {"model": [tmp_path / split for split in ("validation", "test")]}
    arguments = {"scores": folders, "prepared_dir": tmp_path / "prepared", "metrics_file": None}
    found = run(tmp_path, tmp_path / "out", **arguments)["scenarios"]["sequential"]
    assert found["protocol"]["num_examples"] == NUM_USERS and found["protocol"]["num_draws"] == "2"
    rows = parts.read_scores(tmp_path / "test")
    rank = [
        1 + sum(value >= values[target] for value in values) - 1
        for values, target in zip(rows.log_likelihood, rows.target_index, strict=True)
    ]
    assert len(rank) == 2 * NUM_USERS
    estimate = found["test"]["model"]["hr@1"]["estimate"]
    assert estimate == pytest.approx(np.mean([r == 1 for r in rank]))
    bias = found["position_bias"]["model"]["rows"]
    assert sum(row["num_examples"] for row in bias) == NUM_USERS
    assert "60, 10 candidates in 2 draws" in (tmp_path / "out" / "report.txt").read_text()


def test_the_folder_holds_json_markdown_text_and_curve(folders, tmp_path):
    found = run(folders, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *(f"report.{ending}" for ending in ("json", "md", "txt", "html")),
        *("paired_differences.png", "training_curve.png", "manifest.json"),
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found
    for name in ("paired_differences", "training_curve"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "![training curve](training_curve.png)" in (tmp_path / "out" / "report.md").read_text()
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "toy sequential: n=60, 10 candidates\n" in text
    assert "model: template A9, normaliser sum" in text


def test_the_table_fits_a_log_of_100_plain_columns(folders, tmp_path):
    run(folders, tmp_path / "out")
    text = (tmp_path / "out" / "report.txt").read_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    assert text.isascii() and "\x1b" not in text
    assert "…" not in text and text.count("cooccurrence") == 4  # two rows and two leads, uncut


def test_a_second_run_keeps_what_is_there(folders, tmp_path, caplog):
    first = run(folders, tmp_path / "out")
    written = (tmp_path / "out" / "report.json").stat().st_mtime_ns
    caplog.set_level("INFO")
    assert run(folders, tmp_path / "out") == first
    assert (tmp_path / "out" / "report.json").stat().st_mtime_ns == written
    assert "up to date" in caplog.text


def test_reports_are_the_same_whenever_they_are_made(folders, tmp_path):
    first, second = (run(folders, tmp_path / name) for name in "ab")
    assert first == second


def test_without_a_metrics_file_there_is_no_curve(folders, tmp_path):
    run(folders, tmp_path / "out", metrics_file=None)
    assert not (tmp_path / "out" / "training_curve.png").exists()
    assert "training curve" not in (tmp_path / "out" / "report.md").read_text()


def _wrong_candidates(rows):
    ids = rows[0]["candidate_ids"]
    absent = next(item for item in range(NUM_ITEMS) if item not in ids)
    ids[(rows[0]["target_index"] + 1) % len(ids)] = absent


def _wrong_target(rows):
    rows[0]["target_index"] = (rows[0]["target_index"] + 1) % 10


def _unknown_example(rows):
    rows[0]["example_id"] = "nobody:7"


def _doubled(rows):
    rows.append(rows[0])


def _not_a_number(rows):
    rows[3]["log_likelihood"][2] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrong_candidates, "among other candidates"),
        (_wrong_target, "among other candidates"),
        (_unknown_example, "'nobody:7', which is no test example"),
        (_doubled, "twice"),
        (_not_a_number, "NaN"),
    ],
)
def test_scores_that_do_not_fit_the_candidates_are_refused(folders, tmp_path, change, message):
    write_scores(tmp_path / "test", make_data(), "test", TEST, change=change)
    with pytest.raises(UserError, match=message):
        run(folders, tmp_path / "out", scores=model(folders, test=tmp_path / "test"))
    assert not (tmp_path / "out").exists()


def test_scores_of_two_checkpoints_are_refused(folders, tmp_path):
    write_scores(tmp_path / "test", make_data(), "test", TEST, step=31)
    with pytest.raises(UserError, match=r"checkpoint step 30 and .* of step 31"):
        run(folders, tmp_path / "out", scores=model(folders, test=tmp_path / "test"))


def test_exchanged_folders_are_noticed(folders, tmp_path):
    with pytest.raises(UserError, match="holds scores of the test split, not of validation"):
        run(folders, tmp_path / "out", scores={"model": (folders / "test", folders / "validation")})


def test_a_template_that_only_validation_scored_is_named(folders, tmp_path):
    write_scores(tmp_path / "test", make_data(), "test", {"A7": 1.0})
    with pytest.raises(UserError, match="lack template A9"):
        run(folders, tmp_path / "out", scores=model(folders, test=tmp_path / "test"))


def test_unfinished_scoring_is_refused(folders, tmp_path):
    shutil.copytree(folders / "test", tmp_path / "test")
    dataclasses.replace(read_manifest(tmp_path / "test"), counts={}).write(tmp_path / "test")
    with pytest.raises(UserError, match="has not finished"):
        run(folders, tmp_path / "out", scores=model(folders, test=tmp_path / "test"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "toys"}, "holds dataset 'toy', not 'toys'"),
        ({"normalisers": ("product",)}, "unknown normaliser 'product'"),
        ({"normalisers": ()}, "no normaliser"),
        ({"metrics_file": "none.jsonl"}, "none.jsonl is not there"),
        ({"prepared_dir": "nowhere"}, "nowhere holds no candidates.parquet"),
        ({"scores": {"model": ("nowhere", "nowhere")}}, "no scores in nowhere"),
        ({"scores": {}}, "name those of at least one system"),
    ],
)
def test_wrong_arguments_are_named(folders, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(folders, tmp_path / "out", **changes)


def test_a_report_of_other_scores_is_never_overwritten(folders, tmp_path):
    run(folders, tmp_path / "out")
    with pytest.raises(UserError, match="holds another run"):
        run(folders, tmp_path / "out", normalisers=("sum",))


def choice(template_id, ndcg, hit, normaliser="sum"):
    metrics = {"ndcg@5": ndcg, "hr@1": hit}
    return Choice(template_id=template_id, normaliser=normaliser, num_examples=9, metrics=metrics)


def test_ties_go_to_hr_at_1_then_to_the_lower_id():
    best = choice("A10", 0.5, 0.3)
    assert results.choose([choice("A7", 0.4, 0.9), best]) == best
    assert results.choose([choice("A7", 0.5, 0.2), best]) == best
    assert results.choose([best, choice("A9", 0.5, 0.3)]).template_id == "A9"
    first = results.choose([best, choice("A10", 0.5, 0.3, "mean")])
    assert first.normaliser == "sum"


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(UserError, match="no template was scored"):
        results.choose([])


def test_ragged_rows_are_padded_behind():
    rows = [np.array([1, 2], dtype=np.int32), np.array([], dtype=np.int32), np.array([3])]
    assert ranking.stack_rows(rows, -1).tolist() == [[1, 2], [-1, -1], [3, -1]]


def test_numbers_are_shown_with_three_decimals_and_no_leading_zero():
    assert ranking_report.mean_and_interval(Interval(0.4836, 0.452, 1.0)) == ".484 .452-1.00"
    assert ranking_report.signed(Interval(-0.05, -0.1, 0.0)) == "-.050 [-.100, +.000]"


def test_a_bar_ends_no_cell_and_text_leaves_out_details():
    bad = "<script>|"
    table = tables.Table(note=bad, header=[bad], rows=[[bad]], footnotes=[bad])
    section = tables.Section(title=bad, tables=[table], details=[table], facts={bad: bad})
    document = tables.Document(title=bad, sections=[section], messages=[(bad, bad)], summary=bad)
    assert "| <script>\\| |" in tables.as_markdown(document), "a bar does not end the cell"
    assert tables.as_text(document).count(bad) == 8, "details and facts are left out"


def test_a_number_that_json_cannot_say_is_null():
    found = tables.as_json({"effects": [float("inf"), 0.5], "interval": Interval(0.5, 0.25, 1.0)})
    assert json.loads(found) == {
        "effects": [None, 0.5],
        "interval": {"estimate": 0.5, "low": 0.25, "high": 1.0},
    }
