"""The stage `build` on an invented data set, and on the real ones."""

import dataclasses
import itertools
import logging
import sys
from pathlib import Path

import pytest

from instructrec_jax import files
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions import builder
from instructrec_jax.instructions.coverage import num_renderable
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import loader, record_store, registry, vocabulary
from instructrec_jax.stages.build import BuildSettings, Execution, build, shards
from instructrec_jax.stages.prepare import prepare

SETTINGS = BuildSettings(vocab_size=600, records_per_shard=100)
SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_counts_are_those_of_the_files(toy_records):
    counts = read_manifest(toy_records / "toy").counts
    for config in builder.CONFIGS:
        source = record_store.RecordSource("toy", config)
        record_store.use_data_dir(toy_records)
        for split in builder.SPLITS:
            found = list(source.get_dataset(split, shuffle=False).as_numpy_iterator())
            assert counts[f"{config}/{split}"] == len(found) > 0
            for needs in (("specific_intention",), ("history", "preference")):
                having = sum(all(len(record[name]) for name in needs) for record in found)
                renderable = num_renderable(counts, config=config, split=split, needs=needs)
                assert renderable == having
    needs = ("specific_intention",)
    with_category = num_renderable(counts, config="leave_one_out", split="train", needs=needs)
    assert with_category < counts["leave_one_out/train"]
    assert counts["vocabulary"] == 600


def test_no_record_shows_its_target_or_a_chosen_item_as_a_negative(toy_records):
    record_store.use_data_dir(toy_records)
    source = record_store.RecordSource("toy", "leave_one_out")
    for split in builder.SPLITS:
        for record in source.get_dataset(split, shuffle=False).as_numpy_iterator():
            history, candidates = record["history"].tolist(), record["candidates"].tolist()
            assert record["target"] not in history
            assert not set(history) & set(candidates)
            assert candidates.count(record["target"]) == 1
            assert len(set(candidates)) == len(candidates) == 10


def test_product_search_training_never_shows_a_held_out_item(toy_prepared, toy_records):
    """Not even as a negative: a model would learn that such items are never what is searched."""
    data = read_prepared(toy_prepared)
    held_out = {
        item.item_id
        for item, split in zip(data.items, data.search_splits, strict=True)
        if split in ("validation", "test")
    }
    assert held_out
    record_store.use_data_dir(toy_records)
    source = record_store.RecordSource("toy", "product_search")
    for record in source.get_dataset("train", shuffle=False).as_numpy_iterator():
        assert not held_out & set(record["candidate_ids"].tolist())


def test_building_again_reuses_what_is_there(toy_prepared, toy_records, caplog):
    caplog.set_level(logging.INFO)
    before = (toy_records / "toy" / "manifest.json").stat().st_mtime_ns
    build(dataset="toy", input_dir=toy_prepared, output_dir=toy_records, settings=SETTINGS)
    assert (toy_records / "toy" / "manifest.json").stat().st_mtime_ns == before
    assert "up to date" in caplog.text


def test_building_elsewhere_gives_the_same_bytes(toy_prepared, toy_records, tmp_path):
    build(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path, settings=SETTINGS)
    assert_same_records(tmp_path, toy_records)


def assert_same_records(found: Path, expected: Path) -> None:
    for name in (*builder.CONFIGS, "vocabulary"):
        assert files.sha256(found / "toy" / name) == files.sha256(expected / "toy" / name)


def test_beam_writes_the_same_bytes(toy_prepared, toy_records, tmp_path):
    execution = Execution(runner="DirectRunner")
    build(
        dataset="toy",
        input_dir=toy_prepared,
        output_dir=tmp_path,
        settings=SETTINGS,
        execution=execution,
    )
    assert_same_records(tmp_path, toy_records)


def test_several_processes_write_the_same_bytes(toy_prepared, toy_records, tmp_path):
    build(
        dataset="toy",
        input_dir=toy_prepared,
        output_dir=tmp_path,
        settings=SETTINGS,
        execution=Execution(num_workers=2),
    )
    assert_same_records(tmp_path, toy_records)


def test_an_interrupted_build_goes_on_with_the_next_file(
    toy_prepared, toy_records, tmp_path, monkeypatch
):
    begun = []
    write = shards.record_store.write_shard

    def write_shard(path, records):
        if len(begun) == 3:
            begun.append("interrupted")
            write(path, itertools.chain(itertools.islice(records, 5), interrupted()))
        begun.append(path.name)
        return write(path, records)

    def interrupted():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(shards.record_store, "write_shard", write_shard)
    arguments = {
        "dataset": "toy",
        "input_dir": toy_prepared,
        "output_dir": tmp_path,
        "settings": SETTINGS,
    }
    with pytest.raises(KeyboardInterrupt):
        build(**arguments)
    assert not (tmp_path / "toy").exists()
    before = begun[:3]
    build(**arguments)
    assert not set(before) & set(begun[4:]), "no finished file is written again"
    assert_same_records(tmp_path, toy_records)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert not list(tmp_path.rglob("*.summary.json"))


