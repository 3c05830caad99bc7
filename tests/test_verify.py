"""Damage on disk: whatever bit flips, the stage that reads it and `verify` say so."""

import dataclasses
import logging
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from checkpoint_toys import CONFIG, random_arrays, write

from instructrec_jax import manifest
from instructrec_jax.checkpoints import store
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.cli import main
from instructrec_jax.data.prepared import read_prepared
from instructrec_jax.errors import UserError
from instructrec_jax.manifest import Manifest, read_manifest
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.pipeline import record_store
from instructrec_jax.scores import parts
from instructrec_jax.stages.convert import convert
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.verify import as_text, verify
from instructrec_jax.teacher.texts import read_texts_manifest


def flip_a_bit(path, *, at=0.5):
    """Changes one bit at a share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def read_texts(folder):
    read_texts_manifest(folder, prepared=[read_manifest(folder).inputs["prepared"]])


def read_records(folder):
    record_store.use_data_dir(folder)
    RunData(data_dir=str(folder), feature_lengths={}).open_vocabulary("toy")
    for config in ("leave_one_out", "product_search"):
        for split in ("train", "validation", "test"):
            list(record_store.column_batches("toy", config, split, ["target"]))


def load(folder):
    return load_model(open_source(folder), abstract_model(CONFIG.init, make_mesh(MeshSettings())))


def scored_request(name):
    return parts.ScoredRequest(
        request_id=name,
        candidate_ids=np.arange(3),
        log_likelihood=np.array([-1.0, -2.0, -3.0], np.float32),
        num_tokens=np.array([2, 3, 4], np.int32),
        num_chars=np.array([5, 6, 7], np.int32),
        target_index=1,
    )


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Artefact E of two parts."""
    folder = tmp_path_factory.mktemp("scores")
    told = {"system": "toy", "family": "sequential", "query": parts.NO_QUERY}
    for number in range(2):
        rows = parts.score_rows("A7", [scored_request(f"u{number}:{k}") for k in range(40)])
        parts.write_part(folder / parts.part_name("A7", number), rows, told)
    Manifest(stage="score", inputs={}, settings={}, counts={"A7": 80}).write_finished(folder)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A checkpoint of ours, and what `convert` made of it, by kind."""
    root = tmp_path_factory.mktemp("models")
    write(root / "source", "native", random_arrays())
    for to in ("native", "hf", "t5x"):
        convert(source_path=str(root / "source"), output_dir=str(root / to), to=to)
    return root


CASES = {
    "prepared": (read_prepared, ["*.parquet", "*.arrow", "manifest.json"]),
    "texts": (read_texts, ["*.parquet", "manifest.json"]),
    "records": (read_records, ["*.tfrecord-*", "*.json", "*.model"]),
    "scores": (parts.read_scores, ["*.parquet", "manifest.json"]),
    "hf": (load, ["*.safetensors", "*.json"]),
    "t5x": (load, ["*"]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_flipped_bit_in_any_file_is_refused_by_the_reader_and_found_by_verify(
    name, tmp_path, toy_prepared, toy_texts, toy_records, scores, converted
):
    origins = {"prepared": toy_prepared, "texts": toy_texts, "records": toy_records}
    origin = {"scores": scores, **origins}.get(name, converted / name)
    read, patterns = CASES[name]
    shutil.copytree(origin, tmp_path / "copy")
    read(tmp_path / "copy")
    whole = verify(folder=tmp_path / "copy")
    assert not whole.damaged and whole.num_files and not whole.unchecked
    found = {
        path
        for pattern in patterns
        for path in (tmp_path / "copy").rglob(pattern)
        if path.is_file()
    }
    assert len(found) >= len(patterns)
    for path in sorted(found):
        kept = path.read_bytes()
        flip_a_bit(path)
        with pytest.raises(UserError, match=str(tmp_path / "copy")):
            read(tmp_path / "copy")
        assert verify(folder=tmp_path / "copy").damaged
        path.write_bytes(kept)
    read(tmp_path / "copy")


def test_a_table_of_another_run_is_refused(tmp_path, toy_prepared):
    shutil.copytree(toy_prepared, tmp_path / "copy")
    shutil.copy(toy_prepared / "histories.parquet", tmp_path / "copy" / "items.parquet")
    with pytest.raises(UserError, match=r"items\.parquet has changed .*run `instructrec prepare`"):
        read_prepared(tmp_path / "copy")
    (tmp_path / "copy" / "items.parquet").unlink()
    with pytest.raises(UserError, match=r"items\.parquet is missing"):
        read_prepared(tmp_path / "copy")


def test_an_output_that_is_damaged_is_not_up_to_date(tmp_path, toy_prepared):
    shutil.copytree(toy_prepared, tmp_path / "copy")
    planned = read_manifest(tmp_path / "copy")
    assert manifest.find_finished(tmp_path / "copy", planned)
    flip_a_bit(tmp_path / "copy" / "candidates.parquet")
    with pytest.raises(UserError, match="candidates"):
        manifest.find_finished(tmp_path / "copy", planned)


def test_a_folder_of_an_earlier_version_is_read_and_said_once(tmp_path, toy_prepared, caplog):
    shutil.copytree(toy_prepared, tmp_path / "copy")
    dataclasses.replace(read_manifest(tmp_path / "copy"), files={}).write(tmp_path / "copy")
    with caplog.at_level(logging.INFO):
        read_prepared(tmp_path / "copy")
        read_prepared(tmp_path / "copy")
    assert caplog.text.count("holds no hashes of its files") == 1
    text = as_text(verify(folder=tmp_path / "copy"))
    assert text.startswith("not known; 0 files") and str(tmp_path / "copy") in text


@pytest.mark.parametrize("kind", ["trained", "converted"])
def test_a_flipped_bit_in_an_array_of_ours_is_found_at_restore(kind, tmp_path, converted):
    folder = tmp_path / "run"
    if kind == "converted":
        shutil.copytree(converted / "source", folder)
    else:
        model = load(converted / "source")
        saved = store.CheckpointStore(folder / store.LATEST, keep=2)
        saved.save(7, {"step": jax.numpy.asarray(7), "model": model})
        saved.close()
    assert verify(folder=folder).num_arrays > 10 and not verify(folder=folder).damaged
    load(folder)
    path = max(folder.rglob("d/*"), key=lambda file: file.stat().st_size)
    kept = path.read_bytes()
    for at in np.linspace(0.05, 0.95, 12):
        flip_a_bit(path, at=at)
        with pytest.raises(UserError, match=r"checkpoint .* cannot be read"):
            load(folder)
        assert verify(folder=folder).damaged
        path.write_bytes(kept)


def test_checkpoints_without_checksums_are_read_and_said(tmp_path, converted, caplog):
    write(tmp_path / "foreign", "hf", random_arrays())
    shutil.copytree(converted / "source", tmp_path / "old")
    (tmp_path / "old" / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    with caplog.at_level(logging.INFO):
        for name in ("foreign", "old"):
            load(tmp_path / name)
    assert caplog.text.count("holds no checksums") == 2


def test_the_command_gives_its_verdict_first_and_needs_no_tensorflow(tmp_path, scores):
    shutil.copytree(scores, tmp_path / "copy")
    code = (
        "import sys; from instructrec_jax.cli import main;"
        "code = main.main(['verify', sys.argv[1]]);"
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    whole = subprocess.run(run, capture_output=True, text=True, check=False)
    assert (whole.returncode, whole.stdout.splitlines()[0][:3]) == (0, "ok;"), whole.stderr
    flip_a_bit(next((tmp_path / "copy").glob("*.parquet")))
    damaged = subprocess.run(run, capture_output=True, text=True, check=False)
    assert damaged.returncode == 1 and damaged.stdout.startswith("1 damaged; ")


def test_a_folder_of_nothing_is_a_mistake(tmp_path, capsys):
    assert main.main(["verify", str(tmp_path)]) == main.USER_ERROR
    assert "no manifest.json and no checkpoint" in " ".join(capsys.readouterr().err.split())
