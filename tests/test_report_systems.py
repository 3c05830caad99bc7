"""Several systems in one report: a model, an imported T5X run, a file that another system wrote."""

import dataclasses
import json

import numpy as np
import pytest
from report_toy import make_data, make_folders, run, write_scores
from score_toy import save_toy_model, score_toy
from test_score_importers import lines_of, write_lines

from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.report import report

SPLITS = ("validation", "test")
BASELINES = ["random", "popularity", "cooccurrence"]


def write_as_t5x(scores, folder, *, better):
    """Writes the model's own rows as a T5X run, each target's log-likelihood raised."""
    folder.mkdir()
    rows: dict[str, list] = {}
    for n, template in enumerate(scores.template_id):
        names = ("example_id", "template_id", "candidate_ids", "num_tokens", "num_chars")
        row = {name: getattr(scores, name)[n] for name in names}
        row |= {"target_index": scores.target_index[n]}
        row |= {"log_likelihood": scores.log_likelihood[n].astype(float)}
        row["log_likelihood"][row["target_index"]] += better
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}
        rows.setdefault(template, []).append({**plain, "target_index": int(row["target_index"])})
    for template, own in rows.items():
        write_lines(folder, f"toy.{template}.rank", lines_of(own))


def write_by_hand(data, split, path, **told):
    """Scores every leave-one-out example by the id of its candidates, as another program might."""
    lines = [
        {
            "example_id": example.example_id,
            "family": "sequential",
            "candidate_ids": sorted(example.candidate_ids),
            "scores": [-item for item in sorted(example.candidate_ids)],
            **told,
        }
        for example in data.candidates
        if (example.protocol, example.split) == ("leave_one_out", split)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def systems(toy_prepared, toy_records, tmp_path_factory):
    """Where the scores of three systems on the data set "toy" are."""
    root = tmp_path_factory.mktemp("systems")
    checkpoint = save_toy_model(root / "model")
    found = {"model": [], "t5x": [], "by_hand": []}
    for split in SPLITS:
        score_toy(toy_records, checkpoint, root / split, split=split)
        write_as_t5x(read_scores(root / split), root / f"t5x_{split}", better=1000.0)
        by_hand = write_by_hand(read_prepared(toy_prepared), split, root / f"{split}.jsonl")
        for name, path in zip(found, (root / split, root / f"t5x_{split}", by_hand), strict=True):
            found[name].append(path)
    return found


def make(toy_prepared, output, scores):
    return report(dataset="toy", prepared_dir=toy_prepared, scores=scores, output_dir=output)


def test_a_model_and_a_t5x_run_are_compared_example_by_example(systems, toy_prepared, tmp_path):
    two = {name: systems[name] for name in ("model", "t5x")}
    found = make(toy_prepared, tmp_path / "out", two)["scenarios"]
    assert list(found) == ["sequential", "personalized_search.specific"]
    for result in found.values():
        assert list(result["test"]) == [*BASELINES, "model", "t5x"]
        assert list(result["minus"]["model"]) == [*BASELINES, "t5x"]
        assert list(result["minus"]["t5x"]) == BASELINES
        means = {name: result["test"][name]["hr@1"]["estimate"] for name in two}
        lead = result["minus"]["model"]["t5x"]["hr@1"]
        assert lead["estimate"] == pytest.approx(means["model"] - means["t5x"])
        assert lead["high"] < 0, "paired: T5X has every target of the model higher"
        told = result["protocol"]["systems"]
        assert told["model"]["written_by"] == "instructrec"
        assert told["model"]["TASK_FEATURE_LENGTHS"]["inputs"] == 256
        assert told["model"]["checkpoint_step"] == 5 and told["t5x"]["written_by"] == "t5x"
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "model minus t5x: HR@1 -" in text and "t5x: template A7" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_file_of_another_system_is_the_third(systems, toy_prepared, tmp_path):
    found = make(toy_prepared, tmp_path / "out", systems)["scenarios"]
    three = [*BASELINES, "model", "t5x", "by_hand"]
    assert list(found["sequential"]["test"]) == three
    assert list(found["personalized_search.specific"]["test"]) == three[:-1]
    own = found["sequential"]
    data = read_prepared(toy_prepared)
    examples = data.evaluation("leave_one_out", "test")
    hits = [min(e.candidate_ids) == e.target_id for e in examples]
    assert own["test"]["by_hand"]["hr@1"]["estimate"] == pytest.approx(np.mean(hits))
    assert own["chosen"]["by_hand"]["normaliser"] == "sum"
    assert own["position_bias"]["by_hand"] is None, "it shows no prompt"
    assert own["protocol"]["systems"]["by_hand"]["candidate_view"] == "no prompt"
    assert own["protocol"]["num_examples"] == len(examples)


def test_what_not_every_system_scored_is_left_out_and_counted(tmp_path, caplog):
    folders = make_folders(tmp_path)
    own = [write_by_hand(make_data(), split, tmp_path / f"{split}.jsonl") for split in SPLITS]
    lines = own[1].read_text().splitlines(keepends=True)
    own[1].write_text("".join(lines[10:]))
    both = {"model": (folders / "validation", folders / "test"), "by_hand": own}
    result = run(folders, tmp_path / "out", scores=both)["scenarios"]["sequential"]
    assert result["protocol"]["num_examples"] == 50
    assert result["protocol"]["num_examples_left_out"] == 10
    assert "10 examples of model are left out, which another system did not score" in caplog.text
    own[1].write_text("".join(lines[:10]))
    other = [write_by_hand(make_data(), split, tmp_path / f"b_{split}.jsonl") for split in SPLITS]
    other[1].write_text("".join(lines[10:]))
    with pytest.raises(UserError, match="a, b scored no sequential example in common"):
        run(folders, tmp_path / "none", scores={"a": own, "b": other})


def test_templates_of_any_name_and_family_are_reported(tmp_path):
    folders = make_folders(tmp_path)
    for split in SPLITS:
        bonuses = {"P3": 2.0, "A101": 1.0}
        told = {"family": "play"}
        write_scores(tmp_path / f"own_{split}", make_data(), split, bonuses, **told)
    own = {"model": [tmp_path / f"own_{split}" for split in SPLITS]}
    found = run(folders, tmp_path / "out", scores=own)["scenarios"]
    assert list(found) == ["play"], "as its registration says, not as its id looks"
    assert found["play"]["chosen"]["model"]["template_id"] == "P3"


def test_a_system_chooses_its_template_and_no_normaliser_where_it_counts_no_tokens(tmp_path):
    folders = make_folders(tmp_path)
    data = make_data()
    own = []
    for split in SPLITS:
        paths = [
            write_by_hand(data, split, tmp_path / f"{split}_{name}.jsonl", template=name)
            for name in ("first", "second")
        ]
        own.append(tmp_path / f"{split}.jsonl")
        own[-1].write_text("".join(path.read_text() for path in paths))
    found = run(folders, tmp_path / "out", scores={"own": own}, normalisers=("mean", "char"))
    choices = found["scenarios"]["sequential"]["validation"]["own"]
    assert [(c["template_id"], c["normaliser"]) for c in choices] == [
        ("first", "sum"),
        ("second", "sum"),
    ]


def test_scores_of_wrong_candidates_name_the_system(tmp_path):
    folders = make_folders(tmp_path)
    data = make_data()
    change = dataclasses.replace(data.candidates[0], candidate_ids=(0, 1))
    lines = {"example_id": change.example_id, "family": "sequential"}
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps({**lines, "candidate_ids": [0, 1], "scores": [1, 2]}) + "\n")
    with pytest.raises(UserError, match=r"validation scores of wrong .* among other candidates"):
        run(folders, tmp_path / "out", scores={"wrong": (path, path)})
