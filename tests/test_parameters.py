"""The neutral form: T5X's names and shapes, and the way into and out of sharded models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5x_golden
from checkpoint_toys import CONFIG, disassemble, random_arrays
from tiny_model import tiny_config

from instructrec_jax.checkpoints import parameters
from instructrec_jax.checkpoints.source import Source
from instructrec_jax.errors import UserError
from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh


def model_on(config=CONFIG, **axes):
    return abstract_model(config.init, make_mesh(MeshSettings(**axes)))


def test_names_and_shapes_are_those_of_t5x():
    golden = json.loads((t5x_golden.FOLDER / "params.json").read_text())["params"]
    wanted = {name.replace("/", "."): tuple(shape) for name, (shape, _) in golden.items()}
    assert parameters.neutral_shapes(t5x_golden.CONFIG) == wanted
    assert parameters.infer_config("there", wanted) == t5x_golden.CONFIG


def test_sizes_are_read_off_the_shapes():
    shapes = parameters.neutral_shapes(CONFIG)
    assert parameters.infer_config("there", shapes) == CONFIG
    del shapes["encoder.relpos_bias.rel_embedding"]
    with pytest.raises(UserError, match=r"there is no checkpoint of a T5 1\.1: .* is missing"):
        parameters.infer_config("there", shapes)


@pytest.mark.parametrize(
    "axes",
    [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 4, "tensor": 2}, {"tensor": 2}],
)
def test_arrays_come_back_bit_for_bit_from_every_mesh(axes):
    arrays = random_arrays()
    wanted = model_on(**axes)
    model = parameters.assemble(wanted, arrays.__getitem__)
    found = list(disassemble(model))
    assert [name for name, _ in found] == list(arrays)
    for name, array in found:
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    same = jax.tree.map(lambda leaf, want: leaf.sharding == want.sharding, model, wanted)
    assert all(jax.tree.leaves(same))


def test_heads_and_layers_lie_where_the_model_has_them():
    arrays = random_arrays()
    model = parameters.assemble(model_on(), arrays.__getitem__)
    query = arrays["encoder.layers_1.attention.query.kernel"].reshape(16, 2, 6)
    np.testing.assert_array_equal(model.encoder.layers.attention.query.kernel[1], query)
    out = arrays["decoder.layers_0.encoder_decoder_attention.out.kernel"].reshape(2, 6, 16)
    found = model.decoder.layers.encoder_decoder_attention.out.kernel[0]
    np.testing.assert_array_equal(found, out)
    logits = arrays["decoder.logits_dense.kernel"]
    np.testing.assert_array_equal(model.logits_dense.kernel[...], logits)


def test_each_array_is_asked_for_once_and_in_order():
    asked, arrays = [], random_arrays()

    def read(name):
        asked.append(name)
        return arrays[name]

    parameters.assemble(model_on(data=2, fsdp=2, tensor=2), read)
    assert asked == list(parameters.neutral_shapes(CONFIG))


def test_bfloat16_is_taken_and_widened_without_change():
    arrays = {name: a.astype(jnp.bfloat16) for name, a in random_arrays().items()}
    model = parameters.assemble(model_on(), arrays.__getitem__)
    for name, array in disassemble(model):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8"])
def test_other_dtypes_are_refused(dtype):
    arrays = {name: array.astype(dtype) for name, array in random_arrays().items()}
    with pytest.raises(UserError, match=f"is {dtype} .*; expected float32 or bfloat16"):
        parameters.assemble(model_on(), arrays.__getitem__)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_non_finite_values_are_refused_by_name_and_index(value, dtype):
    arrays = {name: array.astype(dtype) for name, array in random_arrays().items()}
    arrays["encoder.layers_2.mlp.wo.kernel"][3, 5] = value
    message = r"encoder\.layers_2\.mlp\.wo\.kernel holds 1 non-finite values, the first at \(3, 5\)"
    with pytest.raises(UserError, match=message):
        parameters.assemble(model_on(), arrays.__getitem__)


def test_great_numbers_are_numbers():
    parameters.check_finite("x", np.full(9, np.finfo(np.float32).max))


def test_another_shape_is_refused():
    arrays = random_arrays()
    arrays["decoder.decoder_norm.scale"] = np.ones(17, np.float32)
    with pytest.raises(UserError, match=r"decoder_norm\.scale is float32 \(17,\); .* \(16,\)"):
        parameters.assemble(model_on(), arrays.__getitem__)


def test_all_differences_stand_in_one_message():
    wanted = {"a": (2,), "b": (3,), "c": (4,)}
    found = {"b": ((5,), "float32"), "c": ((4,), "F16"), "d": ((1,), "float32")}
    with pytest.raises(UserError) as caught:
        parameters.check_found("there", wanted, found)
    for text in (
        "there does not fit the model: 4 differences",
        "missing: a (2,)",
        "left over: d (1,)",
        "b is (5,) there, expected (3,)",
        "c is F16 there, expected float32 or bfloat16",
    ):
        assert text in str(caught.value)


def test_compute_dtype_and_dropout_are_no_sizes():
    source = Source(
        path=Path("there"), kind="hf", step=0, config=tiny_config(), read=lambda _: None, members=()
    )
    source.check_fits(tiny_config(dropout_rate=0.1, dtype="bfloat16", remat_policy="full"))
    with pytest.raises(UserError, match="emb_dim is 16, not 32; vocab_size is 64, not 65"):
        source.check_fits(tiny_config(emb_dim=32, vocab_size=65))
