"""The stage `build` on an invented data set, and on the real ones."""

import collections
import contextlib
import dataclasses
import gzip
import itertools
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from seqio_groups import seqio_groups

from instructrec_jax import files
from instructrec_jax.data.columnar import CONFIGS, SPLITS
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.instructions.coverage import num_renderable
from instructrec_jax.instructions.language import Template
from instructrec_jax.manifest import read_manifest
from instructrec_jax.pipeline import record_store, registry, vocabulary
from instructrec_jax.records import Item, TaskForm
from instructrec_jax.stages.build import BuildSettings, Execution, build, whole_pieces
from instructrec_jax.stages.prepare import prepare
from instructrec_jax.teacher.extractive import ExtractiveTeacher
from instructrec_jax.tokenizer import load_vocabulary

SETTINGS = BuildSettings(vocab_size=600, records_per_shard=100)
OTHER_SEED = dataclasses.replace(SETTINGS, seed=1)
EXTRACTIVE = ExtractiveTeacher.name
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def build_toy(toy_prepared, toy_texts):
    """Builds the records of "toy" as the session's records were built, but for what is given."""

    def run(output_dir: Path, **changes):
        arguments = {
            "dataset": "toy",
            "input_dir": toy_prepared,
            "texts_dir": toy_texts,
            "output_dir": output_dir,
            "settings": SETTINGS,
        }
        return build(**{**arguments, **changes})

    return run


def test_counts_are_those_of_the_files(toy_records):
    counts = read_manifest(toy_records / "toy").counts
    for config in CONFIGS:
        source = record_store.RecordSource("toy", config)
        record_store.use_data_dir(toy_records)
        for split in SPLITS:
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
    for split in SPLITS:
        for record in source.get_dataset(split, shuffle=False).as_numpy_iterator():
            history, candidates = record["history"].tolist(), record["candidates"].tolist()
            assert record["target"] not in history
            assert not set(history) & set(candidates)
            assert candidates.count(record["target"]) == 1
            assert len(set(candidates)) == len(candidates) == 10


def test_product_search_training_asks_for_no_held_out_item_and_shows_them_as_negatives(
    toy_prepared, toy_records
):
    """What is never shown in training would be known by that: see `lint`'s rules."""
    data = read_prepared(toy_prepared)
    held_out = {
        item.item_id
        for item, split in zip(data.items, data.search_splits, strict=True)
        if split in ("validation", "test")
    }
    assert held_out
    record_store.use_data_dir(toy_records)
    source = record_store.RecordSource("toy", "product_search")
    shown = set()
    for record in source.get_dataset("train", shuffle=False).as_numpy_iterator():
        assert record["target_id"] not in held_out
        shown.update(record["candidate_ids"].tolist())
    assert held_out <= shown


def test_records_of_another_rule_for_negatives_are_not_taken_for_the_same(build_toy, tmp_path):
    build_toy(tmp_path / "records")
    folder = tmp_path / "records" / "toy"
    found = read_manifest(folder)
    settings = {n: v for n, v in found.settings.items() if n != "train_negatives"}
    dataclasses.replace(found, settings=settings).write(folder)
    with pytest.raises(UserError, match=r"holds another run: .*name another folder or remove it"):
        build_toy(tmp_path / "records")


def test_building_again_reuses_what_is_there(build_toy, toy_records, caplog):
    caplog.set_level(logging.INFO)
    before = (toy_records / "toy" / "manifest.json").stat().st_mtime_ns
    build_toy(toy_records)
    assert (toy_records / "toy" / "manifest.json").stat().st_mtime_ns == before
    assert "up to date" in caplog.text


def test_building_elsewhere_gives_the_same_bytes(build_toy, toy_records, tmp_path):
    build_toy(tmp_path)
    assert_same_records(tmp_path, toy_records)


def assert_same_records(found: Path, expected: Path) -> None:
    for name in (*CONFIGS, "vocabulary"):
        assert files.sha256(found / "toy" / name) == files.sha256(expected / "toy" / name)


@pytest.mark.slow
def test_beam_writes_the_same_bytes(build_toy, toy_records, tmp_path):
    build_toy(tmp_path, execution=Execution(runner="DirectRunner"))
    assert_same_records(tmp_path, toy_records)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(build_toy, toy_records, tmp_path):
    build_toy(tmp_path, execution=Execution(num_workers=2))
    assert_same_records(tmp_path, toy_records)


