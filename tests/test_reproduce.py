"""Tables of the paper: its own figures, verdicts by intervals, and the way from logs to a table."""

import dataclasses
import json
from pathlib import Path

import pytest

from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.metrics.statistics import Interval
from instructrec_jax.report import paper_table, tables
from instructrec_jax.report.paper_table import PaperTable, Part, Row, Verdict, gains, paper
from instructrec_jax.stages.baseline import untrained
from instructrec_jax.stages.baseline.scores import SCENARIOS, BaselineSettings
from instructrec_jax.stages.reproduce import ReproduceSettings, lab, reproduce, scales
from instructrec_jax.stages.reproduce.steps import evaluation_pool
from instructrec_jax.stages.reproduce.verdicts import verdict_of

# What the paper prints as improvement over the best baseline of a column, in percent.
PRINTED = {
    ("table6", "sequential"): [4.26, 0.59, 0.43, 1.85, 1.72],
    ("table7", "preference"): [39.04, 19.52, 11.70, 26.04, 21.64],
    ("table7", "vague"): [44.64, 20.15, 11.81, 28.63, 24.15],
    ("table7", "specific"): [6.97, 7.86, 7.08, 7.56, 7.23],
    ("table8", "any negatives"): [13.52, None, None, 4.16, 3.60],
    ("table9", "hard negatives"): [67.36, 38.59, 20.09, 43.41, 38.36],
    ("table10", "100 candidates"): [17.25, 71.59, 57.72, 56.29, 50.10],
}


def paper_rows(part):
    return [
        Row(
            system=row["system"],
            name=row["system"],
            paper=row["figures"],
            is_baseline=row["system"] != "InstructRec",
        )
        for row in part["paper"]
    ]


@pytest.mark.parametrize(("table", "name"), PRINTED)
def test_the_papers_figures_give_the_improvements_that_it_prints(table, name):
    (part,) = (part for part in paper()["tables"][table]["sections"] if part["name"] == name)
    found = gains(paper_rows(part), of_paper=True)
    for metric, printed in zip(METRIC_NAMES, PRINTED[table, name], strict=True):
        if printed is not None:
            assert 100 * found[metric] == pytest.approx(printed, abs=0.0051)


def test_what_the_tables_name_is_there():
    assert paper()["metrics"] == list(METRIC_NAMES)
    for table in paper()["tables"].values():
        systems = {
            f"{part['name']}/{system}"
            for part in table["sections"]
            for system in (*part["models"], *part["baselines"], "random")
        }
        for part in table["sections"]:
            assert part["scenario"] in SCENARIOS and evaluation_pool(part["scenario"])
            assert set(part["models"]) <= paper()["models"].keys()
            ours = {row["ours"] for row in part["paper"] if "ours" in row}
            assert ours <= {*part["models"], *part["baselines"]}
            assert all(len(row["figures"]) == len(METRIC_NAMES) for row in part["paper"])
        for ordering in table["orderings"]:
            for side in (ordering["higher"], ordering["lower"]):
                system, _, metric = side.rpartition("/")
                assert system in systems and metric in METRIC_NAMES


@pytest.mark.parametrize(
    ("low", "high", "within", "expected"),
    [
        (0.01, 0.05, None, "agrees"),
        (-0.01, 0.05, None, "unclear"),
        (-0.05, -0.01, None, "disagrees"),
        (-0.01, 0.015, 0.02, "agrees"),
        (-0.01, 0.03, 0.02, "unclear"),
        (0.03, 0.05, 0.02, "disagrees"),
        (-0.05, -0.03, 0.02, "disagrees"),
    ],
)
def test_a_verdict_is_what_the_interval_allows(low, high, within, expected):
    found = Verdict(
        number=1,
        says="",
        measures=("a/b/hr@1", "a/c/hr@1"),
        ours=Interval((low + high) / 2, low, high),
        within=within,
    )
    assert found.verdict == expected


