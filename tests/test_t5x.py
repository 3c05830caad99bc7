"""T5X checkpoints: what is read and written bit for bit, and what is refused."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_golden
from flax import serialization
from tiny_model import tiny_config

from instructrec_jax.checkpoints import parameters
from instructrec_jax.checkpoints.t5x_layout import SLOTS
from instructrec_jax.checkpoints.t5x_reader import T5xCheckpoint, resolve_t5x
from instructrec_jax.checkpoints.t5x_slots import assemble_slots, disassemble_slots
from instructrec_jax.checkpoints.t5x_writer import write_t5x
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.training import optimizers
from instructrec_jax.training.adafactor import find_state
from instructrec_jax.training.state import abstract_state

ORBAX = t5x_golden.FOLDER / "t5x_orbax" / "checkpoint_20"
SCANNED = t5x_golden.FOLDER / "t5x_scanned" / "checkpoint_3"
WO = "target.encoder.layers_1.mlp.wo.kernel"


@pytest.fixture(params=["orbax", "legacy"])
def golden(request):
    """The folder of the golden checkpoint in one of its two containers."""
    return {"orbax": ORBAX, "legacy": t5x_golden.LEGACY}[request.param]


@pytest.fixture
def copy_of(tmp_path):
    def copy(folder):
        return shutil.copytree(folder, tmp_path / "copy" / folder.name)

    return copy


def everything(checkpoint):
    """Every array of a checkpoint by name."""
    found = {name: checkpoint.read(name) for name in checkpoint.found}
    if checkpoint.has_optimizer_state:
        found |= {
            f"{name}.{slot}": array
            for name in checkpoint.found
            for slot, array in checkpoint.read_slots(name).items()
        }
    return found


def assert_bit_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


def export(checkpoint, folder, **kwargs):
    arrays = ((name, checkpoint.read(name)) for name in checkpoint.found)
    return write_t5x(folder, arrays, config=checkpoint.config, step=checkpoint.step, **kwargs)


def slots_of(checkpoint):
    return ((name, checkpoint.read_slots(name)) for name in checkpoint.found)


def changed(name, config, change):
    """The neutral arrays of a random model, one of them changed."""
    rng = np.random.default_rng(0)
    for key, shape in parameters.neutral_shapes(config).items():
        array = rng.normal(size=shape).astype(np.float32)
        if (new := change(array) if key == name else array) is not None:
            yield key, new


def test_both_containers_give_what_t5x_wrote(golden):
    found = T5xCheckpoint(golden)
    assert (found.step, found.config, found.is_scanned) == (20, t5x_golden.CONFIG, False)
    listed = json.loads((t5x_golden.FOLDER / "params.json").read_text())["params"]
    shapes = {name.replace("/", "."): (tuple(s), dtype) for name, (s, dtype) in listed.items()}
    assert found.found == shapes
    for name in found.found:
        raw = t5x_golden.read_legacy(f"target.{name}")
        assert found.read(name).tobytes() == raw.tobytes()
        raw = t5x_golden.read_legacy(f"state.param_states.{name}.v")
        slots = found.read_slots(name)
        assert slots["v"].tobytes() == raw.tobytes()
        assert [slots[slot].tolist() for slot in ("m", "v_row", "v_col")] == [[0.0]] * 3


def test_a_path_may_mean_a_step_the_latest_step_or_an_index(tmp_path, copy_of):
    copied = copy_of(t5x_golden.LEGACY)
    assert resolve_t5x(copied) == resolve_t5x(copied / "checkpoint") == copied
    (copied.parent / "checkpoint_9").mkdir()
    shutil.copy(copied / "checkpoint", copied.parent / "checkpoint_9")
    (copied.parent / "checkpoint_99").mkdir()  # empty: no checkpoint
    assert resolve_t5x(copied.parent) == copied
    assert resolve_t5x(tmp_path) is None and resolve_t5x(tmp_path / "absent") is None
    with pytest.raises(UserError, match=r"no T5X checkpoint in .*expected a folder checkpoint_"):
        T5xCheckpoint(tmp_path)


def test_an_interrupted_save_is_refused(copy_of):
    copied = copy_of(t5x_golden.LEGACY)
    name = copied.rename(copied.with_name("checkpoint_20.tmp-1700000000"))
    with pytest.raises(UserError, match="interrupted"):
        T5xCheckpoint(name)


@pytest.mark.parametrize("with_slots", [True, False])
def test_t5x_to_ours_to_t5x_is_bit_exact(golden, tmp_path, with_slots):
    """Through a model and an optimizer's state on eight devices."""
    checkpoint = T5xCheckpoint(golden)
    schedule = optimizers.constant(learning_rate=1e-3)
    abstract = abstract_state(
        checkpoint.config,
        optimizers.adafactor(learning_rate=schedule),
        make_mesh(MeshSettings(data=2, fsdp=2, tensor=2)),
    )
    places = parameters.parameters(abstract.model)
    moments = find_state(abstract.optimizer_state)._asdict()
    model = parameters.assemble(abstract.model, checkpoint.read)
    slots = None
    if with_slots:
        slots = disassemble_slots(places, assemble_slots(places, moments, checkpoint.read_slots))
    folder = write_t5x(
        tmp_path,
        parameters.disassemble(model),
        config=checkpoint.config,
        step=checkpoint.step,
        slots=slots,
    )
    again = T5xCheckpoint(tmp_path)
    assert (again.step, again.config, again.has_optimizer_state) == (
        20,
        checkpoint.config,
        with_slots,
    )
    wanted = everything(checkpoint)
    if not with_slots:
        wanted = {name: wanted[name] for name in checkpoint.found}
    assert_bit_equal(everything(again), wanted)
    assert folder == tmp_path / "checkpoint_20"


