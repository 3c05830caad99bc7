"""The stages `build` and `inspect` on an invented data set, and on the real ones."""

import dataclasses
import logging
from pathlib import Path

import pytest

from instructrec_jax import files
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions import builder
from instructrec_jax.instructions.coverage import num_renderable
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import loader, record_store, registry, vocabulary
from instructrec_jax.stages.build import BuildSettings, build
from instructrec_jax.stages.inspect import inspect
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
    for name in (*builder.CONFIGS, "vocabulary"):
        assert files.sha256(tmp_path / "toy" / name) == files.sha256(toy_records / "toy" / name)


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
        ("toy", BuildSettings(vocab_size=50_000), "vocab_size=50000 is too large"),
        ("toy", BuildSettings(vocabulary_path="missing.model"), r"missing\.model does not exist"),
        ("toy", BuildSettings(task_module="tasks.none"), "'tasks.none' cannot be imported"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(toy_prepared, tmp_path, dataset, settings, message):
    with pytest.raises(UserError, match=message):
        build(dataset=dataset, input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vocab_size", "num_train_negatives", "max_train_positions"])
def test_a_number_below_one_is_refused(name):
    with pytest.raises(UserError, match=f"{name}=0"):
        BuildSettings(**{name: 0})


def test_a_folder_that_prepare_did_not_write_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        build(dataset="toy", input_dir=tmp_path / "nowhere", output_dir=tmp_path, settings=SETTINGS)


def test_inspect_shows_examples_with_their_tokens(toy_records, caplog):
    caplog.set_level(logging.INFO)
    whole = inspect("toy.A7", data_dir=toy_records, split="test", num_examples=2)
    lengths = {"inputs": 256, "targets": 24}
    cut = inspect(
        "toy.A7.rank", data_dir=toy_records, split="test", num_examples=2, feature_lengths=lengths
    )
    assert [example.example_id for example in whole] == [example.example_id for example in cut]
    assert whole[0].num_history_dropped == 0 < cut[0].num_history_dropped
    assert cut[0].num_input_tokens <= 256 < whole[0].num_input_tokens
    assert whole[0].targets == cut[0].targets
    assert f"({cut[0].num_input_tokens} tokens, {cut[0].num_history_dropped} history" in caplog.text
    assert cut[0].inputs in caplog.text


@pytest.mark.parametrize(
    ("task", "split", "number", "message"),
    [
        ("toy.A99", "test", 1, r"'toy\.A99'; the nearest known"),
        ("tiy.A7", "test", 1, "unknown dataset 'tiy'; the nearest known: toy"),
        ("toy.A7", "tests", 1, "no split 'tests'"),
        ("toy.A7", "test", 0, "num_examples=0"),
    ],
)
def test_inspect_names_what_it_cannot_find(toy_records, task, split, number, message):
    with pytest.raises(UserError, match=message):
        inspect(task, data_dir=toy_records, split=split, num_examples=number)


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