def write_ranks(folder, ranks, position=3):
    """Writes ranks of two draws of each of some users' events."""
    folder.mkdir()
    lines = [
        {"user_id": str(user), "position": position, "target_id": 7, "ranks": own}
        for user, own in enumerate(ranks)
        for _ in range(2)
    ]
    (folder / "ranks.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_verdicts_pair_the_same_events_of_two_parts_and_no_others(tmp_path):
    first = write_ranks(tmp_path / "first", [{"model": 1 + (n % 3 > 0)} for n in range(60)])
    second = write_ranks(tmp_path / "second", [{"model": 1 + (n % 3 > 1)} for n in range(60)])
    other = write_ranks(tmp_path / "other", [{"model": 1} for _ in range(60)], position=4)
    ordering = {
        "number": 2,
        "says": "",
        "higher": "second/model/hr@1",
        "lower": "first/model/hr@1",
    }
    reports = {"first": first, "second": second, "other": other}
    parts = [
        {"name": "first", "paper": [{"figures": [0.5] * 5, "ours": "model"}]},
        {"name": "second", "paper": [{"figures": [0.7] * 5, "ours": "model"}]},
    ]
    found = verdict_of(ordering, parts, reports)
    assert found.is_paired and found.verdict == "agrees"
    assert found.ours.estimate == pytest.approx(1 / 3)
    assert found.paper == pytest.approx(0.2)
    apart = verdict_of({**ordering, "higher": "other/model/hr@1"}, parts, reports)
    assert not apart.is_paired and apart.ours.estimate == pytest.approx(2 / 3)
    missing = verdict_of({**ordering, "higher": "other/sasrec/hr@1"}, parts, reports)
    assert (missing.verdict, missing.reason) == ("not tested", "no sasrec in other")


def test_a_table_shows_the_papers_figures_above_ours():
    own = {name: Interval(0.5, 0.4, 0.6) for name in METRIC_NAMES}
    rows = [
        Row(system="SASRec", name="sasrec", paper=[0.4] * 5, ours=own),
        Row(system="GPT-3.5", name="GPT-3.5", paper=[0.3] * 5, remark="not run: no key"),
        Row(system="InstructRec", name="model", paper=[0.5] * 5, ours=own, is_baseline=False),
    ]
    table = PaperTable(title="T", parts=[Part(name="a", label="<P1>", about="", rows=rows)])
    lines = tables.as_text(paper_table.document(table)).splitlines()
    shown = {
        line.split("|")[0].strip(): line.split("|")[1].strip() for line in lines if "|" in line
    }
    assert shown["SASRec (paper)"] == ".4000" and shown["sasrec"] == ".500±.100"
    assert shown["gain (paper)"] == "+25.00%" and shown["gain"] == "+0.00%"
    assert "GPT-3.5: not run: no key" in lines


def ranked_by(system):
    """Returns a stage that writes what an untrained system ranks, in place of a trained one."""

    def stage(_, **macros):
        if "PREPARED_DIR" in macros:
            prepared, folder = macros["PREPARED_DIR"], macros["OUTPUT_DIR"]
        else:
            prepared = Path(macros["DATA_DIR"]).parent / "prepared"
            folder = Path(macros["INFER_OUTPUT_DIR"]).parent
        system(asked=BaselineSettings(prepared_dir=str(prepared), output_dir=str(folder)))

    return stage


def test_a_table_is_made_from_logs_to_verdict_and_says_what_was_not_run(tmp_path, monkeypatch):
    small = {"num_users": 80, "num_interactions": 800, "num_items": 60}
    worlds = {
        name: dataclasses.replace(world, **small) for name, world in scales.TINY_WORLDS.items()
    }
    monkeypatch.setattr(scales, "TINY_WORLDS", worlds)
    stages = {
        "train": lambda *_, **__: None,
        "score": ranked_by(untrained.cooccurrence),
        "baseline": ranked_by(untrained.popularity),
        "plan": None,
    }
    settings = ReproduceSettings(output_dir=str(tmp_path))
    text = reproduce(table="table6", settings=settings, **stages)
    table = json.loads((tmp_path / "table6" / "table" / "table.json").read_text())
    (part,) = table["parts"]
    rows = {row["name"]: row for row in part["rows"]}

    def estimates(name):
        return {metric: value["estimate"] for metric, value in rows[name]["ours"].items()}

    assert estimates("model") == estimates("cooccurrence")
    assert estimates("sasrec") == estimates("popularity")
    assert rows["GPT-3.5"]["ours"] is None and "server" in rows["GPT-3.5"]["remark"]
    assert [verdict["verdict"] for verdict in table["verdicts"]] == ["agrees"]
    assert "SASRec (paper)" in text and (tmp_path / "table6" / "table" / "table.md").exists()
    monkeypatch.setattr(lab, "TRAINED", ("sasrec",))  # no matcher, so no hard negatives
    hard = reproduce(table="table9", settings=settings, **stages)
    assert "not run: " in hard and ".1841" in hard
    assert "16,859" in reproduce(table="table5", settings=settings, **stages)


def test_at_full_scale_commands_are_shown_and_nothing_is_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "table10", "--scale=full"]) == 0
    out = capsys.readouterr().out
    assert "--num_candidates=100" in out and "candidate_views.Groups" in out
    assert "# verdict" in out and "fits" in out
    assert not list(tmp_path.iterdir())


def test_unknown_tables_and_flags_of_another_scale_are_named():
    with pytest.raises(UserError, match="table4"):
        reproduce(
            table="table4",
            settings=ReproduceSettings(),
            **dict.fromkeys(("train", "score", "baseline", "plan")),
        )
    with pytest.raises(UserError, match="--input_dir belongs to --scale=cpu"):
        ReproduceSettings(input_dir="logs")


def test_titles_that_the_vocabulary_was_not_made_of_have_room(tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        lab, "score_model", lambda recipe, *_, **settings: lengths.append(recipe.feature_lengths)
    )
    world = lab.World(recipe=scales.tiny("tiny"), logs=lambda: "no logs")
    made = lab.Lab(tmp_path, world, world, lab.Stages(train=None, score=None, baseline=None))
    made.records = made._model = str  # made elsewhere
    for data in (lab.MAIN, lab.OTHER):
        made._scored(data, "sequential", "model", "without_teacher")
    of_main, of_other = lengths
    assert of_main == world.recipe.feature_lengths
    assert of_other["inputs"] > of_main["inputs"] and of_other["history"] == of_main["history"]