def test_orbax_itself_reads_an_export_as_it_reads_what_t5x_wrote(tmp_path):
    checkpoint = T5xCheckpoint(ORBAX)
    export(checkpoint, tmp_path, slots=slots_of(checkpoint))

    def restored(folder):
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        tree = reader.metadata(folder / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    ours, theirs = restored(tmp_path / "checkpoint_20"), restored(ORBAX)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


def test_a_scanned_export_is_read_back_bit_for_bit_as_its_layers(golden, tmp_path):
    checkpoint = T5xCheckpoint(golden)
    export(checkpoint, tmp_path, scanned=True)
    again = T5xCheckpoint(tmp_path)
    assert again.is_scanned and again.step == 20 and not again.has_optimizer_state
    wanted = {name: checkpoint.read(name) for name in checkpoint.found}
    assert_bit_equal(everything(again), wanted)
    with pytest.raises(UserError, match="written without optimizer state"):
        export(checkpoint, tmp_path / "other", scanned=True, slots=slots_of(checkpoint))


def test_moments_of_a_scanned_checkpoint_are_those_of_its_layers():
    """Its gradients were the parameters themselves, so the moments are means of their squares."""
    checkpoint = T5xCheckpoint(SCANNED)
    assert checkpoint.is_scanned and checkpoint.has_optimizer_state and checkpoint.step == 3
    num_factored = 0
    for name in checkpoint.found:
        square, slots = checkpoint.read(name) ** 2, checkpoint.read_slots(name)
        assert slots.keys() == set(SLOTS)
        if slots["v"].shape == square.shape:
            np.testing.assert_allclose(slots["v"], square, rtol=1e-5, atol=1e-12)
            continue
        num_factored += 1
        shorter, longer = np.argsort(square.shape, kind="stable")
        np.testing.assert_allclose(slots["v_row"], square.mean(axis=longer), rtol=1e-5)
        np.testing.assert_allclose(slots["v_col"], square.mean(axis=shorter), rtol=1e-5)
    assert num_factored == 3 * 7 + 2 * 11


def test_layers_with_tables_of_their_own_are_refused(tmp_path):
    config = tiny_config()
    arrays = changed("encoder.relpos_bias.rel_embedding", config, lambda array: None)
    own = [
        (f"encoder.layers_{i}.relpos_bias.rel_embedding", np.full((2, 32), i, np.float32))
        for i in range(2)
    ]
    write_t5x(tmp_path, [*arrays, *own], config=config, step=1)
    checkpoint = T5xCheckpoint(tmp_path)
    with pytest.raises(UserError, match="different relative-position tables"):
        checkpoint.read("encoder.relpos_bias.rel_embedding")


@pytest.mark.parametrize("cut", ["shortened", "deleted", "flipped"])
def test_no_damage_to_a_legacy_file_goes_unseen(copy_of, cut):
    copied = copy_of(t5x_golden.LEGACY)
    for file in (copied / "checkpoint", copied / WO / ".zarray", copied / WO / "0.0"):
        raw = file.read_bytes()
        if cut == "deleted":
            file.unlink()
        elif cut == "shortened":
            file.write_bytes(raw[:-1])
        elif file.name == "0.0":
            file.write_bytes(raw[:40] + bytes([raw[40] ^ 1]) + raw[41:])
        else:
            continue
        with pytest.raises(UserError) as refused:
            everything(T5xCheckpoint(copied))
        assert file.name == "checkpoint" or WO in str(refused.value)
        file.write_bytes(raw)
    assert_bit_equal(everything(T5xCheckpoint(copied)), everything(T5xCheckpoint(ORBAX)))


@pytest.mark.parametrize("cut", ["shortened", "halved", "deleted"])
def test_damage_to_an_orbax_file_is_refused_or_harmless(copy_of, cut):
    """Files of its store may end in what nothing points to any more."""
    copied, wanted = copy_of(ORBAX), everything(T5xCheckpoint(ORBAX))
    refused = set()
    for file in sorted(path for path in copied.rglob("*") if path.is_file()):
        raw = file.read_bytes()
        file.unlink()
        if cut != "deleted":
            file.write_bytes(raw[: -1 if cut == "shortened" else len(raw) // 2])
        try:
            assert_bit_equal(everything(T5xCheckpoint(copied)), wanted)
        except UserError:
            refused.add(file.relative_to(copied).as_posix())
        file.write_bytes(raw)
    largest = max(copied.rglob("*"), key=lambda path: path.stat().st_size)
    assert {"state/_METADATA", "state/manifest.ocdbt"} <= refused
    assert cut == "shortened" or largest.relative_to(copied).as_posix() in refused
    assert_bit_equal(everything(T5xCheckpoint(copied)), wanted)


def edit_index(folder, edit):
    """Changes the entry of WO in a legacy index."""
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    layer = index["optimizer"]["target"]["encoder"]["layers_1"]["mlp"]["wo"]
    layer["kernel"] = edit(layer["kernel"])
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))


def test_an_index_written_to_a_bucket_is_read_from_a_folder(copy_of):
    """As the public checkpoints state it: the path in the bucket, once outside "kvstore"."""
    copied = copy_of(t5x_golden.LEGACY)
    bucket = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
    edit_index(copied, lambda entry: {**entry, "kvstore": bucket, "path": WO})
    wanted = t5x_golden.read_legacy(WO)
    assert np.array_equal(T5xCheckpoint(copied).read(WO.removeprefix("target.")), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kvstore": {"driver": "file", "path": "../elsewhere"}}, "beside the index"),
        ({"kvstore": {"driver": "file", "path": "/etc"}}, "beside the index"),
        ({"metadata": {"shape": [64, 33]}}, r"where the index states float32 \(64, 33\)"),
        ({"dtype": "bfloat16"}, "where the index states bfloat16"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(copy_of, change, message):
    copied = copy_of(t5x_golden.LEGACY)
    edit_index(copied, lambda entry: {**entry, **change})
    with pytest.raises(UserError, match=message):
        T5xCheckpoint(copied)


def test_a_tensorflow_checkpoint_is_named_as_one(tmp_path):
    folder = tmp_path / "checkpoint_5"
    folder.mkdir()
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"\n')
    with pytest.raises(UserError, match="is a TensorFlow checkpoint"):
        T5xCheckpoint(folder)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize({"version": 3}))
    with pytest.raises(UserError, match="no 'optimizer'"):
        T5xCheckpoint(folder)


LOGITS, GATE = "decoder.logits_dense.kernel", "encoder.layers_0.mlp.wi_0.kernel"


@pytest.mark.parametrize(
    ("name", "change", "changes", "message"),
    [
        (LOGITS, lambda array: None, {}, "tied embeddings"),
        (GATE, lambda array: array.astype(np.float16), {}, f"{GATE} is float16 there"),
        (GATE, lambda array: array[:, 1:], {}, "differences"),
        ("", None, {"vocab_size": 250112, "emb_dim": 2}, "of mT5"),
    ],
)
def test_other_models_and_types_are_refused(tmp_path, name, change, changes, message):
    config = tiny_config(**changes)
    write_t5x(tmp_path, changed(name, config, change), config=config, step=1)
    with pytest.raises(UserError, match=message):
        T5xCheckpoint(tmp_path)


def test_plain_relu_and_half_models_are_refused(tmp_path):
    config = tiny_config()
    arrays = dict(changed("", config, None))
    relu = {name.replace("wi_0", "wi"): array for name, array in arrays.items()}
    decoder = {name: array for name, array in arrays.items() if not name.startswith("encoder")}
    for step, (found, message) in enumerate([(relu, "plain ReLU"), (decoder, "no encoder")]):
        folder = write_t5x(tmp_path, found.items(), config=config, step=step)
        with pytest.raises(UserError, match=message):
            T5xCheckpoint(folder)


def test_bfloat16_is_read_as_it_is_stored(tmp_path):
    import ml_dtypes

    config = tiny_config()
    narrow = dict(changed(GATE, config, lambda array: array.astype(ml_dtypes.bfloat16)))
    write_t5x(tmp_path, narrow.items(), config=config, step=1)
    found = T5xCheckpoint(tmp_path).read(GATE)
    assert found.dtype == ml_dtypes.bfloat16 and found.tobytes() == narrow[GATE].tobytes()


def test_an_interrupted_export_leaves_nothing(tmp_path):
    def broken():
        yield from list(changed("", tiny_config(), None))[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_t5x(tmp_path, broken(), config=tiny_config(), step=7)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_replaces_a_checkpoint(tmp_path):
    arrays = list(changed("", tiny_config(), None))
    write_t5x(tmp_path, arrays, config=tiny_config(), step=7)
    with pytest.raises(UserError, match="is there already"):
        write_t5x(tmp_path, arrays, config=tiny_config(), step=7)


def test_state_of_another_factoring_or_none_is_refused(tmp_path):
    checkpoint = T5xCheckpoint(ORBAX)
    schedule = optimizers.constant(learning_rate=1e-3)
    factored = optimizers.adafactor(learning_rate=schedule, min_dim_size_to_factor=16)
    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    abstract = abstract_state(checkpoint.config, factored, mesh)
    places = parameters.parameters(abstract.model)
    moments = find_state(abstract.optimizer_state)._asdict()
    with pytest.raises(UserError, match=r"keeps v for .* but v_row and v_col here"):
        assemble_slots(places, moments, checkpoint.read_slots)
    export(checkpoint, tmp_path)
    with pytest.raises(UserError, match="has no Adafactor state"):
        assemble_slots(places, moments, T5xCheckpoint(tmp_path).read_slots)
