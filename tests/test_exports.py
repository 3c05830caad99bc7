"""What a report hands to other programs: TREC runs that give its figures, samples with texts."""

import collections
import json
import math

import pytest
from report_toy import TEST, VALIDATION, make_data, make_folders, model, run, write_scores
from score_toy import save_toy_model, score_toy

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import check_files
from instructrec_jax.scores import importers, trec
from instructrec_jax.settings import SettingError
from instructrec_jax.stages.report import report
from instructrec_jax.stages.report.exports import ExportSettings

SCENARIOS = ["sequential", "product_search.specific", "personalized_search.specific"]


def trec_figures(run_file, qrels_file):
    """HR@1, HR@5 and NDCG@5 by trec_eval's rule: by score, ties by docid; rank is not read."""
    relevant = collections.defaultdict(dict)
    for line in qrels_file.read_text().splitlines():
        qid, _, docid, rel = line.split(" ")
        relevant[qid][docid] = int(rel)
    scored = collections.defaultdict(list)
    for line in run_file.read_text().splitlines():
        qid, _, docid, _, score, _ = line.split(" ")
        scored[qid].append((float(score), docid))
    found = collections.defaultdict(list)
    for qid, own in scored.items():
        gains = [relevant[qid].get(docid, 0) for _, docid in sorted(own, reverse=True)]
        ideal = sum(1 / math.log2(n + 2) for n in range(min(5, len(relevant[qid]))))
        found["hr@1"].append(gains[0])
        found["hr@5"].append(sum(gains[:5]))
        found["ndcg@5"].append(sum(g / math.log2(n + 2) for n, g in enumerate(gains[:5])) / ideal)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def tie_all(rows):
    """Scores with ties everywhere, the target among them."""
    for row in rows:
        row["log_likelihood"] = [round(value / 3) for value in row["log_likelihood"]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A report of scores with many ties, exported to TREC and as samples."""
    root = make_folders(tmp_path_factory.mktemp("exports"))
    for split, bonuses in (("validation", VALIDATION), ("test", TEST)):
        write_scores(root / f"tied_{split}", make_data(), split, bonuses, change=tie_all)
    scores = {
        "model": (root / "validation", root / "test"),
        "tied one": (root / "tied_validation", root / "tied_test"),
    }
    export = ExportSettings(export=("trec", "samples", "ranks"), max_samples=7)
    found = run(root, root / "out", scores=scores, export=export)
    return root, found


@pytest.mark.parametrize("name", ["model", "tied one", "random", "popularity"])
def test_trec_files_have_the_figures_of_the_report(exported, name):
    root, found = exported
    folder = root / "out" / "trec"
    for scenario in SCENARIOS:
        figures = trec_figures(
            folder / trec.file_name(name) / "test" / f"{scenario}.run",
            folder / "qrels" / "test" / f"{scenario}.qrels",
        )
        own = found["scenarios"][scenario]["test"][name]
        for metric, value in figures.items():
            assert value == pytest.approx(own[metric]["estimate"], abs=1e-12), (scenario, metric)


def test_the_validation_run_has_the_figures_that_the_choice_was_made_by(exported):
    root, found = exported
    folder = root / "out" / "trec"
    for scenario in SCENARIOS:
        figures = trec_figures(
            folder / "model" / "validation" / f"{scenario}.run",
            folder / "qrels" / "validation" / f"{scenario}.qrels",
        )
        chosen = found["scenarios"][scenario]["chosen"]["model"]["metrics"]
        assert figures == pytest.approx({name: chosen[name] for name in figures}, abs=1e-12)


def test_what_goes_out_as_trec_comes_in_again_with_the_same_figures(exported, tmp_path):
    root, found = exported
    folders = root / "out" / "trec"
    scores = {
        name: (folders / folder / "validation", folders / folder / "test")
        for name, folder in (("model", "model"), ("tied one", trec.file_name("tied one")))
    }
    again = run(root, tmp_path / "again", scores=scores)["scenarios"]
    for scenario, result in found["scenarios"].items():
        for name in scores:
            assert again[scenario]["test"][name] == result["test"][name]
            assert again[scenario]["protocol"]["systems"][name]["written_by"] == name
        assert again[scenario]["minus"]["model"] == result["minus"]["model"]


def test_exports_are_files_of_the_report(exported):
    root, _ = exported
    check_files(root / "out")
    path = root / "out" / "trec" / "qrels" / "test" / "sequential.qrels"
    before = path.read_text()
    path.write_text(before + "u 0 1 1\n")
    with pytest.raises(UserError, match=r"sequential\.qrels has changed"):
        check_files(root / "out")
    path.write_text(before)


def test_ranks_of_every_system_and_example_give_the_figures_of_the_report(exported):
    root, found = exported
    lines = [json.loads(line) for line in (root / "out" / "ranks.jsonl").read_text().splitlines()]
    for scenario, values in found["scenarios"].items():
        own = [line for line in lines if line["scenario"] == scenario]
        assert len({line["example_id"] for line in own}) == len(own)
        for system, figures in values["test"].items():
            hits = [line["ranks"][system] == 1 for line in own]
            assert math.fsum(hits) / len(hits) == pytest.approx(figures["hr@1"]["estimate"])


def test_samples_have_lm_evals_names_and_the_ranks_of_the_report(exported):
    root, found = exported
    data, ids = make_data(), {}
    for system in ("model", "tied one"):
        folder = root / "out" / "samples" / trec.file_name(system)
        assert {path.name.split("_")[0] for path in folder.iterdir()} == {"samples"}
        template = found["scenarios"]["sequential"]["chosen"][system]["template_id"]
        lines = (folder / f"samples_toy.{template}.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        assert len(samples) == 7
        for sample in samples:
            doc = sample["doc"]
            titles = [data.items[item].title for item in doc["candidate_ids"]]
            assert doc["candidates"] == titles
            assert sample["target"] == titles[doc["target_index"]]
            assert sample["target"] == data.items[doc["target_id"]].title
            assert sample["arguments"]["gen_args_3"] == {"arg_0": None, "arg_1": titles[3]}
            raw = [response[0][0] for response in sample["resps"]]
            values = [response[0] for response in sample["filtered_resps"]]
            assert sample["filter"] in ("sum", "mean")
            own = values[doc["target_index"]]
            assert sample["rank"] == sum(value >= own for value in values)
            assert sample["order"][sample["rank"] - 1] == doc["target_index"]
            assert sample["hr@1"] == float(sample["rank"] == 1)
            assert len(raw) == len(values) == 10
            assert set(sample["metrics"]) < sample.keys()
        ids[system] = [sample["doc"]["example_id"] for sample in samples]
        assert [sample["doc_id"] for sample in samples] == sorted(s["doc_id"] for s in samples)
    assert ids["model"] == ids["tied one"]


def test_samples_show_the_prompts_of_the_records_that_were_scored(
    toy_records, toy_prepared, tmp_path
):
    checkpoint = save_toy_model(tmp_path / "model")
    for split in ("validation", "test"):
        score_toy(toy_records, checkpoint, tmp_path / split, split=split)
    export = ExportSettings(export=("samples",), data_dir=str(toy_records))
    report(
        dataset="toy",
        prepared_dir=toy_prepared,
        scores={"model": (tmp_path / "validation", tmp_path / "test")},
        output_dir=tmp_path / "out",
        export=export,
    )
    lines = (tmp_path / "out/samples/model/samples_toy.A7.jsonl").read_text().splitlines()
    assert len(lines) == len(read_prepared(toy_prepared).evaluation("leave_one_out", "test"))
    for sample in map(json.loads, lines):
        for argument in sample["arguments"].values():
            assert argument["arg_1"] in argument["arg_0"], "the prompt shows every candidate"


def test_names_with_blanks_and_percent_signs_go_out_and_come_in(tmp_path):
    name, examples = "50% off\tshop", ["a b:4", "50%20:2", "é\u00a0x:1"]
    path = tmp_path / trec.file_name("play.a/b", trec.RUN)
    trec.write_run(path, [(example, [5, 2]) for example in examples], tag=name)
    assert all(len(line.split()) == 6 for line in path.read_text().splitlines())
    found = importers.read_any_scores(path)
    assert found.example_id == examples and found.metadata["system"] == name
    assert found.scenarios == {"play.a/b": "play.a/b"}
    assert found.log_likelihood[0].tolist() == [2.0, 1.0]
    assert trec.file_name("..") == "%2E." and "/" not in trec.file_name("../x")


def test_a_run_of_another_tool_is_read_by_its_scores(tmp_path):
    path = tmp_path / "sequential.run"
    path.write_text("u:3\tQ0 5 2 -1.5 bm25\r\nu:3 Q0 2 1 -0.25 bm25\n\nv:9 Q0 7 1 3 bm25\n")
    found = importers.read_any_scores(tmp_path)
    assert found.example_id == ["u:3", "v:9"] and found.metadata["system"] == "bm25"
    assert found.candidate_ids[0].tolist() == [5, 2]
    assert found.log_likelihood[0].tolist() == [-1.5, -0.25]
    assert found.scenarios == {"sequential": "sequential"}


@pytest.mark.parametrize(
    "line",
    [
        *("u:3 Q0 5 1 0.5", "u:3 Q0 B00X 1 0.5 t", "u:3 Q0 5 1 high t", "u:3 Q0 5 1 nan t"),
        *("a b c", "u:3 Q0 99999999999999999999 1 0.5 t", "u:3 Q0 5 1 1e39 t"),
    ],
)
def test_lines_that_are_no_run_are_named(tmp_path, line):
    path = tmp_path / "sequential.run"
    path.write_text(f"u:3 Q0 2 1 1.5 t\n{line}\n")
    with pytest.raises(UserError, match=r"sequential\.run line 2 .*expected `qid Q0 docid"):
        importers.read_any_scores(path)


def test_an_empty_run_is_refused(tmp_path):
    (tmp_path / "sequential.run").touch()
    with pytest.raises(UserError, match="holds no scores"):
        importers.read_any_scores(tmp_path)


def test_unknown_exports_and_settings_of_none_are_named():
    with pytest.raises(SettingError, match=r"export is \['ranx'\].*one of 'trec', 'samples'"):
        ExportSettings(export=["ranx"])
    with pytest.raises(UserError, match=r"--max_samples .* --export samples"):
        ExportSettings(export=["trec"], max_samples=3)


def test_a_report_without_exports_is_the_same_work_as_before(exported, tmp_path):
    root, _ = exported
    scores = model(root, test=root / "test")
    run(root, tmp_path / "out", scores=scores, export=None)
    run(root, tmp_path / "out", scores=scores, export=ExportSettings())
    with pytest.raises(UserError, match=r"holds another run.*export"):
        run(root, tmp_path / "out", scores=scores, export=ExportSettings(export=["trec"]))
