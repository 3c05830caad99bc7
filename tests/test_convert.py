"""`instructrec convert`: bit for bit between all kinds, and never half a checkpoint."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint_toys import CONFIG, random_arrays, write

from instructrec_jax import files, manifest
from instructrec_jax.checkpoints import huggingface, store
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.metrics.ranking import METRIC_NAMES
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
from instructrec_jax.stages.convert import convert
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import TrainState, abstract_state

KINDS = ("native", "hf", "t5x")


def temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The same arrays as a checkpoint of every kind, at step 7."""
    root = tmp_path_factory.mktemp("originals")
    return {kind: write(root / kind, kind, random_arrays()) for kind in KINDS}


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_every_other_bit_for_bit(originals, tmp_path, kind, to):
    convert(source_path=str(originals[kind]), output_dir=str(tmp_path / "new"), to=to)
    found = open_source(tmp_path / "new")
    assert (found.kind, found.step, found.config) == (to, 7, CONFIG)
    for name, array in random_arrays().items():
        assert found.read(name).tobytes() == array.tobytes(), name
    done = manifest.read_manifest(tmp_path / "new")
    assert (done.settings["from"], done.settings["to"]) == (kind, to)
    assert temporary_files(tmp_path) == []


def test_hugging_face_comes_back_as_the_same_bytes(originals, tmp_path):
    for kind in ("native", "t5x"):
        convert(source_path=str(originals["hf"]), output_dir=str(tmp_path / kind), to=kind)
        convert(source_path=str(tmp_path / kind), output_dir=str(tmp_path / f"{kind}_hf"), to="hf")
        for name in (huggingface.WEIGHTS_FILE, huggingface.CONFIG_FILE):
            before = (originals["hf"] / name).read_bytes()
            assert (tmp_path / f"{kind}_hf" / name).read_bytes() == before


def test_hugging_face_can_be_written_in_bfloat16(originals, tmp_path):
    """Half the bytes, each weight rounded to the nearest, and taken back as any other source."""
    command = ["convert", str(originals["native"]), str(tmp_path / "hf"), "--to=hf"]
    assert main.main([*command, "--dtype=bfloat16"]) == 0
    found = open_source(tmp_path / "hf")
    for name, array in random_arrays().items():
        rounded = array.astype(jax.numpy.bfloat16)
        assert found.read(name).dtype == rounded.dtype
        assert found.read(name).tobytes() == rounded.tobytes(), name
    config = json.loads((tmp_path / "hf" / huggingface.CONFIG_FILE).read_text())
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("to", "choice", "named"),
    [
        ("native", {"dtype": "bfloat16"}, "--dtype=bfloat16 with --to=native; only --to=hf"),
        ("hf", {"dtype": "half"}, "unknown dtype of a checkpoint 'half'; .*bfloat16, float32"),
        ("hf", {"scan_layers": True}, "--scan_layers with --to=hf; only --to=t5x"),
    ],
)
def test_choices_that_a_kind_does_not_leave_are_refused(originals, tmp_path, to, choice, named):
    with pytest.raises(UserError, match=named):
        convert(source_path=str(originals["hf"]), output_dir=str(tmp_path / "n"), to=to, **choice)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_loaded_from_each_kind_onto_any_mesh(originals, kind, axes):
    wanted = abstract_model(CONFIG.init, make_mesh(MeshSettings(**axes)))
    model = load_model(open_source(originals[kind]), wanted)
    arrays = random_arrays()
    kernel = np.stack([arrays[f"encoder.layers_{i}.mlp.wo.kernel"] for i in range(3)])
    np.testing.assert_array_equal(model.encoder.layers.mlp.wo.kernel[...], kernel)
    same = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, model, wanted)
    assert all(jax.tree.leaves(same))


def test_what_is_written_as_native_restores_like_a_checkpoint_of_a_run(originals):
    folder = store.resolve_checkpoint(originals["native"])
    mesh = make_mesh(MeshSettings(data=4, tensor=2))
    adamw = optimizers.adamw(learning_rate=optimizers.constant(learning_rate=1e-3))
    wanted = abstract_state(CONFIG.init, adamw, mesh)._replace(optimizer_state=None)
    found = store.restore(folder, wanted)
    assert int(found.step) == store.checkpoint_step(folder) == 7
    arrays = random_arrays()
    np.testing.assert_array_equal(
        found.model.token_embedder.embedding[...], arrays["token_embedder.embedding"]
    )


