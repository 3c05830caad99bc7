"""Scoring runs on files of requests, and what they leave behind when something goes wrong."""

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from score_toy import save_toy_model, score_toy
from test_request_files import write

from instructrec_jax import manifest
from instructrec_jax.errors import UserError
from instructrec_jax.requests import request_files
from instructrec_jax.scores import parts as score_files
from instructrec_jax.scores.parts import part_name, read_scores

TASK = "toy.C10.specific.grouped"
TITLES = ["Quiet Fox", "Red Moon; part 2", "Tiny River", "Blue Bee"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_toy_model(tmp_path_factory.mktemp("trained"))


def request(number, **changes):
    row = {"id": f"r{number}", "instruction": f"Choose one of {number}.", "candidates": TITLES}
    return row | changes


def score_requests(toy_records, checkpoint, output, path, **run):
    score_toy(toy_records, checkpoint, output, tasks=["toy.all"], requests=str(path), **run)
    return read_scores(output)


def test_requests_score_as_the_records_that_they_are_taken_from(
    toy, toy_records, checkpoint, tmp_path
):
    from instructrec_jax.pipeline import record_store, registry

    source = registry.instruction_task(TASK).source
    rows = [
        {
            "id": record.example_id,
            "history": list(record.history),
            "candidates": list(record.candidates),
            "intention": record.specific_intention,
            "candidate_ids": list(record.candidate_ids),
            "target_index": record.candidate_ids.index(record.target_id),
        }
        for record in map(record_store.as_record, source.rows("test"))
    ]
    score_toy(toy_records, checkpoint, tmp_path / "task", tasks=[TASK])
    expected = read_scores(tmp_path / "task")
    found = score_requests(
        toy_records,
        checkpoint,
        tmp_path / "out",
        write(tmp_path / "r.parquet", rows),
        request_templates=["C10.specific"],
    )
    for field in dataclasses.fields(found):
        if field.name != "metadata":
            values = zip(getattr(found, field.name), getattr(expected, field.name), strict=True)
            for one, other in values:
                np.testing.assert_array_equal(one, other, err_msg=field.name)


def test_a_whole_instruction_is_scored_as_it_stands(toy, toy_records, checkpoint, tmp_path):
    from instructrec_jax.pipeline.vocabulary import CorpusVocabulary

    path = write(tmp_path / "r.jsonl", [request(0, exclude=[0]), request(1, target_index=3)])
    found = score_requests(toy_records, checkpoint, tmp_path / "out", path)
    assert found.example_id == ["r0", "r1"] and set(found.template_id) == {"instruction"}
    assert [ids.tolist() for ids in found.candidate_ids] == [[1, 2, 3], [0, 1, 2, 3]]
    assert found.target_index.tolist() == [-1, 3]
    spelled = [title.replace("; ", ", ") for title in TITLES]
    encode = CorpusVocabulary().encode
    assert found.num_tokens[1].tolist() == [len(encode(title)) + 1 for title in spelled]
    assert found.num_chars[1].tolist() == [len(title) for title in spelled]
    table = pq.read_table(tmp_path / "out" / part_name("instruction", 0))
    order = np.argsort(-found.log_likelihood[1])
    assert np.array(table["rank"][1].as_py())[order].tolist() == [1, 2, 3, 4]


def test_what_cannot_be_used_is_left_out_and_counted_or_ends_the_run(
    toy_records, checkpoint, tmp_path
):
    rows = [request(number) for number in range(40)]
    rows[3] = '{"id": "r3"'
    rows[20] = request(20, instruction="so long " * 300)
    rows[39] = request(0)
    path, output = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    with pytest.raises(UserError, match=r"r\.jsonl line 4: not JSON"):
        score_requests(toy_records, checkpoint, output, path)
    assert not output.exists()
    rows[3], rows[39] = request(3), request(39)
    with pytest.raises(UserError, match=r"line 21: .*example r20: the instruction .* needs \d+ to"):
        score_requests(toy_records, checkpoint, output, write(path, rows))
    rows[3], rows[39] = '{"id": "r3"', request(0)
    found = score_requests(
        toy_records, checkpoint, output, write(path, rows), on_damage="skip", shard_size=16
    )
    assert found.example_id == [f"r{number}" for number in range(39) if number not in (3, 20)]
    written = manifest.read_manifest(output)
    assert written.counts == {"instruction": 37}
    assert written.drops == {"not_json": 1, "too_long": 1, "repeated_id": 1}
    assert written.damage["too_long"] == ["r.jsonl line 21"]
    assert len(list(output.glob("*.parquet"))) == 3


def test_a_run_that_met_a_bad_request_goes_on_when_it_may_be_skipped(
    toy_records, checkpoint, tmp_path, monkeypatch
):
    rows = [request(number) for number in range(40)]
    rows[39] = request(39, instruction="so long " * 300)
    path, output = write(tmp_path / "r.jsonl", rows), tmp_path / "out"
    monkeypatch.setattr("instructrec_jax.stages.score._SAMPLE_SIZE", 8)
    with pytest.raises(UserError, match=r"line 40: .*needs .* tokens"):
        score_requests(toy_records, checkpoint, output, path)
    before = {part.name: part.stat().st_mtime_ns for part in output.glob("*.parquet")}
    assert len(before) == 2, "what is written is not lost"
    assert not list((output / "claims").iterdir())
    found = score_requests(toy_records, checkpoint, output, path, on_damage="skip")
    assert len(found.example_id) == 39
    after = {part.name: part.stat().st_mtime_ns for part in output.glob("*.parquet")}
    assert before.items() < after.items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"request_templates": ["A1"]}, "no history, which a template of the run shows"),
        ({"request_templates": ["A99"]}, "unknown template .* 'A99'"),
        ({"request_templates": ["A3"]}, "A3 does not choose among candidates"),
        ({"on_damage": "ignore"}, "on_damage is 'ignore'; expected one of"),
        ({"shard_size": 0}, "shard_size is 0; expected a whole number, 1 to"),
    ],
)
def test_a_mistake_leaves_no_folder_behind(toy_records, checkpoint, tmp_path, change, message):
    row = {"id": "a", "candidates": TITLES}
    row |= {} if "request_templates" in change else {"instruction": "Choose."}
    path = write(tmp_path / "r.jsonl", [row])
    with pytest.raises(UserError, match=message):
        score_requests(toy_records, checkpoint, tmp_path / "out", path, **change)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_other_requests_is_refused(toy_records, checkpoint, tmp_path):
    output = tmp_path / "out"
    path = write(tmp_path / "r.jsonl", [request(0)])
    score_requests(toy_records, checkpoint, output, path)
    write(path, [request(1)])
    with pytest.raises(UserError, match=r"holds another run: inputs\['requests'\]"):
        score_requests(toy_records, checkpoint, output, path)


