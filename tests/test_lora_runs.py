"""LoRA through the real stages: train, resume, best checkpoint, score, convert; mistakes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_toys import assert_bit_equal, write
from score_toy import score_toy
from train_toy import MODEL, train_toy

from instructrec_jax.checkpoints import safetensors, store
from instructrec_jax.checkpoints.adapters import NOTE_FILE, PEFT_CONFIG, PEFT_WEIGHTS
from instructrec_jax.checkpoints.huggingface import stored_name
from instructrec_jax.checkpoints.parameters import neutral_shapes
from instructrec_jax.checkpoints.source import open_source
from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import FineTuning, Lora
from instructrec_jax.scores import parts
from instructrec_jax.stages.convert import convert

pytestmark = pytest.mark.slow  # whole runs

RANK, ALPHA = 2, 8.0
LORA = FineTuning(lora=Lora(rank=RANK, alpha=ALPHA, targets=["attention.*(query|value)", "wo"]))
RATE = 0.05  # adapters move far in few steps
SCORED = {"tasks": ("toy.C10.specific.grouped",), "num_requests": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random model as Hugging Face keeps it, at step 7."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(1.0 if "norm" in name else 0.0, 0.2, shape).astype(np.float32)
        for name, shape in neutral_shapes(MODEL).items()
    }
    return write(tmp_path_factory.mktemp("base"), "hf", arrays, config=MODEL)


@pytest.fixture(scope="module")
def run(toy_records, base, tmp_path_factory) -> Path:
    """An uninterrupted LoRA run of four steps."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    lora_run(toy_records, folder, base, 4)
    return folder


def lora_run(records, folder, base, number, **changes):
    fields = {"fine_tuning": LORA, "learning_rate": RATE} | changes
    train_toy(
        records,
        folder,
        None,
        initial_checkpoint_path=base and str(base),
        train_steps_relative=number,
        objective="packed text",
        **fields,
    )


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {name: array.read() for name, array in store.stored_arrays(folder, {"model"}).items()}


def all_arrays(path) -> dict[str, np.ndarray]:
    source = open_source(path)
    return {name: source.read(name) for name in neutral_shapes(source.config)}


def test_checkpoints_hold_adapters_alone_and_are_small(run, base):
    for folder in (store.LATEST, store.BEST):
        for step in (run / folder).iterdir():
            names = stored(step)
            assert all(".adapter.lora_" in name for name in names) and len(names) == 2 * 8
    assert sorted(int(p.name) for p in (run / store.LATEST).iterdir()) == [10, 11]
    learnt = sum(array.size for array in stored(store.resolve_checkpoint(run)).values())
    whole = sum(int(np.prod(shape)) for shape in neutral_shapes(MODEL).values())
    assert learnt < 0.1 * whole
    note = json.loads((run / NOTE_FILE).read_text())
    assert note == {
        "base": os.path.relpath(base, run),
        "base_sha256": open_source(base).fingerprint(),
        "rank": RANK,
        "alpha": ALPHA,
    }


def test_a_run_cut_in_two_equals_an_uninterrupted_one_bit_for_bit(toy_records, base, run, tmp_path):
    for number in (2, 4):  # each part ends with an evaluation, where the whole run has one too
        lora_run(toy_records, tmp_path / "run", base, number)
    for folder in (store.LATEST, store.BEST):
        names = {path.name for path in (run / folder).iterdir()}
        assert names == {path.name for path in (tmp_path / "run" / folder).iterdir()}
        for name in names:
            one, other = (stored(root / folder / name) for root in (run, tmp_path / "run"))
            assert one.keys() == other.keys()
            for array in one:
                np.testing.assert_array_equal(one[array], other[array], err_msg=array)


def test_merging_changes_the_kernels_that_were_targeted_and_no_others(run, base):
    before, after = all_arrays(base), all_arrays(run)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        name for name in before if name.endswith(("query.kernel", "value.kernel", "wo.kernel"))
    }
    arrays = stored(store.resolve_checkpoint(run))
    module = "model.decoder.layers.self_attention.query.adapter.lora_"
    a, b = arrays[f"{module}a"][0], arrays[f"{module}b"][0].reshape(RANK, -1)
    name = "decoder.layers_0.self_attention.query.kernel"
    expected = before[name] + ALPHA / RANK * (a @ b)
    np.testing.assert_allclose(after[name], expected, rtol=1e-6, atol=1e-6)
    assert np.abs(after[name] - before[name]).max() > 1e-2


