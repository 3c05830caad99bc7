"""Hugging Face's own T5, with the output of every layer; needs the extra `parity`."""

from pathlib import Path

import jax
import numpy as np

from instructrec_jax.models.attention import MASKED, add_position_bias
from instructrec_jax.models.t5 import T5, example_segments, same_segment


def jit_fused(function, *, level=3):
    """Returns the function compiled as users have it, where other tests do so in haste.

    Args:
      function: of arrays.
      level: of optimisation; 3 is that of users, 0 that of tests (see conftest.py).
    """
    options = {
        "xla_backend_optimization_level": level,
        "xla_cpu_use_fusion_emitters": True,
        "xla_cpu_parallel_codegen_split_count": 32,
    }
    return jax.jit(function, compiler_options=options)


def load_torch(folder: Path):
    """Returns transformers' model of a folder, float32, ready to predict."""
    import torch
    from transformers import T5ForConditionalGeneration

    torch.set_num_threads(1)
    model, report = T5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
    return model.eval()


def random_torch(**sizes):
    """Returns transformers' model, its norms and positions random too, to tell mistakes.

    The kernels keep their own start: sharper attention magnifies the rounding of both sides.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(7)
    fields = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "dropout_rate": 0.0}
    model = T5ForConditionalGeneration(T5Config(**fields, **sizes)).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.6, 1.4)
            elif "relative_attention_bias" in name:
                weight.normal_(0, 0.8)
    return model


def torch_layers(model, tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what every layer gives on the real positions, in the order of computation.

    Args:
      model: as `load_torch` returns it.
      tokens: int32 [rows, inputs], 0 = padding.
      targets: int32 [rows, targets], 0 = padding.
    """
    import torch

    found: dict[str, np.ndarray] = {}

    def noting(name, is_real):
        def hook(_module, _inputs, output):
            first = output[0] if isinstance(output, tuple) else output
            found[name] = first.detach().numpy()[is_real]

        return hook

    handles = []
    for stack, is_real in (("encoder", tokens > 0), ("decoder", targets > 0)):
        module = getattr(model, stack)
        named = [(f"{stack} embedding", module.embed_tokens)]
        named += [(f"{stack} layer {i}", block) for i, block in enumerate(module.block)]
        named += [(f"{stack} norm", module.final_layer_norm)]
        handles += [part.register_forward_hook(noting(name, is_real)) for name, part in named]
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(tokens > 0),
            decoder_input_ids=torch.tensor(shifted, dtype=torch.long),
        )
    for handle in handles:
        handle.remove()
    found["logits"] = result.logits.numpy()[targets > 0]
    return found


def our_layers(model: T5, tokens: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the same of ours, each layer called by itself instead of in a scan."""
    names: list[str] = []

    def run(model):
        found = _layers(model, tokens, targets)
        names.extend(found)  # jit would sort a dict
        return list(found.values())

    arrays = jit_fused(run)(model)
    return {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}


def _layers(model: T5, tokens: np.ndarray, targets: np.ndarray) -> dict[str, jax.Array]:
    segments, target_segments = example_segments(tokens), example_segments(targets)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    found = {}

    encoder, x = model.encoder, model.token_embedder(tokens)
    found["encoder embedding"] = x[tokens > 0]
    mask = same_segment(segments, segments)[:, None]
    bias = add_position_bias(mask, encoder.relpos_bias(tokens.shape[1]))
    for i in range(model.config.num_encoder_layers):
        x = _layer(encoder.layers, i)(x, bias, None)
        found[f"encoder layer {i}"] = x[tokens > 0]
    encoded = encoder.encoder_norm(x)
    found["encoder norm"] = encoded[tokens > 0]

    decoder, x = model.decoder, model.token_embedder(shifted)
    found["decoder embedding"] = x[targets > 0]
    causal = np.tril(np.ones((targets.shape[1],) * 2, bool))
    mask = (same_segment(target_segments, target_segments) & causal)[:, None]
    biases = {
        "self_bias": add_position_bias(mask, decoder.relpos_bias(targets.shape[1])),
        "cross_bias": jax.numpy.where(
            same_segment(target_segments, segments)[:, None], 0.0, MASKED
        ),
    }
    for i in range(model.config.num_decoder_layers):
        x = _layer(decoder.layers, i)(x, encoded, **biases, dropout_key=None)
        found[f"decoder layer {i}"] = x[targets > 0]
    x = decoder.decoder_norm(x)
    found["decoder norm"] = x[targets > 0]
    found["logits"] = model.logits(x)[targets > 0]
    return found


def error_of(found, golden) -> float:
    """The greatest error, relative to values above 1 and absolute below."""
    found, golden = np.asarray(found, np.float64), np.asarray(golden, np.float64)
    assert found.shape == golden.shape
    return float((np.abs(found - golden) / np.maximum(np.abs(golden), 1.0)).max())


def first_difference(found, golden, tolerance: float) -> str | None:
    """Names the first layer that differs, and by how much; None if none does."""
    assert list(found) == list(golden)
    for name in golden:
        if not (error := error_of(found[name], golden[name])) <= tolerance:
            return f"{name} differs first, by {error:.3g}"
    return None


def _layer(layers, index: int):
    return jax.tree.map(lambda stacked: stacked[index], layers)
