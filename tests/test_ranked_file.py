"""`instructrec score --model`: requests to ranked candidates, without a gin file."""

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_toy import save_toy_model, score_toy
from test_request_files import write
from train_toy import LENGTHS

from instructrec_jax.checkpoints.ranking_config import RankingConfig
from instructrec_jax.cli.main import main
from instructrec_jax.errors import UserError
from instructrec_jax.scores import columns, ranked_files
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.stages.convert import convert
from instructrec_jax.stages.score.ranked_file import RankedFile, rank_file
from instructrec_jax.tokenizer import copy_vocabulary

TITLES = ["Quiet Fox", "Red Moon; part 2", "Tiny River", "Blue Bee"]
ROWS = {
    "instruction": [
        {"id": f"r{n}", "instruction": f"Choose one of {n}.", "candidates": TITLES[: 2 + n % 3]}
        for n in range(40)
    ],
    "A7": [
        {"id": n, "history": TITLES[n % 3 :], "candidates": TITLES, "candidate_ids": [5, 9, 7, n]}
        for n in range(3)
    ],
    "C10.specific": [
        {"id": "a", "history": ["Halo"] * 30, "intention": "a quiet one", "candidates": TITLES},
        {"id": "b", "history": ["Myst"], "intention": "x", "candidates": TITLES, "target_index": 2},
    ],
    "C10.preference": [
        {"id": "a", "history": ["Halo"], "preference": "quiet ones", "candidates": TITLES}
    ],
    "B7.specific": [{"id": "a", "intention": "foxes", "context": "at night", "candidates": TITLES}],
    "B7.preference": [{"id": "a", "preference": "foxes", "candidates": TITLES, "exclude": [0]}],
}


@pytest.fixture(scope="module")
def model_dir(toy_records, tmp_path_factory):
    """A MODEL_DIR as `train` leaves one."""
    folder = save_toy_model(tmp_path_factory.mktemp("trained"))
    copy_vocabulary(
        toy_records / "toy" / "vocabulary" / "sentencepiece.model", folder / "spiece.model"
    )
    ranking = RankingConfig(normaliser="mean", feature_lengths=LENGTHS, extra_ids=0)
    ranking.write(folder)
    return folder


@pytest.fixture(scope="module")
def hf_folder(model_dir, tmp_path_factory):
    """The same in Hugging Face's form, which tells nothing of ranking."""
    folder = tmp_path_factory.mktemp("hf") / "model"
    convert(source_path=str(model_dir), output_dir=str(folder), to="hf")
    (folder / "ranking_config.json").unlink()
    (folder / "manifest.json").unlink()
    return folder


def ranked(model, path, output, **run):
    """The lines of the JSONL file that is written."""
    rank_file(RankedFile(model=str(model), input=str(path), output=str(output), **run))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["model_dir", "hf_folder"])
@pytest.mark.parametrize("template", ROWS)
def test_ranks_and_log_likelihoods_are_those_of_the_gin_way(
    toy_records, model_dir, kind, template, tmp_path, request
):
    model, path = request.getfixturevalue(kind), write(tmp_path / "r.jsonl", ROWS[template])
    templates = {} if template == "instruction" else {"request_templates": [template]}
    run = {"tasks": ["toy.all"], "requests": str(path), "shard_size": 512, **templates}
    # What tells nothing of ranking cuts nothing.
    lengths = LENGTHS if kind == "model_dir" else {"inputs": 512, "targets": 64}
    score_toy(toy_records, model, tmp_path / "out", lengths=lengths, **run)
    expected = read_scores(tmp_path / "out")
    (part,) = (tmp_path / "out").glob("*.parquet")
    ranks = pq.read_table(part)["rank"].to_pylist()
    found = ranked(model, path, tmp_path / "ranked.jsonl")
    assert [row["id"] for row in found] == expected.example_id
    assert {row["template"] for row in found} == set(expected.template_id) == {template}
    assert {row["normaliser"] for row in found} == {expected.metadata["normaliser"]}
    for row, ids, values, rank in zip(
        found, expected.candidate_ids, expected.log_likelihood, ranks, strict=True
    ):
        own = {each["candidate_id"]: each for each in row["candidates"]}
        assert [own[number]["rank"] for number in ids] == rank
        written = np.array([own[number]["log_likelihood"] for number in ids], np.float32)
        np.testing.assert_array_equal(written, values)
        best_first = [each["rank"] for each in row["candidates"]]
        assert best_first == sorted(best_first)


