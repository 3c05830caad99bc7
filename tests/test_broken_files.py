"""Files that hold anything but what is expected end in one message that names them."""

import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_toys import change_config, golden_copy, random_arrays, write
from train_toy import train_toy

from instructrec_jax import files
from instructrec_jax.checkpoints import adapters
from instructrec_jax.checkpoints.arrays import write_checkpoint
from instructrec_jax.checkpoints.parameters import checked_step
from instructrec_jax.checkpoints.ranking_config import FILE_NAME, RankingConfig
from instructrec_jax.checkpoints.source import open_source
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.data.readers import rows
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.scores.parts import read_scores
from instructrec_jax.settings import Count, Natural, Share
from instructrec_jax.stages.convert import convert
from instructrec_jax.training.metrics_log import read_metrics

DEEP = "[" * 100_000


@dataclasses.dataclass(frozen=True)
class Toy:
    """What a file of a toy holds."""

    size: Count
    share: Share = 0.5


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        (DEEP, Any, "nested too deep"),
        ("", Any, "Expecting value"),
        ("[1", Any, "Expecting"),
        ("NaN", Any, "the number NaN is out of range"),
        ("[-Infinity]", Any, "the number -Infinity is out of range"),
        ("1e999", Any, "the number 1e999 is out of range"),
        ("9" * 5000, Any, "out of range"),
        ("[1]", dict[str, Any], r"it holds \[1\], expected a mapping"),
        ("null", dict[str, int], "it holds None, expected a mapping"),
        ('{"a": "b"}', dict[str, int], "expected 'a' to be a whole number"),
        ('{"a": -1}', dict[str, Natural], "expected 'a' to be a whole number, at least 0"),
        ('{"a": 1}', Toy, "unexpected keyword argument 'a'"),
        ("[]", Toy, "expected a mapping"),
        ('{"size": true}', Toy, "size is True; expected a whole number"),
        ('{"size": 1, "share": 2}', Toy, "share is 2; expected"),
        ('{"size": 99999999999999999999999}', Toy, "size is 1e\\+23; expected a whole number"),
    ],
)
def test_json_of_another_shape_is_named_with_what_to_do(tmp_path, text, shape, reason):
    path = tmp_path / "toy.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"toy\.json is damaged \((?s:.*){reason}.*\); mend it"):
        files.read_json(path, shape, remedy="mend it")


def test_json_of_the_shape_comes_back(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text('{"size": 3}', encoding="utf-8")
    assert files.read_json(path, Toy, remedy="") == Toy(3)
    assert files.read_json(path, dict[str, int], remedy="") == {"size": 3}
    assert files.parse_json("[-1, 2.5, 18446744073709551615]") == [-1, 2.5, 2**64 - 1]


@pytest.mark.parametrize("read", [files.open_input, files.read_text])
def test_what_is_no_file_is_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "link", "loop", "missing", "x" * 300, "."):
        with pytest.raises(UserError, match="cannot read"):
            read(tmp_path / name)
    with pytest.raises(UserError, match="it is a folder, a FIFO or a device"):
        read("/dev/zero")


@pytest.mark.parametrize("content", ["newlines", "one line"])
def test_a_gzip_file_that_grows_without_end_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.setattr(rows, "_MIN_EXPANDED", 1 << 20)
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "log.tsv"
    path.write_bytes(gzip.compress((b"\n" if content == "newlines" else b"a") * (4 << 20)))
    with pytest.raises(UserError, match=r"log\.tsv line \d+: lines of at most"):
        list(rows.read_lines(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": None},
        {"settings": [1]},
        {"counts": {"users": "many"}},
        {"drops": [1]},
        {"stage": 5},
        {"unknown": 1},
    ],
)
def test_a_manifest_of_another_shape_is_named(tmp_path, changes):
    Manifest(stage="toy", inputs={"log": "0"}, settings={"seed": 1}).write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
    with pytest.raises(UserError, match=r"manifest\.json is damaged.*remove its folder and rerun"):
        read_manifest(tmp_path)


def test_a_setting_that_a_stage_needs_is_named():
    found = Manifest(stage="annotate", inputs={}, settings={"teacher": 5})
    with pytest.raises(UserError, match="teacher = 5, expected a text; run `instructrec annotate`"):
        found.text("teacher")