def test_scores_of_a_run_equal_those_of_its_exports(toy_records, run, tmp_path):
    folders = {"run": run}
    for kind in ("native", "hf", "t5x", "adapter"):
        folders[kind] = tmp_path / kind
        convert(source_path=str(run), output_dir=str(folders[kind]), to=kind)
    merged = all_arrays(run)
    for kind, folder in folders.items():
        source = open_source(folder)
        assert source.step == store.checkpoint_step(store.resolve_checkpoint(run))
        assert source.kind == ("lora" if kind in ("run", "adapter") else kind)
        for name, array in merged.items():
            np.testing.assert_array_equal(source.read(name), array, err_msg=f"{kind} {name}")
    found = {}
    for kind in ("run", "native"):
        score_toy(toy_records, folders[kind], tmp_path / f"{kind}_scores", **SCORED)
        found[kind] = parts.read_scores(tmp_path / f"{kind}_scores").log_likelihood
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_adapters_alone_are_written_as_peft_keeps_them(run, base, tmp_path):
    convert(source_path=str(run), output_dir=str(tmp_path / "peft"), to="adapter")
    config = json.loads((tmp_path / "peft" / PEFT_CONFIG).read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
    assert config["base_model_name_or_path"] == str(base)
    assert "decoder.block.0.layer.1.EncDecAttention.q" in config["target_modules"]
    entries, _ = safetensors.read_header(tmp_path / "peft" / PEFT_WEIGHTS)
    module = "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo"
    assert entries[f"{module}.lora_A.weight"].shape == (RANK, MODEL.mlp_dim)
    assert entries[f"{module}.lora_B.weight"].shape == (MODEL.emb_dim, RANK)
    assert len(entries) == 2 * 8
    with pytest.raises(UserError, match=r"holds whole parameters and no adapters"):
        convert(source_path=str(base), output_dir=str(tmp_path / "none"), to="adapter")
    assert not (tmp_path / "none").exists()


def test_another_run_may_begin_with_adapters_merged(toy_records, run, tmp_path):
    lora_run(toy_records, tmp_path / "next", run, 1, learning_rate=0.0)
    expected, found = all_arrays(run), all_arrays(tmp_path / "next")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def copy_of(run: Path, base: Path, folder: Path) -> tuple[Path, Path]:
    """A run and a base of its own, which may be damaged."""
    shutil.copytree(base, folder / "base")
    shutil.copytree(run, folder / "run")
    note = json.loads((run / NOTE_FILE).read_text()) | {"base": str(folder / "base")}
    (folder / "run" / NOTE_FILE).write_text(json.dumps(note))
    return folder / "run", folder / "base"


def lose_the_note(run, base):
    (run / NOTE_FILE).unlink()


def damage_the_note(run, base):
    (run / NOTE_FILE).write_text('{"base": ')


def lose_the_base(run, base):
    shutil.rmtree(base)


def change_the_base(run, base):
    path = base / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)


def change_the_rank(run, base):
    note = json.loads((run / NOTE_FILE).read_text()) | {"rank": 3}
    (run / NOTE_FILE).write_text(json.dumps(note))


