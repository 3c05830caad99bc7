"""`instructrec show scores`: rows of score files in words."""

import json

import pytest
from score_toy import save_toy_model, score_toy
from test_generate import generate_toy

from instructrec_jax.cli.main import main
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.generation import beam_search
from instructrec_jax.scores import columns, parts, ranked_files
from instructrec_jax.stages import show

TASKS = ["toy.A7.grouped", "toy.C10.specific.grouped"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def scored(toy_records, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores") / "out"
    score_toy(toy_records, checkpoint, folder, tasks=TASKS)
    return folder


def as_json(path, **options):
    return [json.loads(line) for line in show.scores(path, format="jsonl", **options)]


def test_scores_are_shown_best_first_with_titles_users_and_histories(scored, toy_prepared):
    prepared, expected = read_prepared(toy_prepared), parts.read_scores(scored)
    found = as_json(scored, prepared_dir=toy_prepared)
    assert [row["example_id"] for row in found] == expected.example_id
    histories = {history.user_id: history.item_ids for history in prepared.histories}
    for number, row in enumerate(found):
        ids = expected.candidate_ids[number].tolist()
        values = dict(zip(ids, expected.log_likelihood[number].tolist(), strict=True))
        for each in row["candidates"]:
            assert each["text"] == prepared.items[each["ids"][0]].title
            assert each["log_likelihood"] == each["score"] == values[each["ids"][0]]
            assert each["is_target"] == (each["ids"] == [row["target_id"]])
        shown = [each["score"] for each in row["candidates"]]
        assert shown == sorted(values.values(), reverse=True)
        user, position = row["example_id"].split(":")
        assert row["user_id"] == user and row["target"] == prepared.items[row["target_id"]].title
        bought = histories[user][: int(position)]
        assert row["history"] == [prepared.items[number].title for number in bought]


def test_text_fits_a_terminal_and_says_the_rank_of_the_target(scored, toy_prepared):
    lines = list(show.scores(scored, prepared_dir=toy_prepared, template="C10.specific"))
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if "candidates, ranked by sum" in line]
    assert len(heads) == 3 and all("template C10.specific," in line for line in heads), lines
    targets = [line for line in lines if line.startswith("  target, rank ")]
    marked = [line for line in lines if line.startswith("*")]
    assert [line.split()[2].strip(":") for line in targets] == [line.split()[1] for line in marked]
    assert "  item " in "\n".join(show.scores(scored, num_examples=1))


def test_what_is_generated_is_shown_with_all_items_of_a_title(
    toy_records, toy_prepared, checkpoint, tmp_path
):
    generate_toy(toy_records, toy_prepared, checkpoint, tmp_path / "out")
    found = as_json(tmp_path / "out", prepared_dir=toy_prepared, num_examples=4)
    assert [len(row["candidates"]) for row in found] == [5] * 4
    assert {row["template"] for row in found} == {"A1"} and found[0]["is_generated"]
    text = "\n".join(show.scores(tmp_path / "out", num_examples=1))
    assert "5 likeliest titles" in text and "item " in text


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet", ".csv.gz"])
def test_ranked_files_of_every_form_are_shown_alike(tmp_path, ending):
    path = tmp_path / f"ranked{ending}"
    rows = [
        {
            **{"id": "u", "rank": rank, "candidate": f"Title {rank}", "score": -rank / 8},
            **{"log_likelihood": -rank / 4, "mean": -1.0, "char": -1.0, "candidate_id": rank},
            **{"is_target": rank == 12, "template": "A7", "normaliser": "mean"},
        }
        for rank in range(1, 13)
    ]
    with ranked_files.ranked_writer(str(path), ending.removesuffix(".gz")) as write:
        write([rows])
    (row,) = as_json(path)
    assert (row["example_id"], row["target"], row["target_id"]) == ("u", "Title 12", 12)
    assert [each["score"] for each in row["candidates"]] == [-rank / 8 for rank in range(1, 13)]
    lines = list(show.scores(path))
    assert lines[2] == "  target, rank 12: Title 12"
    assert lines[-3].startswith("*   12 ") and "2 more (--format=jsonl shows all)" in lines[-2]


def test_scores_that_are_none_or_of_other_data_are_refused(scored, toy_prepared, tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere; expected a folder that"):
        show.scores(tmp_path / "nowhere")
    for name in ("x.txt", "x.csv", "x.jsonl"):
        (tmp_path / name).write_text('{"id": 1}\nx\n')
        with pytest.raises(UserError, match="ranked candidates"):
            list(show.scores(tmp_path / name))
    with pytest.raises(UserError, match="holds no scores"):
        show.scores(toy_prepared)
    with pytest.raises(UserError, match="holds no example of template A9"):
        show.scores(scored, template="A9")
    with pytest.raises(UserError, match="format is 'yaml'; expected one of 'text', 'jsonl'"):
        show.scores(scored, format="yaml")
    (tmp_path / "r.jsonl").write_text(
        '{"id": "0:1", "template": "A7", "normaliser": "sum", "candidates": [{"rank": 1, '
        '"candidate": "x", "score": -1, "log_likelihood": -1, "candidate_id": 1}]}\n'
    )
    with pytest.raises(UserError, match=r"example '0:1' is not in .* dataset toy"):
        list(show.scores(tmp_path / "r.jsonl", prepared_dir=toy_prepared))


def test_every_column_is_documented(capsys):
    assert list(columns.SCORED) == parts.SCHEMA.names
    assert list(columns.GENERATED) == beam_search.SCHEMA.names
    with pytest.raises(SystemExit):
        main(["show", "scores", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in [*columns.SCORED, *columns.GENERATED])
    assert max(map(len, shown.splitlines())) <= 100
