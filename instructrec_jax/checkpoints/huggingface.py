"""Flan-T5 and T5 1.1 in Hugging Face's form: config.json, and safetensors in one file or several.

Source: the public google/flan-t5-* repositories and transformers' T5ForConditionalGeneration. Its
linear layers store [out, in], ours [in, out]; its relative positions [buckets, heads].
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from instructrec_jax import files
from instructrec_jax.checkpoints import safetensors
from instructrec_jax.checkpoints.parameters import (
    Read,
    Shape,
    check_found,
    checked_step,
    neutral_shapes,
)
from instructrec_jax.checkpoints.ranking_config import find_ranking_config
from instructrec_jax.checkpoints.source import Source, find_tokenizer
from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import NORM_EPSILON, T5Config
from instructrec_jax.settings import SettingError, misfit

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000
_STEP = "instructrec_step"  # in the metadata of a file of ours
_AGAIN = "download it again"
_HINT = "config.json and weights are not of one model; download both again"

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# The place of each part of a layer among its sublayers, and Hugging Face's name of the part.
_ENCODER_PARTS = {
    "pre_attention_layer_norm": (0, "layer_norm"),
    "attention": (0, "SelfAttention"),
    "pre_mlp_layer_norm": (1, "layer_norm"),
    "mlp": (1, "DenseReluDense"),
}
_DECODER_PARTS = {
    "pre_self_attention_layer_norm": (0, "layer_norm"),
    "self_attention": (0, "SelfAttention"),
    "pre_cross_attention_layer_norm": (1, "layer_norm"),
    "encoder_decoder_attention": (1, "EncDecAttention"),
    "pre_mlp_layer_norm": (2, "layer_norm"),
    "mlp": (2, "DenseReluDense"),
}
_PARTS = {"encoder": _ENCODER_PARTS, "decoder": _DECODER_PARTS}
_OUTSIDE_LAYERS = {
    "token_embedder.embedding": "shared.weight",
    "decoder.logits_dense.kernel": "lm_head.weight",
    "encoder.encoder_norm.scale": "encoder.final_layer_norm.weight",
    "decoder.decoder_norm.scale": "decoder.final_layer_norm.weight",
    "encoder.relpos_bias.rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
    "decoder.relpos_bias.rel_embedding": (
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    ),
}
_TABLE, *_COPIES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Files of earlier releases hold one array without use.
_WITHOUT_USE = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

# Hugging Face's name of each size, and what stands for it where config.json is silent.
_SIZES: Mapping[str, tuple[str, int | None]] = {
    "vocab_size": ("vocab_size", None),
    "emb_dim": ("d_model", None),
    "num_heads": ("num_heads", None),
    "head_dim": ("d_kv", None),
    "mlp_dim": ("d_ff", None),
    "num_encoder_layers": ("num_layers", None),
    "relative_buckets": ("relative_attention_num_buckets", 32),
    "relative_max_distance": ("relative_attention_max_distance", 128),
}
_MT5_VOCABULARY = 250_000  # mT5 and umT5 have 250,112 and 256,384 rows, every T5 about 32,128


def is_huggingface(path: Path) -> bool:
    """Returns whether a folder looks like a model of Hugging Face, whole or not."""
    names = (WEIGHTS_FILE, INDEX_FILE)
    return (path / CONFIG_FILE).is_file() or any((path / name).is_file() for name in names)


def open_huggingface(path: Path) -> Source:
    """Reads config and headers of a folder and checks that they make a T5 1.1.

    Args:
      path: a folder with config.json and model.safetensors, or shards with their index.

    Raises:
      UserError: naming the file, or the array, what was found and what was expected.
    """
    config = read_config(path / CONFIG_FILE)
    entries, metadata = _read_headers(path)
    _merge_copies(entries)
    if "lm_head.weight" not in entries and _TABLE in entries:
        raise UserError(
            f"{path} has no lm_head.weight: its logits are tied to the embedding, as in the first "
            "T5; expected T5 1.1 or Flan-T5, which hold both"
        )
    entries.pop(_WITHOUT_USE, None)
    found = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    check_found(path, _stored_shapes(config), found, hint=_HINT)
    weights = {entry.path for entry in entries.values()}
    return Source(
        path=path,
        kind="hf",
        step=_step(path, metadata),
        config=config,
        read=lambda name: to_stored(name, safetensors.read_array(entries[stored_name(name)])),
        members=(path / CONFIG_FILE, *sorted(weights)),
        tokenizer=find_tokenizer(path),
        ranking=find_ranking_config(path),
    )


def write_huggingface(
    folder: Path,
    *,
    config: T5Config,
    step: int,
    read: Read,
    dtype: str = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes config.json and weights that transformers loads.

    Args:
      folder: an empty folder; the caller makes sure that a half-filled one is never found.
      config: sizes of the model.
      step: training steps taken, kept in the weights' metadata.
      read: gives the neutral array of a name; asked for one after another.
      dtype: of the weights, "float32" or "bfloat16", to which they are rounded.
      max_shard_bytes: weights above it are split into shards with an index.
    """
    neutral = {stored_name(name): name for name in neutral_shapes(config)}
    shapes = _stored_shapes(config)
    sizes = {n: jnp.dtype(dtype).itemsize * math.prod(shape) for n, shape in shapes.items()}
    shards = _split(sizes, max_shard_bytes)
    metadata = {"format": "pt", _STEP: str(step)}
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else WEIGHTS_FILE
        weight_map |= dict.fromkeys(names, file)
        safetensors.write(
            folder / file,
            {name: shapes[name] for name in names},
            lambda name: to_stored(neutral[name], read(neutral[name])),
            metadata,
            dtype=dtype,
        )
    if len(shards) > 1:
        total = sum(sizes.values())
        index_text = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_text(folder / INDEX_FILE, json.dumps(index_text, indent=2) + "\n")
    fields = config_fields(config, dtype)
    files.write_text(folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")


def stored_name(name: str) -> str:
    """Returns Hugging Face's name of a neutral array.

    Example:
      "decoder.layers_3.mlp.wo.kernel" is "decoder.block.3.layer.2.DenseReluDense.wo.weight".
    """
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    stack, layer, part, *rest = name.split(".")
    place, theirs = _PARTS[stack][part]
    before = f"{stack}.block.{layer.removeprefix('layers_')}.layer.{place}.{theirs}"
    if theirs == "layer_norm":
        return f"{before}.weight"
    return f"{before}.{_ATTENTION.get(rest[0], rest[0])}.weight"


def to_stored(name: str, array: np.ndarray) -> np.ndarray:
    """Turns a neutral array into Hugging Face's form or back: both are the same turn."""
    return array.T if name.endswith((".kernel", ".rel_embedding")) else array


def _stored_shapes(config: T5Config) -> dict[str, Shape]:
    """Returns the shape of every array in the form of Hugging Face."""
    shapes = neutral_shapes(config)
    turned = (name.endswith((".kernel", ".rel_embedding")) for name in shapes)
    return {
        stored_name(name): shape[::-1] if is_turned else shape
        for (name, shape), is_turned in zip(shapes.items(), turned, strict=True)
    }


def _read_headers(path: Path) -> tuple[dict[str, safetensors.Entry], dict[str, str]]:
    """Returns all arrays of a folder by name, and the metadata of the first file."""
    if (path / WEIGHTS_FILE).is_file():
        return safetensors.read_header(path / WEIGHTS_FILE)
    if not (path / INDEX_FILE).is_file():
        there = sorted(file.name for file in path.iterdir() if file.is_file())
        raise UserError(
            f"{path} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}, but {', '.join(there)}; "
            "download the safetensors files: weights of other formats can run code when they are "
            "read, so they are not"
        )
    weight_map = _read_index(path / INDEX_FILE)
    entries: dict[str, safetensors.Entry] = {}
    metadata: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        if not (path / file).is_file():
            raise UserError(
                f"{path / file} is missing: {INDEX_FILE} names it for "
                f"{sum(value == file for value in weight_map.values())} arrays; download it too"
            )
        found, described = safetensors.read_header(path / file)
        promised = {name for name, value in weight_map.items() if value == file}
        if promised != set(found):
            names = ", ".join(sorted(promised ^ set(found))[:8])
            raise UserError(
                f"{path / file} does not hold what {INDEX_FILE} says; they differ in {names}; "
                "download all files of one release"
            )
        entries |= found
        metadata = metadata or described
    return entries, metadata


def _read_index(path: Path) -> dict[str, str]:
    """Returns the file of each array."""
    index = files.read_json(path, dict[str, Any], remedy=_AGAIN)
    weight_map: Any = index.get("weight_map")
    if expected := misfit(weight_map, dict[str, str]):
        raise UserError(f"{path} is damaged: expected weight_map to be {expected}; {_AGAIN}")
    for file in weight_map.values():
        if not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise UserError(f"{path} names {file!r}; expected a safetensors file in its folder")
    return weight_map


def _merge_copies(entries: dict[str, safetensors.Entry]) -> None:
    """Leaves one of the equal token tables, under the first of its names."""
    names = [name for name in (_TABLE, *_COPIES) if name in entries]
    for other in names[1:]:
        one, copy = (safetensors.read_array(entries[name]) for name in (names[0], other))
        if not np.array_equal(one, copy):
            raise UserError(
                f"{entries[other].path}: {other} is not {names[0]}; expected one table for both "
                "stacks as in T5"
            )
        del entries[other]
    if names:
        entries[_TABLE] = entries.pop(names[0])


def _step(path: Path, metadata: Mapping[str, str]) -> int:
    """Returns the training step that a file of ours keeps, 0 for anybody else's."""
    return checked_step(metadata.get(_STEP, "0"), path)


def _split(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Deals arrays of these bytes out to files of at most `max_bytes`, in their order."""
    shards: list[list[str]] = [[]]
    taken = 0
    for name, size in sizes.items():
        if shards[-1] and taken + size > max_bytes:
            shards.append([])
            taken = 0
        shards[-1].append(name)
        taken += size
    return shards


def read_config(path: Path) -> T5Config:
    """Returns the sizes that a config.json states.

    Raises:
      UserError: if the file is missing or damaged, or of a model that is no T5 1.1.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist: the weights beside it do not say what model they are of; "
            "download the model's config.json too"
        )
    fields = files.read_json(path, dict[str, Any], remedy=_AGAIN)
    _check_architecture(path, fields)
    sizes: dict[str, Any] = {
        name: fields.get(theirs, default) for name, (theirs, default) in _SIZES.items()
    }
    sizes["num_decoder_layers"] = fields.get("num_decoder_layers") or sizes["num_encoder_layers"]
    try:
        return T5Config(**sizes)
    except SettingError as error:
        theirs = _SIZES.get(error.name, (error.name,))[0]
        raise UserError(f"{path}: {theirs} {error.problem}") from None


def config_fields(config: T5Config, dtype: str = "float32") -> dict[str, Any]:
    """Returns what config.json says of a model, as the public Flan-T5 has it."""
    sizes = {theirs: getattr(config, name) for name, (theirs, _) in _SIZES.items()}
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **sizes,
        "num_decoder_layers": config.num_decoder_layers,
        "decoder_start_token_id": 0,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "is_gated_act": True,
        "layer_norm_epsilon": NORM_EPSILON,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _check_architecture(path: Path, fields: Mapping[str, Any]) -> None:
    """Raises where a config.json describes anything but a T5 1.1."""
    scaled = fields.get("scale_decoder_outputs", fields.get("tie_word_embeddings", True))
    vocab_size = fields.get("vocab_size")
    architectures = fields.get("architectures") or ["T5ForConditionalGeneration"]
    # What was found, whether it is refused, and what was expected.
    checks = [
        ("model_type", fields.get("model_type") != "t5", "'t5'"),
        (
            "vocab_size",
            isinstance(vocab_size, int) and vocab_size >= _MT5_VOCABULARY,
            "T5's 32128; mT5's vocabulary is not known here",
        ),
        (
            "feed_forward_proj",
            fields.get("feed_forward_proj", "relu") != "gated-gelu",
            "'gated-gelu'; the first T5 has plain relu",
        ),
        ("dense_act_fn", fields.get("dense_act_fn", "gelu_new") != "gelu_new", "'gelu_new'"),
        (
            "tie_word_embeddings",
            scaled is not False,
            "False; the first T5 ties its logits to the embedding and scales them",
        ),
        (
            "architectures",
            misfit(architectures, list[str]) or "T5ForConditionalGeneration" not in architectures,
            "T5ForConditionalGeneration, encoder and decoder with logits",
        ),
        (
            "layer_norm_epsilon",
            fields.get("layer_norm_epsilon", NORM_EPSILON) != NORM_EPSILON,
            str(NORM_EPSILON),
        ),
        ("pad_token_id", fields.get("pad_token_id", 0) != 0, "0"),
        ("decoder_start_token_id", fields.get("decoder_start_token_id", 0) != 0, "0"),
        ("eos_token_id", fields.get("eos_token_id", 1) != 1, "1"),
    ]
    problems = [
        f"{name} is {fields.get(name, 'not set')!r}, expected {expected}"
        for name, is_refused, expected in checks
        if is_refused
    ]
    if problems:
        raise UserError(
            f"{path} describes a model that is no T5 1.1: {'; '.join(problems)}. "
            "Only T5 1.1 and Flan-T5 are taken"
        )