def test_a_runner_that_beam_does_not_know_is_named(toy_prepared, tmp_path):
    with pytest.raises(UserError, match=r"Beam cannot start with --runner=NoRunner"):
        build(
            dataset="toy",
            input_dir=toy_prepared,
            output_dir=tmp_path,
            settings=SETTINGS,
            execution=Execution(runner="NoRunner"),
        )


def test_without_beam_the_user_is_told_what_to_install(toy_prepared, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install .*\[beam\]"):
        build(
            dataset="toy",
            input_dir=toy_prepared,
            output_dir=tmp_path,
            settings=SETTINGS,
            execution=Execution(runner="DirectRunner"),
        )


def test_records_name_their_teacher_and_the_manifest_counts_what_it_left_out(toy_records):
    found = read_manifest(toy_records / "toy")
    assert found.settings["teacher"] == "extractive-1"
    record_store.use_data_dir(toy_records)
    source = record_store.RecordSource("toy", "leave_one_out")
    for record in source.get_dataset("train", shuffle=False).as_numpy_iterator():
        is_taught = len(record["preference"]) + len(record["vague_intention"]) > 0
        assert record["teacher"] == (b"extractive-1" if is_taught else b"")
        assert len(record["vague_intention"]) == len(record["second_vague_intention"])


def test_another_setting_does_not_overwrite(toy_prepared, toy_records):
    other = dataclasses.replace(SETTINGS, seed=1)
    with pytest.raises(UserError, match=r"another run: settings\['seed'\]"):
        build(dataset="toy", input_dir=toy_prepared, output_dir=toy_records, settings=other)


def test_a_vocabulary_that_is_given_is_copied(toy_prepared, toy_records, tmp_path):
    given = toy_records / "toy" / "vocabulary" / "sentencepiece.model"
    settings = BuildSettings(vocabulary_path=str(given), max_train_positions=1)
    found = build(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    copy = tmp_path / "toy" / "vocabulary" / "sentencepiece.model"
    assert copy.read_bytes() == given.read_bytes()
    assert found.counts["leave_one_out/train"] == found.counts["leave_one_out/test"]


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("toys", SETTINGS, "holds dataset 'toy', not 'toys'"),
        ("toy", BuildSettings(vocabulary_path="missing.model"), r"missing\.model does not exist"),
        ("toy", BuildSettings(states_time=True, vocab_size=50), "vocab_size=50 is too small"),
        ("toy", BuildSettings(task_module="tasks.none"), "'tasks.none' cannot be imported"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(toy_prepared, tmp_path, dataset, settings, message):
    with pytest.raises(UserError, match=message):
        build(dataset=dataset, input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_teacher_is_named():
    with pytest.raises(UserError, match="unknown teacher 'extractve'; the nearest known"):
        BuildSettings(teacher="extractve")


@pytest.mark.parametrize("name", ["vocab_size", "num_train_negatives", "max_train_positions"])
def test_a_number_below_one_is_refused(name):
    with pytest.raises(UserError, match=f"{name}=0"):
        BuildSettings(**{name: 0})


def test_a_folder_that_prepare_did_not_write_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        build(dataset="toy", input_dir=tmp_path / "nowhere", output_dir=tmp_path, settings=SETTINGS)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("dataset", "folder", "mixture"),
    [("ml_100k", "ml-100k", "ml_100k.all"), ("amazon_games", "amazon-games", "amazon_games.A7")],
)
def test_real_logs_become_batches(tmp_path, dataset, folder, mixture):
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}")
    prepare(dataset=dataset, input_dir=SHARED / folder, output_dir=tmp_path / "prepared")
    settings = BuildSettings(max_train_positions=1)
    build(dataset=dataset, input_dir=tmp_path / "prepared", output_dir=tmp_path, settings=settings)
    registry.import_task_module("tasks.mixtures", dataset)
    record_store.use_data_dir(tmp_path)
    vocabulary.use_vocabulary(tmp_path / dataset / "vocabulary" / "sentencepiece.model")
    lengths = {"inputs": 256, "targets": 64}
    batch = next(
        loader.ranking_batches(mixture, split="test", feature_lengths=lengths, batch_size=8)
    )
    assert (batch["candidate_ids"] >= 0).all()
    assert (batch["target_index"] >= 0).all()