@pytest.mark.parametrize("text", [DEEP, "[]", '{"step": NaN}', '{"no": 1}'])
def test_a_damaged_line_of_metrics_is_named(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{text}\n{{"step": 2}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is not"):
        read_metrics(path)


@pytest.mark.parametrize("stated", ["²", "-3", "9" * 5000, 2**40, "twenty", [1], np.arange(3), 1.5])
def test_a_step_that_is_none_is_named(stated):
    with pytest.raises(UserError, match="says that its step is"):
        checked_step(stated, "model")


def test_a_step_may_be_a_text_or_an_array():
    assert checked_step("0012", "model") == checked_step(np.asarray(12), "model") == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"num_layers": 10**6},
        {"num_decoder_layers": 10**12, "num_layers": 10**12},
        {"num_decoder_layers": 10**15},
        {"num_layers": True},
        {"d_model": 10**30},
        {"architectures": 5},
        {"architectures": [5]},
    ],
)
def test_sizes_that_a_config_claims_are_checked_before_anything_is_made(tmp_path, fields):
    folder = golden_copy(tmp_path / "hf")
    change_config(folder, **fields)
    with pytest.raises(UserError, match=rf"config\.json.*{list(fields)[-1]}.*expected"):
        open_source(folder)


@pytest.mark.parametrize(
    "metadata", [[1], None, {"instructrec_step": 5}, {"instructrec_step": "²"}]
)
def test_metadata_of_safetensors_are_texts(tmp_path, metadata):
    folder = golden_copy(tmp_path / "hf")
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length]) | {"__metadata__": metadata}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(UserError, match=f"{folder}.*(metadata|step) is"):
        open_source(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", DEEP),
        ("config.json", '{"d_model": NaN}'),
        (FILE_NAME, DEEP),
        (FILE_NAME, '{"normaliser": ["sum"], "feature_lengths": {}, "extra_ids": 0}'),
        (FILE_NAME, '{"normaliser": "sum", "feature_lengths": {"inputs": -1}, "extra_ids": 0}'),
    ],
)
def test_a_broken_file_of_a_checkpoint_is_named(tmp_path, name, text):
    folder = golden_copy(tmp_path / "hf")
    RankingConfig(normaliser="sum", feature_lengths={}, extra_ids=0).write(folder)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{folder / name} is damaged"):
        open_source(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": 0}, "r = 0"),
        ({"r": 4.5}, "r = 4.5"),
        ({"lora_alpha": -1}, "lora_alpha = -1"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path = None"),
        ({"base_model_name_or_path": "SELF"}, "leads back to itself"),
    ],
)
def test_adapters_of_impossible_sizes_or_of_themselves_are_refused(tmp_path, fields, named):
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
    text = json.dumps(plain | fields).replace("SELF", str(tmp_path))
    (tmp_path / adapters.PEFT_CONFIG).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        open_source(tmp_path)


def test_a_folder_that_is_no_number_is_no_step(tmp_path):
    arrays = random_arrays()
    write(tmp_path / "best", "native", arrays)
    (tmp_path / "best" / "7").rename(tmp_path / "best" / "²")
    with pytest.raises(UserError, match="no finished checkpoint"):
        open_source(tmp_path)


@pytest.mark.parametrize("found", ["many", 0, None, 10**9])
def test_a_distance_that_a_manifest_claims_is_checked(tmp_path, found):
    write(tmp_path, "native", random_arrays())
    settings = {"model": {"relative_max_distance": found}}
    Manifest(stage="train", inputs={}, settings=settings).write(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json: relative_max_distance is"):
        open_source(tmp_path)


def test_what_tensorstore_cannot_write_is_one_message(tmp_path, monkeypatch):
    import tensorstore

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing local file [source locations='x']")

    with (
        pytest.raises(UserError, match=r"cannot write a checkpoint: .*RESOURCE_EXHAUSTED"),
        write_checkpoint(tmp_path / "7", "default") as writer,
    ):
        monkeypatch.setattr(tensorstore, "open", full)
        writer.write("step", np.zeros(3))
    assert not list(Path(tmp_path).iterdir())


def test_a_conversion_of_a_broken_checkpoint_leaves_nothing(tmp_path):
    folder = golden_copy(tmp_path / "hf")
    change_config(folder, num_layers=10**9)
    with pytest.raises(UserError):
        convert(source_path=str(folder), output_dir=str(tmp_path / "out"), to="native")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "names", [{"mixture": "toy.A77.grouped"}, {"tasks": ["toy.A7.grouped", "toy.A77.grouped"]}]
)
def test_no_model_dir_is_claimed_for_a_task_that_is_not_there(toy_records, tmp_path, names):
    with pytest.raises(UserError, match=r"unknown task or mixture 'toy\.A77"):
        train_toy(toy_records, tmp_path / "run", 1, **names)
    assert not (tmp_path / "run").exists()


def test_a_fifo_in_place_of_a_part_of_an_artefact_is_not_opened(toy_prepared, tmp_path):
    folder = shutil.copytree(toy_prepared, tmp_path / "prepared")
    (folder / "items.parquet").unlink()
    os.mkfifo(folder / "items.parquet")
    with pytest.raises(UserError, match=r"items\.parquet: it is a folder, a FIFO or a device"):
        read_prepared(folder)
    os.mkfifo(tmp_path / "A7.part-00000.parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet: it is a folder, a FIFO"):
        read_scores(tmp_path)