MISTAKES = {
    lose_the_note: rf"holds adapters alone, and there is no {NOTE_FILE} in",
    damage_the_note: rf"{NOTE_FILE} is damaged",
    lose_the_base: r"names the base .*base, which is no local folder; put the checkpoint",
    change_the_base: r"were trained on .*base with sha256 \w+, which now is \w+; put",
    change_the_rank: r"lora_a is \(1, 16, 2\) there, expected \(1, 16, 3\)",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_adapters_without_what_they_belong_to_are_refused(run, base, tmp_path, mistake):
    folders = copy_of(run, base, tmp_path)
    assert all_arrays(folders[0])
    mistake(*folders)
    with pytest.raises(UserError, match=MISTAKES[mistake]):
        all_arrays(folders[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = true; expected plain LoRA"),
        ({"bias": "all"}, 'bias = "all"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": None}, 'peft_type = null; expected plain LoRA, peft_type = "LORA"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"; .* = true or false or null'),
        ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights = "pissa_niter_4"'),
        ({"init_lora_weights": "olora"}, 'init_lora_weights = "olora"'),
        ({"init_lora_weights": "of next year"}, 'init_lora_weights = "of next year"'),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config = .* expected plain LoRA"),
        ({"lora_bias": True}, "lora_bias = true; .* lora_bias = nothing or false"),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices = \[3\]"),
        ({"of_next_year": "twice"}, 'of_next_year = "twice"; expected plain LoRA'),
        ({"r": "two"}, "says r = 'two'; expected a whole number"),
        ({"base_model_name_or_path": "google/flan-t5-base"}, "google/flan-t5-base, which is no lo"),
    ],
)
def test_adapters_of_peft_that_are_not_plain_are_refused(run, tmp_path, change, message):
    convert(source_path=str(run), output_dir=str(tmp_path / "peft"), to="adapter")
    path = tmp_path / "peft" / PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "peft")


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": True, "use_dora": False, "loftq_config": {}, "of_next_year": None},
        {"init_lora_weights": "gaussian", "megatron_core": "megatron.core", "lora_dropout": 0.1},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "qalora_group_size": 16},
        {"init_lora_weights": "orthogonal", "layers_to_transform": [0], "revision": "main"},
        {"init_lora_weights": "mica", "exclude_modules": ["wo"], "peft_version": "0.99.0"},
    ],
)
def test_fields_that_change_nothing_of_trained_adapters_are_taken(run, tmp_path, fields):
    convert(source_path=str(run), output_dir=str(tmp_path / "peft"), to="adapter")
    path = tmp_path / "peft" / PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert_bit_equal(all_arrays(tmp_path / "peft"), all_arrays(run))


def test_adapters_in_16_bit_floats_of_small_range_are_taken_without_change(run, tmp_path):
    convert(source_path=str(run), output_dir=str(tmp_path / "peft"), to="adapter")
    path = tmp_path / "peft" / PEFT_WEIGHTS
    entries, _ = safetensors.read_header(path)
    arrays = {n: safetensors.read_array(e).astype(np.float16) for n, e in entries.items()}
    package = pytest.importorskip("safetensors.numpy")
    package.save_file(arrays, path)
    short = open_source(tmp_path / "peft").adapters
    name = short.names[0]
    key = f"base_model.model.{stored_name(name).removesuffix('.weight')}.lora_A.weight"
    np.testing.assert_array_equal(short.read(name)[0], arrays[key].T.astype(np.float32))


def test_a_run_goes_on_with_its_own_base_and_settings_only(toy_records, run, base, tmp_path):
    own, own_base = copy_of(run, base, tmp_path)
    with pytest.raises(UserError, match=r"settings\['fine_tuning'\] was .*'rank': 2.* now"):
        lora_run(toy_records, run, base, 5, fine_tuning=FineTuning(lora=Lora(rank=4)))
    shutil.rmtree(own)
    lora_run(toy_records, own, own_base, 1)
    change_the_base(own, own_base)
    with pytest.raises(UserError, match=r"holds adapters of .*INITIAL_CHECKPOINT_PATH is now"):
        lora_run(toy_records, own, own_base, 2)


def test_lora_needs_a_model_to_adapt(toy_records, tmp_path):
    with pytest.raises(UserError, match="LoRA without INITIAL_CHECKPOINT_PATH"):
        lora_run(toy_records, tmp_path / "run", None, 1)
    with pytest.raises(
        UserError, match=r"'atention' is found in no name; the nearest: \w+\.layers"
    ):
        tuning = FineTuning(lora=Lora(targets=["atention"]))
        lora_run(toy_records, tmp_path / "run", None, 1, fine_tuning=tuning)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_much_learns(toy_records, base, tmp_path, caplog):
    with caplog.at_level("INFO"):
        lora_run("nowhere", tmp_path / "run", base, 3, dry_run=True)
    assert "; adamw, 576 learn, 3 steps" in caplog.text


def test_frozen_parts_stay_as_they_were_through_a_run(toy_records, base, tmp_path):
    tuning = FineTuning(frozen=["token_embedder", "^encoder"])
    lora_run(toy_records, tmp_path / "run", base, 1, fine_tuning=tuning)
    before, after = all_arrays(base), all_arrays(tmp_path / "run" / store.LATEST)
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("token_embedder", "encoder."))}