def test_a_run_of_ours_is_exported(tmp_path):
    """Saved by Orbax itself, from a sharded state with its optimizer."""
    arrays = random_arrays()
    source = open_source(write(tmp_path / "hf", "hf", arrays))
    mesh = make_mesh(MeshSettings(data=2, fsdp=2, tensor=2))
    model = load_model(source, abstract_model(CONFIG.init, mesh))
    adamw = optimizers.adamw(learning_rate=optimizers.constant(learning_rate=1e-3))
    state = TrainState(jax.numpy.asarray(9), model, adamw.init(model))
    saved = store.CheckpointStore(tmp_path / "run" / store.LATEST, keep=1)
    saved.save(9, state)
    saved.close()
    convert(source_path=str(tmp_path / "run"), output_dir=str(tmp_path / "export"), to="hf")
    found = open_source(tmp_path / "export")
    assert found.step == 9
    for name, array in arrays.items():
        assert found.read(name).tobytes() == array.tobytes(), name


def test_the_greatest_distance_is_kept_or_refused(tmp_path):
    far = dataclasses.replace(CONFIG, relative_max_distance=64)
    write(tmp_path / "hf", "hf", random_arrays(), config=far)
    convert(source_path=str(tmp_path / "hf"), output_dir=str(tmp_path / "native"), to="native")
    assert open_source(tmp_path / "native").config == far
    with pytest.raises(UserError, match="relative_max_distance 64; a T5X checkpoint cannot say so"):
        convert(source_path=str(tmp_path / "native"), output_dir=str(tmp_path / "t5x"), to="t5x")
    assert not (tmp_path / "t5x").exists() and temporary_files(tmp_path) == []


def test_the_tokenizer_goes_along(tmp_path):
    write(tmp_path / "hf", "hf", random_arrays())
    for name in ("spiece.model", "tokenizer_config.json"):
        (tmp_path / "hf" / name).write_bytes(name.encode())
    for source, to in (("hf", "native"), ("native", "t5x"), ("t5x", "hf")):
        dest = tmp_path / (to if to != "hf" else "again")
        convert(source_path=str(tmp_path / source), output_dir=str(dest), to=to)
        assert open_source(dest).tokenizer.read_bytes() == b"spiece.model"
        assert (dest / "tokenizer_config.json").read_bytes() == b"tokenizer_config.json"


def test_the_command_says_what_it_did_and_repeats_nothing(originals, tmp_path, capsys):
    command = ["convert", str(originals["t5x"]), str(tmp_path / "new"), "--to=hf"]
    assert main.main(command) == 0
    said = " ".join(capsys.readouterr().err.split())  # lines are folded
    assert "checkpoint_7 (t5x, step 7, 12,672 parameters) ->" in said
    assert main.main(command) == 0
    assert "nothing left to do" in " ".join(capsys.readouterr().err.split())
    assert main.main([*command[:-1], "--to=native"]) == 2
    assert "holds another run: settings['to'] was 'hf' there" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("source", "to", "named"),
    [
        ("native", "gguf", "unknown kind of checkpoint 'gguf'; the nearest known: .*native"),
        ("nowhere", "hf", "no finished checkpoint in .*nowhere, which does not exist"),
        ("", "hf", "no finished checkpoint in .*; or Hugging Face's config.json"),
    ],
)
def test_mistakes_are_named(originals, tmp_path, source, to, named):
    path = originals.get(source, tmp_path / source)
    with pytest.raises(UserError, match=named):
        convert(source_path=str(path), output_dir=str(tmp_path / "new"), to=to)


