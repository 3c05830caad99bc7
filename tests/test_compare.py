"""`instructrec compare` and `instructrec show --example`: two runs, and one example of several."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_toy import NUM_USERS, make_data, make_folders, write_scores

from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.metrics import ranking
from instructrec_jax.report import slices
from instructrec_jax.report.comparison import Ranks, compare_ranks
from instructrec_jax.stages.compare import _run, compare
from instructrec_jax.stages.show.example import example


def test_the_part_that_changed_otherwise_and_the_most_changed_events_are_named():
    number = 400
    is_new = np.arange(number) >= 200
    first = np.where(np.arange(number) % 2 == 0, 1, 3)
    second = np.where(is_new, 9 - first, first)
    second[7] = 1  # one of the old gains
    found = Ranks(
        ranks=(first, second),
        event=np.arange(number),
        example_ids=[f"{row}:1" for row in range(number)],
        targets=[f"title {row}" for row in range(number)],
    )
    halves = slices.by_flag(is_new, no="old", yes="new")
    groups = [("age", halves), ("all", slices.Groups(np.zeros(number, int), ["all"]))]
    made = compare_ranks("sequential", ("A", "B"), found, groups, facts={})
    assert (made.num_better, made.num_worse) == (1, 200)
    assert [own.example_id for own in made.gained] == ["7:1"]
    assert made.lost[0].ranks == (1.0, 8.0) and len(made.lost) == 10
    assert [(part.by, part.group, part.num_worse) for part in made.parts] == [
        *(("age", "old", 0), ("age", "new", 200))
    ], "what is not divided is no part"
    assert all(part.stands_out for part in made.parts)
    values = [ranking.evaluate(own)["ndcg@5"] for own in (first[is_new], second[is_new])]
    assert made.parts[1].minus["ndcg@5"].estimate == pytest.approx(values[1] - values[0])


def test_draws_of_an_event_are_one_event_in_a_comparison():
    found = Ranks(
        ranks=(np.array([1, 3, 2, 2]), np.array([2, 4, 1, 3])),
        event=np.array([0, 0, 1, 1]),
        example_ids=["a", "b"],
        targets=["x", "y"],
    )
    made = compare_ranks("sequential", ("A", "B"), found, [], facts={})
    assert (made.num_events, made.num_better, made.num_worse) == (2, 0, 1)
    assert (made.lost[0].example_id, made.lost[0].ranks) == ("a", (2.0, 3.0))


def test_a_run_may_have_a_name_and_its_folder_an_equals_sign(tmp_path):
    assert _run("new=a:b", "A") == ("new", [Path("a"), Path("b")])
    assert _run("runs/rate=0.1/test", "A") == ("A", [Path("runs/rate=0.1/test")])
    for split in ("validation", "test"):
        (tmp_path / split).mkdir()
    assert _run(str(tmp_path), "B")[1] == [tmp_path / "validation", tmp_path / "test"]
    with pytest.raises(UserError, match="run '=x' is none"):
        _run("=x", "A")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = make_folders(tmp_path_factory.mktemp("toy"))
    data = make_data()
    write_scores(root / "better", data, "test", {"A9": 4.0})
    return root


def test_two_runs_stand_side_by_side_in_every_form(folders, tmp_path, capsys):
    words = ["compare", f"{folders}/validation:{folders}/test", f"new={folders}/better"]
    words += [f"--prepared_dir={folders / 'prepared'}", f"--output_dir={tmp_path / 'out'}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip().endswith("compare.html") and "NDCG@5 | " in shown
    (own,) = json.loads((tmp_path / "out" / "compare.json").read_text())["scenarios"]
    assert (own["scenario"], own["names"]) == ("sequential", ["A", "new"]), "the one of both"
    changed = own["num_better"] + own["num_worse"]
    assert own["num_events"] == NUM_USERS and 0 < own["num_better"] <= changed
    difference = own["metrics"][1]["hr@1"]["estimate"] - own["metrics"][0]["hr@1"]["estimate"]
    assert own["minus"]["hr@1"]["estimate"] == pytest.approx(difference)
    page = (tmp_path / "out" / "compare.html").read_text()
    users = json.loads(page.split('id="data">')[1].split("</script>")[0])["scenarios"][0]["users"]
    most = [event["example_id"] for event in own["gained"] + own["lost"]]
    assert [user["id"] for user in users[: len(most)]] == most, "they come first on the page"
    assert main(words) == 0
    with pytest.raises(UserError, match="both runs have the name 'x'"):
        compare("x=a", "x=b", prepared_dir=folders / "prepared", output_dir=tmp_path / "o")
    with pytest.raises(UserError, match=r"run 'a:b:c' is none; expected \[NAME=\]"):
        compare("a:b:c", "b", prepared_dir=folders / "prepared", output_dir=tmp_path / "o")


def test_an_example_is_shown_with_the_ranks_of_every_system(folders, capsys):
    scores = [f"--scores=old={folders}/validation:{folders}/test", f"--scores=new={folders}/better"]
    words = ["show", "--example=3:7", f"--prepared_dir={folders / 'prepared'}", *scores]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3:7, sequential, user 3" and max(map(len, lines)) <= 80
    target = next(line for line in lines if line.startswith("  target: ")).partition(": ")[2]
    (marked,) = [
        line for line in lines[: lines.index("")] if line.startswith("*") and line.endswith(target)
    ]
    rank = next(line for line in lines if "target at rank" in line and "new:" in line).split()[-1]
    assert marked.split()[3] == rank
    assert any(line.startswith("3:7, personalized_search.specific") for line in lines)
    with pytest.raises(UserError, match="no system scored example 'x'"):
        example(
            example="x", prepared_dir=folders / "prepared", scores={"new": [folders / "better"]}
        )
