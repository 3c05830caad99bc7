"""`instructrec generate`: the likeliest titles of the catalogue for each example."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_model import tiny_model
from train_toy import LENGTHS, MODEL

from instructrec_jax.checkpoints.store import CheckpointStore
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.settings import PrepareSettings
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings
from instructrec_jax.pipeline import record_store, registry
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.generate import FILE_NAME, GenerateSettings, generate
from instructrec_jax.stages.generate.catalogue import requests
from instructrec_jax.stages.prepare import prepare
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.tokenizer import load_vocabulary

NUM_EXAMPLES = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoints"
    store = CheckpointStore(folder, keep=1)
    store.save(7, {"model": tiny_model(vocab_size=600, num_encoder_layers=1, num_decoder_layers=1)})
    store.close()
    return folder


def generate_toy(records, prepared, checkpoint, output_dir, *, dry_run=False, lengths=(), **run):
    settings = {
        "checkpoint_path": str(checkpoint),
        "prepared_dir": str(prepared),
        "output_dir": str(output_dir),
        "tasks": ["toy.A1"],
        "num_titles": 5,
        "num_beams": 8,
        "num_examples": NUM_EXAMPLES,
    }
    return generate(
        model=MODEL,
        data=RunData(data_dir=str(records), feature_lengths={**LENGTHS, **dict(lengths)}),
        run=GenerateSettings(**(settings | run)),
        mesh=MeshSettings(),
        config_text="A = 1\n",
        dry_run=dry_run,
    )


def test_it_writes_titles_and_metrics_of_the_whole_catalogue(
    toy_records, toy_prepared, checkpoint, tmp_path, caplog
):
    output = tmp_path / "out"
    found = generate_toy(toy_records, toy_prepared, checkpoint, output)
    assert json.loads((output / FILE_NAME).read_text()) == found
    assert (output / "config.gin").read_text() == "A = 1\n"
    rows = pq.read_table(output / "A1.parquet").to_pylist()
    prepared = read_prepared(toy_prepared)
    histories = {history.user_id: history.item_ids for history in prepared.histories}
    targets = {c.example_id: c.target_id for c in prepared.evaluation("leave_one_out", "test")}
    titles = [item.title for item in prepared.items]
    assert len(rows) == NUM_EXAMPLES
    for row in rows:
        user, position = row["example_id"].rsplit(":", 1)
        seen = set(histories[user][: int(position)]) - {row["target_id"]}
        assert row["target_id"] == targets[row["example_id"]]
        assert len(row["item_ids"]) == len(row["log_likelihood"]) == 5
        assert not seen & {item for ids in row["item_ids"] for item in ids}
        assert all(len({titles[item] for item in ids}) == 1 for ids in row["item_ids"])
        assert np.all(np.diff(row["log_likelihood"]) <= 0)
        said = [row["target_id"] in ids for ids in row["item_ids"]]
        assert row["rank"] == (said.index(True) + 1 if any(said) else 6)
    ranks = np.array([row["rank"] for row in rows])
    assert found["test/toy.A1/hr@5"] == np.mean(ranks <= 5)
    assert found["test/toy.A1/num_examples"] == NUM_EXAMPLES and found["step"] == 7
    assert "test/toy.A1/hr@10" not in found, "five titles say nothing of ten"
    with caplog.at_level("INFO"):
        again = generate_toy(toy_records, toy_prepared, checkpoint, output)
    assert again == found and "is up to date" in caplog.text
    with pytest.raises(UserError, match="holds another run"):
        generate_toy(toy_records, toy_prepared, checkpoint, output, num_beams=9)


@pytest.mark.slow
def test_without_exclusion_the_history_may_be_said_and_products_have_none(
    toy_records, toy_prepared, checkpoint, tmp_path
):
    tasks = ["toy.A1", "toy.B1.specific"]
    runs = {
        is_on: generate_toy(
            toy_records,
            toy_prepared,
            checkpoint,
            tmp_path / str(is_on),
            tasks=tasks,
            num_titles=20,
            num_beams=48,
            exclude_history=is_on,
        )
        for is_on in (False, True)
    }
    tables = {
        is_on: [
            pq.read_table(tmp_path / str(is_on) / f"{t}.parquet") for t in ("A1", "B1.specific")
        ]
        for is_on in runs
    }
    assert tables[True][1].equals(tables[False][1]), "product search has no history"
    assert not tables[True][0].equals(tables[False][0])
    assert runs[True]["test/toy.A1/hr@20"] >= runs[False]["test/toy.A1/hr@20"]


@pytest.mark.usefixtures("toy")
@pytest.mark.usefixtures("toy")
def test_an_event_of_several_draws_is_generated_for_once(toy_prepared, tmp_path):
    logs, output = toy_prepared.parent / "logs", tmp_path / "prepared"
    prepare(
        dataset="toy", input_dir=logs, output_dir=output, settings=PrepareSettings(test_draws=2)
    )
    build(
        dataset="toy",
        input_dir=output,
        output_dir=tmp_path / "records",
        settings=BuildSettings(vocab_size=600),
    )
    record_store.use_data_dir(tmp_path / "records")
    words = load_vocabulary(tmp_path / "records" / "toy" / "vocabulary" / "sentencepiece.model")
    found = requests(
        "toy.A1", read_prepared(output), words, LENGTHS, split="test", exclude_history=True
    )
    once = read_prepared(toy_prepared).evaluation("leave_one_out", "test")
    assert [request.example_id for request in found] == once.example_ids()
    assert len(read_prepared(output).evaluation("leave_one_out", "test")) == 2 * len(once)


@pytest.mark.usefixtures("toy")
def test_a_mixture_stands_for_its_templates_that_ask_for_any_item():
    found = registry.matching_tasks(["toy.sequential", "toy.A1"], split="test")
    assert found[0] == "toy.A1" and "toy.A16" in found and len(set(found)) == len(found)
    assert not {"toy.A7", "toy.A11", "toy.A14"} & set(found)
    for name in ("toy.A7", "toy.A1.grouped"):
        with pytest.raises(UserError, match=f"{name} holds no task with test examples that asks"):
            registry.matching_tasks([name], split="test")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    toy_records, toy_prepared, checkpoint, tmp_path
):
    found = generate_toy("nowhere", "nowhere", checkpoint, tmp_path / "out", dry_run=True)
    assert found.stops == ["data"]
    assert found.rows["work"] == f"toy.A1, split test, into {tmp_path / 'out'}"
    found = generate_toy(toy_records, "nowhere", checkpoint, tmp_path / "out", dry_run=True)
    assert found.stops == ["data"] and "nowhere" in found.rows["data"]
    found = generate_toy(toy_records, toy_prepared, checkpoint, tmp_path / "out", dry_run=True)
    assert found.would_start, found.as_text()
    assert found.rows["data"].endswith(f"test examples in {toy_records}, 48 titles")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_come_out_before_anything_is_written(
    toy_records, toy_prepared, checkpoint, tmp_path
):
    output = tmp_path / "out"
    other = tmp_path / "other"
    other.mkdir()
    for path in toy_prepared.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + " ")
    with pytest.raises(UserError, match=r"were not built from PREPARED_DIR .*other"):
        generate_toy(toy_records, other, checkpoint, output)
    with pytest.raises(UserError, match=r"title of item \d+ has \d+ tokens, and TASK_FEATURE_LEN"):
        lengths = {"targets": 3, "title": 40}.items()
        generate_toy(toy_records, toy_prepared, checkpoint, output, lengths=lengths)
    with pytest.raises(UserError, match=r"num_titles is 99, but instruction 0 leaves \d+ of the"):
        generate_toy(toy_records, toy_prepared, checkpoint, output, num_titles=99, num_beams=99)
    with pytest.raises(UserError, match="expected some of one dataset, found toy, other"):
        tasks = ["toy.A1", "other.A1"]
        generate_toy(toy_records, toy_prepared, checkpoint, output, tasks=tasks)
    assert not output.exists()
