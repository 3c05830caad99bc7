"""Adafactor's state between T5X's checkpoints and ours: bit for bit, or refused."""

import dataclasses

import jax
import numpy as np
import pytest
import t5x_golden
from checkpoint_toys import CONFIG, assert_bit_equal, everything, random_arrays, write

from instructrec_jax.checkpoints import parameters, store, t5x_arrays
from instructrec_jax.checkpoints.source import load_model, open_source
from instructrec_jax.checkpoints.t5x_layout import (
    SLOTS,
    SavedSlots,
    assemble_slots,
    factored_axes,
)
from instructrec_jax.cli import main
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.stages.convert import convert
from instructrec_jax.training import optimizers
from instructrec_jax.training.adafactor import AdafactorState, find_state, replace_state
from instructrec_jax.training.state import TrainState, abstract_state

ORBAX = t5x_golden.FOLDER / "t5x_orbax" / "checkpoint_20"
SCANNED = t5x_golden.FOLDER / "t5x_scanned" / "checkpoint_3"


def abstract_of(config, **settings):
    """Shapes of a run with Adafactor on eight devices."""
    schedule = optimizers.constant(learning_rate=1e-3)
    optimizer = optimizers.adafactor(learning_rate=schedule, **settings)
    return abstract_state(config.init, optimizer, make_mesh(MeshSettings(data=2, fsdp=2, tensor=2)))


def taken_over(abstract, saved):
    places = parameters.parameters(abstract.model)
    wanted = find_state(abstract.optimizer_state)._asdict()
    state = AdafactorState(**assemble_slots(places, wanted, saved))
    return replace_state(abstract.optimizer_state, state)


def stored(folder):
    """Every array as it is stored, by its stored name."""
    arrays = t5x_arrays.ArrayFolder(folder)
    return {name: array.read() for name, array in arrays.open(arrays.names).items()}


def random_slots(config=CONFIG):
    """Slots as plain T5 would have them if kernels were large, and by neutral name the shapes."""
    rng = np.random.default_rng(1)
    result = {}
    for name, shape in parameters.neutral_shapes(config).items():
        result[name] = dict.fromkeys(SLOTS, np.zeros(1, np.float32))
        kinds = {"v": shape}
        if name.endswith(".kernel") and ".layers_" in name:
            row, col = factored_axes(shape)
            kinds = {"v_row": (shape[row],), "v_col": (shape[col],)}
        result[name] |= {k: rng.random(s).astype(np.float32) for k, s in kinds.items()}
    return result


@pytest.fixture(params=["orbax", "legacy"])
def golden(request):
    """The folder of the golden checkpoint in one of its two containers."""
    return {"orbax": ORBAX, "legacy": t5x_golden.LEGACY}[request.param]


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_t5x_to_a_run_of_ours_to_t5x_is_bit_exact(golden, tmp_path, clip_norm):
    """On eight devices, saved by Orbax itself; a clip of gradients nests the optimizer's state."""
    source = open_source(golden)
    abstract = abstract_of(source.config, clip_norm=clip_norm)
    state = TrainState(
        jax.numpy.asarray(20),
        load_model(source, abstract.model),
        taken_over(abstract, source.slots),
    )
    saved = store.CheckpointStore(tmp_path / "run" / store.LATEST, keep=1)
    saved.save(20, state)
    saved.close()
    convert(source_path=str(tmp_path / "run"), output_dir=str(tmp_path / "t5x"), to="t5x")
    assert_bit_equal(everything(open_source(tmp_path / "t5x")), everything(source))
    assert_bit_equal(stored(tmp_path / "t5x" / "checkpoint_20"), stored(ORBAX))


@pytest.mark.parametrize(("original", "is_scanned"), [(ORBAX, False), (SCANNED, True)])
def test_t5x_to_native_to_t5x_gives_the_arrays_that_t5x_wrote(tmp_path, original, is_scanned):
    convert(source_path=str(original), output_dir=str(tmp_path / "native"), to="native")
    native, source = open_source(tmp_path / "native"), open_source(original)
    assert native.step == native.slots.step == source.slots.step
    assert_bit_equal(everything(native), everything(source))
    command = ["convert", str(tmp_path / "native"), str(tmp_path / "t5x"), "--to=t5x"]
    assert main.main(command + ["--scan_layers"] * is_scanned) == 0
    assert_bit_equal(stored(tmp_path / "t5x" / original.name), stored(original))


