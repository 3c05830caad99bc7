"""Hugging Face's form: the golden file comes out as it came in; damage is refused by name."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import t5x_golden
from checkpoint_toys import (
    CONFIG,
    GOLDEN,
    change_config,
    change_header,
    change_weights,
    golden_copy,
    neutral_arrays,
    random_arrays,
    write,
)

from instructrec_jax.checkpoints import huggingface, safetensors
from instructrec_jax.checkpoints.huggingface import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    config_fields,
    open_huggingface,
    read_config,
)
from instructrec_jax.errors import UserError


@pytest.fixture
def golden(tmp_path):
    return golden_copy(tmp_path / "golden")


def test_the_golden_config_tells_the_sizes_and_is_written_alike():
    config = read_config(GOLDEN / CONFIG_FILE)
    assert config == t5x_golden.CONFIG, "both golden models have the same sizes"
    theirs = json.loads((GOLDEN / CONFIG_FILE).read_text())
    ours = config_fields(config)
    assert {n: v for n, v in ours.items() if theirs.get(n, v) != v} == {}
    assert ours.keys() - theirs.keys() <= {"torch_dtype"}  # now named "dtype"


def test_decoder_layers_are_as_many_as_the_encoders_where_nothing_is_said(golden):
    change_config(golden, num_decoder_layers=None)
    assert read_config(golden / CONFIG_FILE).num_decoder_layers == 2


@pytest.mark.parametrize("max_shard_bytes", [10**9, 200_000])
def test_the_golden_weights_come_out_as_they_came_in(tmp_path, max_shard_bytes):
    source = open_huggingface(GOLDEN)
    huggingface.write_huggingface(
        tmp_path, config=source.config, step=3, read=source.read, max_shard_bytes=max_shard_bytes
    )
    again = open_huggingface(tmp_path)
    assert (again.config, again.step, source.step) == (source.config, 3, 0)
    assert len(list(tmp_path.glob("*.safetensors"))) == (3 if max_shard_bytes < 10**9 else 1)
    wanted, _ = safetensors.read_header(GOLDEN / WEIGHTS_FILE)
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found |= safetensors.read_header(path)[0]
    assert found.keys() == wanted.keys()
    for name, entry in wanted.items():
        array = safetensors.read_array(found[name])
        assert array.tobytes() == safetensors.read_array(entry).tobytes(), name


@pytest.mark.parity
def test_the_reader_and_the_writer_agree_with_the_package_safetensors(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float32)}
    arrays["c"] = np.linspace(0, 1, 7).astype(jnp.bfloat16)
    package.save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    entries, metadata = safetensors.read_header(tmp_path / "theirs")
    assert metadata == {"format": "pt"} and entries.keys() == arrays.keys()
    for name, entry in entries.items():
        found = safetensors.read_array(entry)
        assert (found.dtype, found.tobytes()) == (arrays[name].dtype, arrays[name].tobytes())
    shapes = {"b": (5,), "a": (3, 2)}
    turned = {"b": arrays["b"], "a": arrays["a"].T}
    safetensors.write(tmp_path / "ours", shapes, turned.__getitem__, {"format": "pt"})
    found = package.load_file(tmp_path / "ours")
    assert found.keys() == shapes.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, turned[name])


def write_as(folder, code, dtype):
    """Writes the weights anew in another type."""
    entries, _ = safetensors.read_header(folder / WEIGHTS_FILE)
    arrays = {n: safetensors.read_array(entry).astype(dtype) for n, entry in entries.items()}
    header, data = {}, b""
    for name, array in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": code, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return arrays


@pytest.mark.parametrize(
    ("code", "dtype", "given"),
    [("BF16", jnp.bfloat16, jnp.bfloat16), ("F16", np.float16, np.float32)],
)
def test_16_bit_weights_are_taken_without_change(golden, code, dtype, given):
    short = write_as(golden, code, dtype)
    for name, array in neutral_arrays(golden).items():
        stored = short[huggingface.stored_name(name)].astype(given)
        assert array.dtype == given
        assert huggingface.to_stored(name, array).tobytes() == stored.tobytes()


@pytest.mark.parametrize(("code", "dtype"), [("F64", np.float64), ("I8", np.int8)])
def test_weights_of_other_types_are_refused_with_what_to_save(golden, code, dtype):
    write_as(golden, code, dtype)
    message = rf"\.weight is {code} there, expected float32 or bfloat16; .* save it as float32"
    with pytest.raises(UserError, match=message):
        open_huggingface(golden)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"feed_forward_proj": "relu"}, r"feed_forward_proj is 'relu', expected 'gated-gelu'"),
        ({"feed_forward_proj": None}, r"feed_forward_proj is 'not set', expected 'gated-gelu'"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True, expected False"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings is 'not set'"),
        ({"model_type": "mt5", "vocab_size": 250112}, "'mt5', .*vocab_size is 250112"),
        ({"vocab_size": 250112}, "vocab_size is 250112, expected T5's 32128; mT5's"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "'bert', expected 't5'; .*Bert"),
        ({"architectures": ["T5EncoderModel"]}, "architectures is .*T5EncoderModel"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05, expected 1e-06"),
        ({"pad_token_id": 3, "eos_token_id": 2}, "pad_token_id is 3, expected 0; eos"),
    ],
)
def test_other_architectures_are_refused_with_what_differs(golden, fields, named):
    change_config(golden, **fields)
    with pytest.raises(UserError, match=f"describes a model that is no T5 1.1: .*{named}"):
        open_huggingface(golden)


def test_what_transformers_5_writes_of_a_flan_t5_is_taken(golden):
    """It calls every T5 tied, and says elsewhere that the logits are not scaled."""
    change_config(golden, tie_word_embeddings=True, scale_decoder_outputs=False)
    assert open_huggingface(golden).config == read_config(GOLDEN / CONFIG_FILE)


def test_weights_without_their_own_logits_are_tied_and_refused(golden):
    change_weights(golden, lm_head__weight=None)
    with pytest.raises(UserError, match=r"no lm_head.weight: its logits are tied"):
        open_huggingface(golden)


@pytest.mark.parametrize("value", ["many", 0, -3, None, 1.5])
def test_sizes_that_are_none_are_refused(golden, value):
    change_config(golden, d_model=value)
    with pytest.raises(UserError, match=r"d_model is .*; expected a whole number, 1 to"):
        open_huggingface(golden)


@pytest.mark.parametrize("text", ["", "{", "[]", '"t5"'])
def test_a_damaged_config_is_named(golden, text):
    (golden / CONFIG_FILE).write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        open_huggingface(golden)


def test_weights_without_config_are_refused(golden):
    (golden / CONFIG_FILE).unlink()
    assert huggingface.is_huggingface(golden)
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        open_huggingface(golden)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "flax_model.msgpack"])
def test_weights_in_other_formats_are_not_read(golden, other):
    (golden / WEIGHTS_FILE).rename(golden / other)
    with pytest.raises(UserError, match=f"holds neither .* but config.json, {other}"):
        open_huggingface(golden)


@pytest.mark.parametrize("change", [-1, 1, -400_000])
def test_a_file_of_another_length_is_refused(golden, change):
    path = golden / WEIGHTS_FILE
    raw = path.read_bytes()
    path.write_bytes(raw + b"\0" if change > 0 else raw[:change])
    message = rf"{WEIGHTS_FILE} is damaged .* {len(raw) + change} bytes where .* {len(raw)}"
    with pytest.raises(UserError, match=message):
        open_huggingface(golden)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "its 0 bytes begin with no header"),
        (b"\0" * 99, "begin with no header"),
        (b"<!DOCTYPE html><html>an error page</html>", "begin with no header"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "begin with no header"),
        ((60).to_bytes(8, "little") + b"{}", "its header takes 60 bytes and the file has 10"),
        ((4).to_bytes(8, "little") + b"nope", "its header is no JSON"),
        ((4).to_bytes(8, "little") + b"[[]]", "its header is of another form"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(golden, raw, named):
    (golden / WEIGHTS_FILE).write_bytes(raw)
    with pytest.raises(UserError, match=named):
        open_huggingface(golden)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"shape": [32, 33]}, r"k.weight is F32 \(32, 33\) in bytes 0 to 4096"),
        ({"shape": [-32, -32]}, r"k.weight is F32 \(-32, -32\)"),
        ({"data_offsets": [4096, 8192]}, "an array begins at byte 4096, expected 0"),
        ({"dtype": "F64"}, r"k.weight is F64 \(32, 32\)"),
        ({"dtype": None}, "k.weight is None"),
        ({"shape": "wide"}, "its header is of another form"),
    ],
)
def test_headers_that_contradict_themselves_are_refused(golden, fields, named):
    name = "decoder.block.0.layer.0.SelfAttention.k.weight"
    change_header(golden, lambda header: header[name].update(fields))
    with pytest.raises(UserError, match=named):
        open_huggingface(golden)


def test_missing_left_over_and_misshapen_arrays_are_named_together(golden):
    change_weights(
        golden,
        encoder__block__1__layer__0__SelfAttention__q__weight=None,
        encoder__final_layer_norm__weight=np.ones(31, np.float32),
        classification_head__weight=np.ones((2, 3), np.float32),
    )
    with pytest.raises(UserError) as caught:
        open_huggingface(golden)
    for text in (
        "3 differences",
        "missing: encoder.block.1.layer.0.SelfAttention.q.weight (32, 32)",
        "left over: classification_head.weight (2, 3)",
        "encoder.final_layer_norm.weight is (31,) there, expected (32,)",
    ):
        assert text in str(caught.value)


def test_a_config_of_another_size_is_refused_with_its_weights(golden):
    change_config(golden, d_ff=128)
    with pytest.raises(UserError, match=r"wi_0\.weight is \(64, 32\) there, expected \(128, 32\)"):
        open_huggingface(golden)


NAMES = ("shared", "encoder__embed_tokens", "decoder__embed_tokens")


@pytest.mark.parametrize("kept", [(0, 1, 2), (1, 2), (1,), (2,), (0, 2)])
def test_the_token_table_is_taken_under_any_of_its_names(golden, kept):
    before = neutral_arrays(golden)
    table = before["token_embedder.embedding"]
    copies = {f"{NAMES[k]}__weight": table if k in kept else None for k in range(3)}
    change_weights(golden, **copies)
    found = neutral_arrays(golden)
    assert all(np.array_equal(found[name], array) for name, array in before.items())


@pytest.mark.parametrize("kept", [(0, 1, 2), (1, 2)])
def test_token_tables_that_differ_are_refused(golden, kept):
    table = neutral_arrays(golden)["token_embedder.embedding"]
    copies = {f"{NAMES[k]}__weight": table + (k == 2) if k in kept else None for k in range(3)}
    change_weights(golden, **copies)
    first = NAMES[kept[0]].replace("__", r"\.")
    with pytest.raises(UserError, match=rf"decoder\.embed_tokens\.weight is not {first}\.weight"):
        open_huggingface(golden)


def test_weights_without_a_token_table_are_refused(golden):
    change_weights(golden, shared__weight=None)
    with pytest.raises(UserError, match=r"missing: shared\.weight"):
        open_huggingface(golden)


@pytest.fixture
def shards(tmp_path):
    return write(tmp_path / "shards", "hf", random_arrays(), max_shard_bytes=4000)


def test_shards_are_read_through_their_index(shards):
    arrays = random_arrays()
    assert len(list(shards.glob("model-*.safetensors"))) > 3
    assert not (shards / WEIGHTS_FILE).exists()
    source = open_huggingface(shards)
    assert source.config == CONFIG
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)
    index = json.loads((shards / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())


def test_a_missing_shard_is_named(shards):
    (name,) = shards.glob("model-00002-of-*")
    name.unlink()
    with pytest.raises(UserError, match=rf"{name.name} is missing: {INDEX_FILE} names it for"):
        open_huggingface(shards)


def test_shards_of_two_models_are_refused(shards):
    first, second, *_ = sorted(shards.glob("model-*"))
    shutil.copyfile(first, second)
    with pytest.raises(UserError, match=rf"{second.name} does not hold what {INDEX_FILE} says"):
        open_huggingface(shards)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ("{", "is damaged"),
        ("{}", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"shared.weight": "../../etc/passwd"}}', r"names '\.\./\.\./etc/passwd'"),
        ('{"weight_map": {"shared.weight": "pytorch_model.bin"}}', "names 'pytorch_model.bin'"),
    ],
)
def test_a_damaged_index_is_named(shards, index, named):
    (shards / INDEX_FILE).write_text(index)
    with pytest.raises(UserError, match=named):
        open_huggingface(shards)