def test_a_request_is_told_with_its_own_texts_ids_and_target(model_dir, tmp_path):
    row = {"id": 7, "instruction": "Choose.", "candidates": TITLES, "candidate_ids": [5, 9, 7, 1]}
    path = write(tmp_path / "r.jsonl", [row | {"target_index": 1}, row | {"id": 8}])
    known, unknown = ranked(model_dir, path, tmp_path / "out.jsonl")
    for each in known["candidates"]:
        assert TITLES[row["candidate_ids"].index(each["candidate_id"])] == each["candidate"]
        assert each["is_target"] == (each["candidate"] == "Red Moon; part 2")
        assert each["score"] == each["mean"]
        assert each["char"] == pytest.approx(each["log_likelihood"] / len(each["candidate"]))
    assert not any("is_target" in each for each in unknown["candidates"])
    by_sum, _ = ranked(model_dir, path, tmp_path / "sum.jsonl", normaliser="sum")
    assert all(each["score"] == each["log_likelihood"] for each in by_sum["candidates"])


def flat(lines):
    """What the rows of a table say of the candidates in lines of JSONL."""
    return [
        {name: (line | each).get(name) for name in ranked_files.SCHEMA.names}
        for line in lines
        for each in line["candidates"]
    ]


def test_every_form_of_output_says_the_same(model_dir, tmp_path, monkeypatch):
    rows = [row | {"target_index": 1} for row in ROWS["A7"]] + [{**ROWS["A7"][0], "id": "x\u00e9"}]
    path = write(tmp_path / "r.parquet", [{**row, "id": str(row["id"])} for row in rows])
    lines = ranked(model_dir, path, tmp_path / "out.jsonl")
    expected = flat(lines)

    def written(name):
        run = RankedFile(model=str(model_dir), input=str(path), output=str(tmp_path / name))
        rank_file(run)
        return tmp_path / name

    packed = gzip.decompress(written("out.jsonl.gz").read_bytes()).decode()
    assert [*map(json.loads, packed.splitlines())] == lines
    table = pq.read_table(written("out.parquet"))
    assert table.schema == ranked_files.SCHEMA
    for name in ranked_files.SCHEMA.names:
        own = [row[name] for row in expected]
        if isinstance(own[0], float):
            np.testing.assert_array_equal(table[name].to_numpy(), np.array(own, np.float32))
        else:
            assert table[name].to_pylist() == own
    shown = [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    for name, delimiter in (("out.csv", ","), ("out.tsv", "\t"), ("out.csv.gz", ",")):
        data = written(name).read_bytes()
        text = (gzip.decompress(data) if name.endswith("gz") else data).decode()
        assert [*csv.DictReader(io.StringIO(text), delimiter=delimiter)] == shown
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stdout))
    rank_file(RankedFile(model=str(model_dir), input=str(path), output="-"))
    assert stdout.getvalue() == (tmp_path / "out.jsonl").read_bytes()


def test_every_column_is_documented(model_dir, tmp_path, capsys):
    assert list(columns.RANKED) == ranked_files.SCHEMA.names
    (row,) = ranked(
        model_dir, write(tmp_path / "r.jsonl", ROWS["B7.specific"]), tmp_path / "o.jsonl"
    )
    inside = {name for each in row["candidates"] for name in each}
    assert inside | row.keys() == {*columns.RANKED, "candidates"} - {"is_target"}
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in columns.RANKED)