def test_factors_come_back_from_plain_and_from_scanned_layers(tmp_path):
    slots = random_slots()
    plain = write(tmp_path / "plain", "t5x", random_arrays(), slots=slots.items())
    wanted = everything(open_source(plain))
    write(tmp_path / "scanned", "t5x", random_arrays(), slots=slots.items(), scanned=True)
    for kind in ("plain", "scanned"):
        folder = tmp_path / f"{kind} native"
        convert(source_path=str(tmp_path / kind), output_dir=str(folder), to="native")
        assert_bit_equal(everything(open_source(folder)), wanted)
    shape = stored(tmp_path / "scanned" / "checkpoint_7")
    emb, heads, head_dim = CONFIG.emb_dim, CONFIG.num_heads, CONFIG.head_dim
    kernel = "state.param_states.encoder.encoder.attention.{}.kernel.{}"
    assert shape[kernel.format("query", "v_row")].shape == (emb, 3)
    assert shape[kernel.format("query", "v_col")].shape == (3, heads, head_dim)
    assert shape[kernel.format("out", "v_row")].shape == (3, emb)
    assert shape[kernel.format("out", "v_col")].shape == (heads, 3, head_dim)


def test_what_is_converted_to_native_restores_like_a_state_of_a_run(tmp_path):
    convert(source_path=str(ORBAX), output_dir=str(tmp_path), to="native")
    abstract = abstract_of(t5x_golden.CONFIG)
    found = store.restore(store.resolve_checkpoint(tmp_path), abstract)
    wanted = taken_over(abstract, open_source(ORBAX).slots)
    for one, other in zip(*map(jax.tree.leaves, (found.optimizer_state, wanted)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(found.step) == int(find_state(wanted).step) == 20


def test_moments_of_a_scanned_checkpoint_are_those_of_its_layers():
    """Its gradients were the parameters themselves, so the moments are means of their squares."""
    source = open_source(SCANNED)
    num_factored = 0
    for name in parameters.neutral_shapes(source.config):
        square, slots = source.read(name) ** 2, source.slots.read(name)
        assert slots.keys() == set(SLOTS)
        if slots["v"].shape == square.shape:
            np.testing.assert_allclose(slots["v"], square, rtol=1e-5, atol=1e-12)
            continue
        num_factored += 1
        shorter, longer = np.argsort(square.shape, kind="stable")
        np.testing.assert_allclose(slots["v_row"], square.mean(axis=longer), rtol=1e-5)
        np.testing.assert_allclose(slots["v_col"], square.mean(axis=shorter), rtol=1e-5)
    assert num_factored == 3 * 7 + 2 * 11


def test_only_parameters_that_learn_take_their_state_over():
    saved, abstract = open_source(ORBAX).slots, abstract_of(t5x_golden.CONFIG)
    fields = find_state(abstract.optimizer_state)._asdict()
    scale = "encoder.encoder_norm.scale"
    fields["v"] = {scale: fields["v"][scale]}
    found = assemble_slots(parameters.parameters(abstract.model), fields, saved)
    assert list(found["v"]) == [scale] and found["v_row"] == {}
    raw = t5x_golden.read_legacy(f"state.param_states.{scale}.v")
    np.testing.assert_array_equal(found["v"][scale][...], raw)


def test_state_of_another_factoring_or_of_no_numbers_is_refused():
    saved = open_source(ORBAX).slots
    with pytest.raises(UserError, match=r"keeps v for .* but v_row and v_col here; .*--to=hf"):
        taken_over(abstract_of(t5x_golden.CONFIG, min_dim_size_to_factor=16), saved)

    def broken(name):
        return {**saved.read(name), "v": saved.read(name)["v"] * np.float32(np.nan)}

    with pytest.raises(UserError, match=r"\.v holds \d+ non-finite values"):
        taken_over(abstract_of(t5x_golden.CONFIG), SavedSlots(step=20, read=broken))


def test_a_scanned_checkpoint_cannot_hold_all_second_moments_of_a_kernel(tmp_path):
    with pytest.raises(UserError, match="scalable T5 would keep factors alone"):
        convert(
            source_path=str(ORBAX), output_dir=str(tmp_path / "t5x"), to="t5x", scan_layers=True
        )
    assert list(tmp_path.iterdir()) == []


def test_momentum_is_left_behind_with_the_state_it_belongs_to(tmp_path):
    slots = {name: {**kept, "m": np.zeros(9, np.float32)} for name, kept in random_slots().items()}
    write(tmp_path, "t5x", random_arrays(), slots=slots.items())
    assert open_source(tmp_path).slots is None


def test_without_state_none_is_written_and_the_command_says_so(tmp_path, caplog):
    write(tmp_path / "hf", "hf", random_arrays())
    assert open_source(tmp_path / "hf").slots is None
    with caplog.at_level("INFO"):
        for kind, scan_layers in (("native", False), ("t5x", True)):
            folder = str(tmp_path / kind)
            source = str(tmp_path / "hf")
            convert(source_path=source, output_dir=folder, to=kind, scan_layers=scan_layers)
            assert open_source(folder).slots is None
    assert caplog.text.count("holds no state of Adafactor, and neither will the copy") == 1
    found = dataclasses.replace(open_source(tmp_path / "t5x"), slots=None)
    assert_bit_equal(everything(found), random_arrays())