def test_an_interrupted_build_goes_on_with_the_next_file(
    build_toy, toy_records, tmp_path, monkeypatch
):
    begun = []
    write = record_store.write_shard

    def write_shard(path, records):
        if len(begun) == 3:
            begun.append("interrupted")
            write(path, itertools.chain(itertools.islice(records, 5), stopped()))
        begun.append(path.name)
        return write(path, records)

    def stopped():
        yield interrupted()

    monkeypatch.setattr(record_store, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        build_toy(tmp_path)
    assert not (tmp_path / "toy").exists()
    before = begun[:3]
    build_toy(tmp_path)
    assert not set(before) & set(begun[4:]), "no finished file is written again"
    assert_same_records(tmp_path, toy_records)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert not list(tmp_path.rglob("*.summary.json"))


def test_a_runner_that_beam_does_not_know_is_named(build_toy, tmp_path):
    with pytest.raises(UserError, match=r"Beam cannot start with --runner=NoRunner"):
        build_toy(tmp_path, execution=Execution(runner="NoRunner"))
    assert not list(tmp_path.iterdir())


def test_without_beam_the_user_is_told_what_to_install(build_toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"pip install .*\[beam\]"):
        build_toy(tmp_path, execution=Execution(runner="DirectRunner"))


def test_records_name_their_teacher(toy_records):
    assert read_manifest(toy_records / "toy").settings["teacher"] == EXTRACTIVE
    record_store.use_data_dir(toy_records)
    source = record_store.RecordSource("toy", "leave_one_out")
    for record in source.get_dataset("train", shuffle=False).as_numpy_iterator():
        is_taught = len(record["preference"]) + len(record["vague_intention"]) > 0
        assert record["teacher"] == (EXTRACTIVE.encode() if is_taught else b"")
        assert len(record["vague_intention"]) == len(record["second_vague_intention"])


def test_without_texts_no_record_has_any_and_the_user_is_told(build_toy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = build_toy(tmp_path, texts_dir=None)
    assert found.settings["teacher"] == "none"
    assert not [name for name in found.counts if "preference" in name or "vague" in name]
    assert "`instructrec annotate` writes them" in caplog.text


def test_texts_on_other_prepared_data_are_refused(build_toy, toy_prepared, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(toy_prepared, other)
    text = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(text + "\n")
    with pytest.raises(UserError, match="texts on other prepared data"):
        build_toy(tmp_path / "records", input_dir=other)
    with pytest.raises(
        UserError, match="holds the output of 'prepare', expected that of 'annotate'"
    ):
        build_toy(tmp_path / "records", texts_dir=toy_prepared)
    assert not (tmp_path / "records").exists()


@contextlib.contextmanager
def held_by_another_process(folder: Path):
    """Has another process hold a folder, as a running build does."""
    code = (
        "import sys; from instructrec_jax import files\n"
        "with files.exclusive_directory(sys.argv[1]): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(b"\n")


def test_a_second_build_leaves_the_files_of_a_running_one_alone(
    build_toy, toy_records, tmp_path, monkeypatch
):
    monkeypatch.setattr(record_store, "write_shard", interrupted)
    for settings in (SETTINGS, OTHER_SEED):
        with pytest.raises(KeyboardInterrupt):
            build_toy(tmp_path, settings=settings)
    monkeypatch.undo()
    mine, other = sorted(tmp_path.glob(".toy.*.partial"), key=lambda path: path.stat().st_mtime_ns)
    half_written = mine / ".shard.0123abcd.tmp"
    half_written.write_text("half")
    with held_by_another_process(mine), pytest.raises(UserError, match="another process is at"):
        build_toy(tmp_path)
    assert half_written.exists()
    with held_by_another_process(other):
        build_toy(tmp_path)
        assert other.exists(), "another build works there"
    assert_same_records(tmp_path, toy_records)
    assert not mine.exists()


def interrupted(*_):
    raise KeyboardInterrupt


def test_another_setting_does_not_overwrite(build_toy, toy_records):
    with pytest.raises(UserError, match=r"another run: settings\['seed'\]"):
        build_toy(toy_records, settings=OTHER_SEED)


def test_a_vocabulary_that_is_given_is_copied(toy_prepared, toy_records, tmp_path):
    given = toy_records / "toy" / "vocabulary" / "sentencepiece.model"
    settings = BuildSettings(vocabulary_path=str(given), max_train_positions=1)
    found = build(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    copy = tmp_path / "toy" / "vocabulary" / "sentencepiece.model"
    assert copy.read_bytes() == given.read_bytes()
    assert found.counts["leave_one_out/train"] == found.counts["leave_one_out/test"]


def test_titles_that_training_has_most_often_become_pieces(toy_prepared, tmp_path):
    settings = dataclasses.replace(SETTINGS, title_pieces=10, max_train_positions=1)
    build(dataset="toy", input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    model = load_vocabulary(tmp_path / "toy" / "vocabulary" / "sentencepiece.model")
    data = read_prepared(toy_prepared)
    training = (item for history in data.histories for item in history.item_ids[:-2])
    chosen = collections.Counter(int(item) for item in training)
    number = {
        item: chosen[item]
        for item, own in enumerate(data.items)
        if len(model.encode(own.title)) == 1
    }
    assert len(number) == 10
    others = set(range(len(data.items))) - set(number)
    assert min(number.values()) >= max(chosen[item] for item in others) > 0


def test_a_title_of_one_word_is_a_piece_only_where_it_begins_no_other_word():
    titles = ["It", "Kites", "Red Kite", "Which", "Zebra", "Zebra Moon", "Fantasy"]
    items = [
        Item(item_id=i, raw_id=str(i), title=title, category="Fantasy, Drama")
        for i, title in enumerate(titles)
    ]
    template = Template(
        template_id="A1",
        inputs="Which Item after {history}?",
        targets="{target}",
        task_form=TaskForm.MATCHING,
    )
    data = mock.Mock(items=items, histories=[mock.Mock(item_ids=[*range(7), 0, 0])])
    templates = [template]
    found = whole_pieces(data, templates, 10)
    assert set(found) == {"Kites", "Red Kite", "Zebra", "Zebra Moon", "Fantasy", "Drama"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title_pieces": -1}, "title_pieces is -1"),
        ({"title_pieces": 5, "vocabulary_path": "spiece.model"}, "leave one of them out"),
    ],
)
def test_pieces_of_titles_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        BuildSettings(**change)


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("toys", SETTINGS, "holds dataset 'toy', not 'toys'"),
        ("toy", BuildSettings(vocabulary_path="missing.model"), r"missing\.model does not exist"),
        ("toy", BuildSettings(states_time=True, vocab_size=50), "vocab_size=50 is too small"),
        (
            "toy",
            BuildSettings(task_module="instructrec_jax.tasks.none"),
            "'instructrec_jax.tasks.none' cannot be imported",
        ),
        ("toy", BuildSettings(task_module="os"), "'os' has no TEMPLATES"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(toy_prepared, tmp_path, dataset, settings, message):
    with pytest.raises(UserError, match=message):
        build(dataset=dataset, input_dir=toy_prepared, output_dir=tmp_path, settings=settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["vocab_size", "num_train_negatives", "max_train_positions"])
def test_a_number_below_one_is_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0; expected a whole number"):
        BuildSettings(**{name: 0})


def test_a_folder_that_prepare_did_not_write_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        build(dataset="toy", input_dir=tmp_path / "nowhere", output_dir=tmp_path, settings=SETTINGS)
    (tmp_path / "logs.tsv").write_text("user_id\titem_id\n")
    for not_prepared in (tmp_path, tmp_path / "logs.tsv"):
        with pytest.raises(UserError, match=r"holds no manifest\.json"):
            build(dataset="toy", input_dir=not_prepared, output_dir=tmp_path, settings=SETTINGS)


def beginning_of(folder: Path, copy: Path, num_sequences: int = 2000) -> Path:
    """Copies a real log; of sequences the first ones, which is what a test has time for."""
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    for path in copy.glob("sequences*.gz"):
        with gzip.open(path, "rb") as stream:
            lines = list(itertools.islice(stream, 1 + num_sequences))
        with gzip.open(path, "wb", compresslevel=1) as stream:
            stream.writelines(lines)
    return copy


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("dataset", "folder", "mixture"),
    [("ml_100k", "ml-100k", "ml_100k.all"), ("amazon_games", "amazon-games", "amazon_games.A7")],
)
def test_real_logs_become_batches(tmp_path, dataset, folder, mixture):
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}")
    logs = beginning_of(SHARED / folder, tmp_path / "logs")
    prepare(dataset=dataset, input_dir=logs, output_dir=tmp_path / "prepared")
    settings = BuildSettings(max_train_positions=1)
    build(dataset=dataset, input_dir=tmp_path / "prepared", output_dir=tmp_path, settings=settings)
    registry.import_task_module("instructrec_jax.tasks.mixtures", dataset)
    record_store.use_data_dir(tmp_path)
    vocabulary.use_vocabulary(tmp_path / dataset / "vocabulary" / "sentencepiece.model")
    lengths = {"inputs": 256, "targets": 64}
    (task, *_) = registry.evaluated_tasks([mixture], split="test")
    for group in seqio_groups(task, split="test", lengths=lengths, number=8):
        assert (group["candidate_ids"] >= 0).all() and group["target_index"] >= 0
