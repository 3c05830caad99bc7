"""T5X checkpoints: what is read and written bit for bit, and what is refused."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_golden
from checkpoint_toys import assert_bit_equal, everything
from flax import serialization
from tiny_model import tiny_config

from instructrec_jax.checkpoints import parameters
from instructrec_jax.checkpoints.t5x import T5xCheckpoint, resolve_t5x, write_t5x
from instructrec_jax.errors import UserError

ORBAX = t5x_golden.FOLDER / "t5x_orbax" / "checkpoint_20"
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
        slots = found.slots.read(name)
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


def test_orbax_itself_reads_an_export_as_it_reads_what_t5x_wrote(tmp_path):
    checkpoint = T5xCheckpoint(ORBAX)
    write_t5x(
        tmp_path,
        ((name, checkpoint.read(name)) for name in checkpoint.found),
        config=checkpoint.config,
        step=checkpoint.step,
        slots=((name, checkpoint.slots.read(name)) for name in checkpoint.found),
    )

    def restored(folder):
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        tree = reader.metadata(folder / "state").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(folder / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))

    ours, theirs = restored(tmp_path / "checkpoint_20"), restored(ORBAX)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


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
