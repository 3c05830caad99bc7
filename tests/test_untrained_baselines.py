"""`baseline popularity`, `cooccurrence`, `ease`, `bm25`: what they rank, and what they write."""

import dataclasses

import numpy as np
import pytest

from instructrec_jax.baselines.bm25 import Bm25
from instructrec_jax.baselines.ease import Ease, ease_weights
from instructrec_jax.cli import baseline_verbs, main
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.baseline import untrained
from instructrec_jax.stages.baseline.scores import BaselineSettings, scenario_of
from instructrec_jax.stages.report import report


def test_ease_weights_minimise_the_squared_error_without_a_diagonal():
    rng = np.random.default_rng(0)
    training = [rng.choice(7, size=4, replace=False) for _ in range(30)]
    found = ease_weights(training, 7, regularisation=2.0).astype(np.float64)
    present = np.zeros((30, 7))
    for row, items in enumerate(training):
        present[row, items] = 1
    for item in range(7):  # each column is a ridge regression on the other items
        others = np.delete(np.arange(7), item)
        left = present[:, others]
        exact = np.linalg.solve(left.T @ left + 2.0 * np.eye(6), left.T @ present[:, item])
        assert found[others, item] == pytest.approx(exact, abs=1e-5)
    assert not found.diagonal().any()


def test_ease_refuses_a_catalogue_that_does_not_fit(toy_prepared, monkeypatch):
    monkeypatch.setattr("instructrec_jax.baselines.ease.MAX_ITEMS", 40)
    with pytest.raises(UserError, match="48; expected at most 40"):
        Ease(read_prepared(toy_prepared))


def test_bm25_reads_query_and_history(toy_prepared):
    data = read_prepared(toy_prepared)
    system = Bm25(data)
    search = scenario_of("product_search.specific", "test", data, None)
    example = dataclasses.replace(search.examples[0], candidate_ids=(0, 1, 2))
    ids = np.array([[0, 1, 2, -1]], np.int32)
    found = system.score([example], ids, [data.items[1].title])
    assert found[0].argmax() == 1 and np.isneginf(found[0, 3])
    assert system.score([example], ids) is None
    history = data.histories[0]
    personal = dataclasses.replace(example, user_id=history.user_id, position=1)
    own = np.array([[history.item_ids[0], *ids[0, 1:]]], np.int32)
    assert system.score([personal], own)[0].argmax() == 0


@pytest.mark.parametrize("name", ["popularity", "cooccurrence", "ease", "bm25"])
def test_each_writes_both_splits_which_a_report_takes(toy_prepared, tmp_path, name):
    folder, scenarios = tmp_path / name, ["sequential"]
    if name in ("popularity", "bm25"):
        scenarios.append("product_search.specific")
    words = ["baseline", name, f"--prepared_dir={toy_prepared}", f"--output_dir={folder}"]
    assert main.main([*words, "--scenarios", *scenarios]) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main.main([*words, "--scenarios", *scenarios]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    scores = read_scores(folder / "test")
    assert set(scores.scenarios.values()) == set(scenarios)
    found = report(
        dataset="toy",
        prepared_dir=toy_prepared,
        scores={name: [folder]},
        output_dir=tmp_path / "report",
    )
    assert set(found["scenarios"]) == set(scenarios)
    for own in found["scenarios"].values():
        assert list(own["test"]).count(name) == 1


def test_what_is_written_is_what_a_report_computes_itself(toy_prepared, tmp_path):
    asked = BaselineSettings(prepared_dir=str(toy_prepared), output_dir=str(tmp_path / "a"))
    untrained.cooccurrence(asked=asked)
    found = []
    for name in ("cooccurrence", "other"):
        made = report(
            dataset="toy",
            prepared_dir=toy_prepared,
            scores={name: [tmp_path / "a"]},
            output_dir=tmp_path / name,
        )
        found.append(made["scenarios"]["sequential"]["test"])
    given, both = (
        {name: own["hr@1"]["estimate"] for name, own in systems.items()} for systems in found
    )
    assert given["cooccurrence"] == both["cooccurrence"] == both["other"]


def test_all_is_each_of_them_in_a_folder_of_its_name(toy_prepared, tmp_path, monkeypatch):
    some = [verb for verb in baseline_verbs.UNTRAINED if verb.name in ("ease", "popularity")]
    monkeypatch.setattr(baseline_verbs, "UNTRAINED", some)
    monkeypatch.setattr(baseline_verbs, "TRAINED", ())
    monkeypatch.setattr(baseline_verbs, "SEARCH", ())
    words = ["baseline", "all", f"--prepared_dir={toy_prepared}", f"--output_dir={tmp_path}"]
    assert main.main(words) == 0
    for name in ("ease", "popularity"):
        assert read_scores(tmp_path / name / "test").metadata["system"] == name


def test_a_query_of_a_teacher_needs_its_texts(toy_prepared, toy_texts, tmp_path):
    asked = BaselineSettings(
        prepared_dir=str(toy_prepared),
        output_dir=str(tmp_path / "a"),
        scenarios=("personalized_search.vague",),
    )
    with pytest.raises(UserError, match="--texts_dir"):
        untrained.bm25(asked=asked)
    untrained.bm25(asked=dataclasses.replace(asked, texts_dir=str(toy_texts)))
    scores = read_scores(tmp_path / "a" / "test")
    values = ranking.stack_rows(scores.log_likelihood, -np.inf)
    assert ranking.evaluate(ranking.ranks(values, scores.target_index))["hr@1"] > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": ("sequental",)}, "sequential"),
        ({"scenarios": ("product_search.specific",)}, "ranks by histories"),
        ({"prepared_dir": "nowhere"}, "nowhere"),
    ],
)
def test_mistakes_are_said(toy_prepared, tmp_path, changes, message):
    given = {"prepared_dir": str(toy_prepared), "output_dir": str(tmp_path / "a"), **changes}
    with pytest.raises(UserError, match=message):
        untrained.ease(asked=BaselineSettings(**given))