def test_a_full_disk_is_said_in_one_message_and_the_next_run_goes_on(
    toy_records, checkpoint, tmp_path, monkeypatch
):
    path = write(tmp_path / "r.jsonl", [request(number) for number in range(40)])
    output, write_table = tmp_path / "out", pq.write_table
    calls = []

    def fill_up(table, where, **options):
        calls.append(where)
        if len(calls) == 2:
            where.write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(table, where, **options)

    monkeypatch.setattr(score_files.pq, "write_table", fill_up)
    with pytest.raises(UserError, match=r"cannot write .*out.*: No space left on device"):
        score_requests(toy_records, checkpoint, output, path)
    assert [part.name for part in output.glob("*.parquet")] == [part_name("instruction", 0)]
    assert not [part for part in output.rglob(".*.tmp")] and not any((output / "claims").iterdir())
    found = score_requests(toy_records, checkpoint, output, path)
    assert found.example_id == [f"r{number}" for number in range(40)]


def test_parts_say_where_they_come_from_and_not_who_wrote_them(toy_records, checkpoint, tmp_path):
    path = write(tmp_path / "r.jsonl", [request(0)])
    found = score_requests(toy_records, checkpoint, tmp_path / "out", path)
    stored = pq.read_schema(tmp_path / "out" / part_name("instruction", 0)).metadata
    told = json.loads(stored[b"instructrec"])
    assert told.keys() == {
        *("system", "family", "query", "checkpoint", "requests", "vocabulary", "template", "work"),
        *("feature_lengths", "normaliser"),
        *("split", "teacher", "checkpoint_step", "versions", "candidate_view"),
    }
    assert found.metadata == {**told, "command": manifest.read_manifest(tmp_path / "out").command}


def test_requests_with_candidates_of_equal_tokens_are_counted_and_said(
    toy_records, checkpoint, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(request_files, "model_title", lambda title: title)
    rows = [request(0), request(1, candidates=["\uff28alo", "Halo", "Myst"])]
    path = write(tmp_path / "r.jsonl", rows)
    found = score_requests(toy_records, checkpoint, tmp_path / "out", path)
    assert found.log_likelihood[1][0] == found.log_likelihood[1][1]
    assert "1 requests hold candidates of equal tokens" in caplog.text


def test_a_candidate_or_instruction_without_tokens_is_refused_by_line(
    toy_records, checkpoint, tmp_path, monkeypatch
):
    path = write(tmp_path / "r.jsonl", [request(0, candidates=[*TITLES, "\u200e"])])
    with pytest.raises(UserError, match="line 1: request 'r0': candidate 4 has an empty title"):
        score_requests(toy_records, checkpoint, tmp_path / "out", path)
    monkeypatch.setattr(request_files, "is_seen", lambda title: True)
    with pytest.raises(UserError, match=r"line 1: .*candidate '\\u200e' has no tokens"):
        score_requests(toy_records, checkpoint, tmp_path / "out", path)
    write(path, [request(0), request(1, instruction="\u200e")])
    run = {"on_damage": "skip"}
    assert score_requests(toy_records, checkpoint, tmp_path / "out", path, **run).example_id == [
        "r0"
    ]
    assert manifest.read_manifest(tmp_path / "out").drops == {"no_tokens": 1}


def test_requests_are_scored_without_tensorflow_and_seqio(toy_records, checkpoint, tmp_path):
    rows = [{"id": "a", "history": ["Quiet Fox"], "candidates": TITLES}]
    path = write(tmp_path / "r.jsonl", rows)
    code = """
import sys
from instructrec_jax.checkpoints.source import open_source
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.score import ScoreSettings, score

records, model, out, path = sys.argv[1:]
data = RunData(data_dir=records, feature_lengths={"inputs": 512, "targets": 64})
run = {"tasks": ["toy.all"], "requests": path, "request_templates": ["A7"]}
run = ScoreSettings(checkpoint_path=model, output_dir=out, **run)
score(model=open_source(model).config, data=data, run=run, mesh=MeshSettings())
print(sorted({"tensorflow", "seqio", "tensorflow_datasets"} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, toy_records, checkpoint, tmp_path / "out", path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert read_scores(tmp_path / "out").example_id == ["a"]
