"""config.json of a T5 1.1, as transformers reads and writes it; other architectures are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import NORM_EPSILON, T5Config

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


def read_config(path: Path) -> T5Config:
    """Returns the sizes that a config.json states.

    Raises:
      UserError: if the file is missing or damaged, or of a model that is no T5 1.1.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: the weights beside it do not say what model they are of; "
            "download the model's config.json too"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); download it again") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    _check_architecture(path, fields)
    sizes: dict[str, Any] = {
        name: fields.get(theirs, default) for name, (theirs, default) in _SIZES.items()
    }
    sizes["num_decoder_layers"] = fields.get("num_decoder_layers") or sizes["num_encoder_layers"]
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            theirs = _SIZES.get(name, (name,))[0]
            raise UserError(f"{path}: {theirs} is {value!r}; expected a whole number above 0")
    return T5Config(**sizes)


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
            "T5ForConditionalGeneration" not in architectures,
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