def test_a_folder_that_holds_something_else_is_left_alone(originals, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and holds no manifest\.json"):
        convert(source_path=str(originals["hf"]), output_dir=str(tmp_path / "mine"), to="native")
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_values_are_refused_and_nothing_is_left_behind(tmp_path, kind, to):
    arrays = random_arrays()
    arrays["decoder.layers_1.self_attention.key.kernel"][2, 3] = np.nan
    write(tmp_path / "bad", kind, arrays)
    with pytest.raises(
        UserError, match=r"layers_1\.self_attention\.key\.kernel of .* holds 1 non-fin"
    ):
        convert(source_path=str(tmp_path / "bad"), output_dir=str(tmp_path / "new"), to=to)
    assert os.listdir(tmp_path) == ["bad"]


@pytest.mark.parametrize("to", KINDS)
def test_a_killed_conversion_leaves_no_checkpoint_and_the_next_one_cleans_up(
    originals, tmp_path, to
):
    """The child stops for good at the 30th array, and is killed there."""
    code = (
        "import sys, time; from instructrec_jax.stages import convert; "
        "read = convert._only_finite; seen = []\n"
        "def stopping(opened):\n"
        "  inner = read(opened)\n"
        "  def once(name):\n"
        "    seen.append(name)\n"
        "    if len(seen) == 30: print('here', flush=True); time.sleep(99)\n"
        "    return inner(name)\n"
        "  return once\n"
        "convert._only_finite = stopping\n"
        "convert.convert(source_path=sys.argv[1], output_dir=sys.argv[2], to=sys.argv[3])"
    )
    paths = [str(originals["hf"]), str(tmp_path / "new"), to]
    child = subprocess.Popen([sys.executable, "-c", code, *paths], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"here\n"
    child.kill()
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "new").exists()
    (left,) = temporary_files(tmp_path)
    assert left.startswith(".new.") and left.endswith(".tmp")
    other = tmp_path / ".newer.0123abcd.tmp"  # another conversion's, still at work
    other.mkdir()
    convert(source_path=paths[0], output_dir=paths[1], to=to)
    assert temporary_files(tmp_path) == [other.name]
    assert open_source(tmp_path / "new").read("decoder.decoder_norm.scale").shape == (16,)


def test_a_folder_moved_away_by_a_killed_process_moves_back(tmp_path):
    (tmp_path / ".new.0123abcd.old").mkdir()
    (tmp_path / ".new.0123abcd.tmp").mkdir()
    with pytest.raises(RuntimeError), files.atomic_directory(tmp_path / "new"):
        raise RuntimeError("the new folder is not finished")
    assert os.listdir(tmp_path) == ["new"]


def report_of(fingerprint: str, folder: Path) -> Path:
    """Writes a report that has one scenario, with this checkpoint in it."""
    interval = {"estimate": 0.25, "low": 0.125, "high": None}
    metrics = dict.fromkeys(METRIC_NAMES, interval)
    protocol = {
        **{"dataset": "toys", "num_examples": 20, "num_candidates": 10, "candidates_sha256": "ab"},
        **{"ties": "against the target", "interval": "95%", "choice": "validation"},
        "systems": {"own|`": {"checkpoint_sha256": fingerprint, "template": "A7"}},
    }
    values = {"protocol": protocol, "test": {"random": metrics, "own|`": metrics}}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"scenarios": {"sequential": values}}))
    return folder


def test_the_model_card_tells_data_protocol_figures_and_limits(originals, tmp_path):
    source = open_source(originals["hf"])
    convert(source_path=str(originals["hf"]), output_dir=str(tmp_path / "bare"), to="hf")
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert "* run: `not known`" in bare and "None are known" in bare and "## Limits" in bare
    report = report_of(source.fingerprint(), tmp_path / "report")
    command = ["convert", str(originals["hf"]), str(tmp_path / "card"), "--to=hf"]
    assert main.main([*command, f"--report_dir={report}"]) == 0
    card = (tmp_path / "card" / "README.md").read_text()
    for text in (
        "20 examples of `toys` with 10 candidates",
        "This model: template `A7`.",
        "| this model | 0.250 [0.125, none] |",
        "| `random` |",
    ):
        assert text in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_a_report_on_another_checkpoint_makes_no_card(originals, tmp_path):
    report = report_of("0" * 64, tmp_path / "report")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "report.json").write_text("[]")
    for folder, to, expected in (
        (report, "hf", "has 0 systems of this checkpoint"),
        (tmp_path / "none", "hf", "is no report"),
        (report, "native", "only --to=hf writes a model card"),
    ):
        with pytest.raises(UserError, match=expected):
            convert(
                source_path=str(originals["hf"]),
                output_dir=str(tmp_path / "new"),
                to=to,
                report_dir=str(folder),
            )
    assert not (tmp_path / "new").exists()