def test_the_messages_say_what_was_chosen_and_what_is_not_shown(model_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    first, second = ROWS["C10.specific"]
    rows = [first, second | {"preference": "quiet ones"}]
    ranked(model_dir, write(tmp_path / "r.jsonl", rows), tmp_path / "out.jsonl")
    for text in (
        "r.jsonl: 2 requests, template C10.specific, which suits the first one",
        "C10.specific does not show the preference of 1 of 2 requests; --template names another",
        "ranks by mean, as the checkpoint says",
        "out.jsonl appears when all is scored; nothing is kept of less",
        "8 candidates of 2 requests are ranked in",
        "of the oldest history items are not shown",
    ):
        assert text in caplog.text


GOOD = {"id": "a", "instruction": "Choose.", "candidates": TITLES}


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        ([{"id": "a", "candidates": TITLES}], {}, "no instruction, history, preference or inten"),
        ([{"id": "a", "history": ["x"]}], {}, "line 1: request 'a': has no candidates"),
        ([GOOD, '{"id": "b", '], {}, "line 2: not JSON .*half-written.*\n--on_damage=skip"),
        ([GOOD, {**ROWS["A7"][0], "id": 4}], {}, "line 2: .*instruction is None.*--template"),
        ([GOOD], {"template": "A7"}, "has an instruction, and a template is named"),
        ([GOOD], {"template": "A99"}, "unknown template"),
        ([GOOD], {"template": "A3"}, "A3 does not choose among candidates"),
        ([GOOD], {"dtype": "float8"}, "dtype is 'float8'; expected one of 'float32', 'bfloat16'"),
        ([GOOD], {"normaliser": "meen"}, "unknown normaliser 'meen'"),
        ([GOOD], {"normaliser": "pmi"}, "needs a second prompt for each request: take the gin way"),
        ([GOOD], {"input_tokens": 2}, "needs . tokens and .* is 2; raise .*--input_tokens"),
        ([""], {}, "is empty; expected one request a line"),
        ([GOOD], {"model": "nowhere"}, "no finished checkpoint in nowhere, which does not exist"),
        ([GOOD], {"input": "nowhere.csv"}, "from nowhere.csv, and there is no such file"),
        ([GOOD], {"output": "out.txt"}, r"the output is named out.txt; expected \*.jsonl, \*.csv"),
        ([GOOD], {"output": "no/out.csv"}, "there is no folder no; make it, or name another"),
        ([GOOD], {"output": "r.jsonl"}, "r.jsonl is there already; remove it, or name another"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    model_dir, tmp_path, monkeypatch, rows, change, message
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.jsonl", rows)
    run = {"model": str(model_dir), "input": "r.jsonl", "output": "out.jsonl", **change}
    with pytest.raises(UserError, match=message):
        rank_file(RankedFile(**run))
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]


def test_a_folder_that_is_no_model_and_one_without_vocabulary_are_refused(
    toy_records, model_dir, tmp_path
):
    path = write(tmp_path / "r.jsonl", [GOOD])
    with pytest.raises(UserError, match="no finished checkpoint in"):
        ranked(tmp_path, path, tmp_path / "out.jsonl")
    bare = save_toy_model(tmp_path / "bare")
    with pytest.raises(UserError, match="no SentencePiece model is in"):
        ranked(bare, path, tmp_path / "out.jsonl")
    words = str(toy_records / "toy" / "vocabulary" / "sentencepiece.model")
    found = ranked(bare, path, tmp_path / "out.jsonl", vocabulary=words)
    assert [row["normaliser"] for row in found] == ["sum"]


def test_what_cannot_be_used_is_left_out_on_request_and_counted(model_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [GOOD, {"id": "b"}, {**GOOD, "id": "c", "instruction": "so long " * 300}]
    path = write(tmp_path / "r.jsonl", [*rows, {**GOOD, "id": "d"}])
    found = ranked(model_dir, path, tmp_path / "out.jsonl", on_damage="skip")
    assert [row["id"] for row in found] == ["a", "d"]
    assert "2 requests were left out, because they cannot be used" in caplog.text


def test_any_number_of_candidates_is_ranked_by_a_template_that_shows_none(model_dir, tmp_path):
    row = {"id": "a", "history": ["Halo"], "candidates": [f"Game {n}" for n in range(300)]}
    path = write(tmp_path / "r.jsonl", [row])
    with pytest.raises(UserError, match="a template that shows none, such as A1, takes any number"):
        ranked(model_dir, path, tmp_path / "out.jsonl")
    (found,) = ranked(model_dir, path, tmp_path / "out.jsonl", template="A1")
    assert len(found["candidates"]) == 300


def test_sigterm_leaves_nothing_and_says_so(model_dir, tmp_path, monkeypatch):
    path = write(tmp_path / "r.jsonl", ROWS["instruction"])

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("instructrec_jax.stages.score.ranked_file.decide", interrupted)
    with pytest.raises(UserError, match=r"SIGTERM after 0 of 40 requests; .* was not written"):
        ranked(model_dir, path, tmp_path / "out.jsonl")
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "(?s)one of two forms:\n  instructrec score --model=.*\n  instructrec score --gin_",
        ),
        (["--model=m", "--gin_file=g"], "--model and --gin_file=g are of two forms"),
        (["--model=m", "--gin.A=1"], "--model and --gin.A=1 are of two forms"),
        (["--input=r", "--dry_run"], "--input and --dry_run are of two forms"),
        (["--input=r"], "--model, --output missing; expected as in\n"),
        (["--model=m", "--input=r", "--output=o", "--input_tokens=0"], "--input_tokens is 0; exp"),
    ],
)
def test_the_two_forms_of_the_verb_are_not_mixed(arguments, message, capsys):
    assert main(["score", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_pipe_is_read_and_written_without_tensorflow_and_seqio(model_dir, tmp_path):
    code = """
import sys
from instructrec_jax.cli.main import main
code = main(sys.argv[1:])
print(sorted({"tensorflow", "seqio", "tensorflow_datasets"} & sys.modules.keys()), file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "score", f"--model={model_dir}", "--input=-", "--output=-"],
        input="".join(f"{json.dumps(row)}\n" for row in ROWS["A7"]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["0", "1", "2"]
    assert done.stderr.splitlines()[-1] == "[]"
