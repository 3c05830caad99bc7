"""The measures of `gpu_check.py`, whose docstring gives the protocol."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import score_ways
from jax.sharding import Mesh

from instructrec_jax.checkpoints.huggingface import config_fields, stored_name, to_stored
from instructrec_jax.checkpoints.parameters import parameters, to_neutral
from instructrec_jax.models.int8 import int8_shapes
from instructrec_jax.models.objectives import NegativeLogLikelihood
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.parallel.mesh import MeshSettings, make_mesh
from instructrec_jax.parallel.placement import num_parameters, place_batch
from instructrec_jax.scoring.prefix_trees import TokenRequest
from instructrec_jax.scoring.scorer import Scorer
from instructrec_jax.scoring.shapes import fit_shapes
from instructrec_jax.training import optimizers
from instructrec_jax.training.state import abstract_state, initial_state, shardings_of
from instructrec_jax.training.step import SOFTWARE_RNG, make_train_step

SIZES = {
    "tiny": {"emb_dim": 64, "num_heads": 4, "mlp_dim": 128, "num_layers": 2},
    "small": {"emb_dim": 512, "num_heads": 6, "mlp_dim": 1024, "num_layers": 8},
    "base": {"emb_dim": 768, "num_heads": 12, "mlp_dim": 2048, "num_layers": 12},
    "xl": {"emb_dim": 2048, "num_heads": 32, "mlp_dim": 5120, "num_layers": 24},
}
INPUT_LENGTH, TARGET_LENGTH, VOCAB_SIZE = 512, 64, 32128
Figures = dict[str, float | str]


def config_of(size: str, **fields: Any) -> T5Config:
    """Returns the sizes of a model."""
    *_, layers = sizes = SIZES[size].values()
    names = ("emb_dim", "num_heads", "mlp_dim", "num_encoder_layers")
    return T5Config(**dict(zip(names, sizes, strict=True)), num_decoder_layers=layers, **fields)


def measure_training(
    size: str, *, num_rows: int, rng: str = SOFTWARE_RNG, num_steps: int = 10, **fields: Any
) -> Figures:
    """Measures the training step on packed rows; `fields` are those of the model's config."""
    config = config_of(size, dtype="bfloat16", dropout_rate=0.1, **fields)
    batch = packed_batch(num_rows)
    step, state, place = training(config, jax.devices()[0], rng)
    parameters = num_parameters(state.model)
    began = time.perf_counter()
    state, metrics = step(state, place(batch))
    first_loss = float(metrics["loss"])
    first = time.perf_counter() - began
    seconds = []
    for _ in range(num_steps + 1):
        began = time.perf_counter()
        state, metrics = step(state, place(batch))
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - began)
    tokens = int(sum((batch[name] > 0).sum() for name in TOKENS))
    second = statistics.median(seconds[1:])
    flops = 3 * forward_flops(config, batch)
    return {
        "parameters": parameters,
        "first_step_seconds": first,
        "step_seconds": second,
        "useful_tokens_per_second": tokens / second,
        "useful_share_of_rows": tokens / sum(batch[name].size for name in TOKENS),
        "useful_tflops": flops / second / 1e12,
        "useful_share_of_peak": flops / second / matmul_peak(jnp.bfloat16),
        "peak_gib": peak_gib(),
        "loss": f"{first_loss:.3f} -> {loss:.3f}",
    }


TOKENS = ("encoder_input_tokens", "decoder_target_tokens")


def training(config: T5Config, device: jax.Device, rng: str) -> tuple[Callable, Any, Callable]:
    """Returns the step of finetune.gin, its first state, and what moves a batch to the device."""
    mesh = one_device(device)
    optimizer = optimizers.adafactor(learning_rate=optimizers.constant(learning_rate=1e-3))
    shardings = shardings_of(abstract_state(config.init, optimizer, mesh))
    step = make_train_step(
        NegativeLogLikelihood(), optimizer, mesh=mesh, shardings=shardings, seed=0, rng=rng
    )
    state = initial_state(config.init, optimizer, mesh, seed=0)
    return step, state, lambda batch: place_batch(batch, mesh)


def packed_batch(num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns rows of several examples each: inputs of normal(230, 60), targets of 6..20 tokens."""
    rng = np.random.default_rng(seed)
    inputs, input_segments = np.zeros((2, num_rows, INPUT_LENGTH), np.int32)
    targets, previous, segments = np.zeros((3, num_rows, TARGET_LENGTH), np.int32)
    for row in range(num_rows):
        end = target_end = 0
        for number in range(1, 9):
            length = int(np.clip(rng.normal(230, 60), 80, INPUT_LENGTH))
            length = min(length, INPUT_LENGTH - end)  # the last one fills the row
            target = int(rng.integers(6, 21))
            if length < 30 or target_end + target > TARGET_LENGTH:
                break
            places, target_places = slice(end, end + length), slice(target_end, target_end + target)
            inputs[row, places] = rng.integers(3, 32100, length)
            input_segments[row, places] = number
            targets[row, target_places] = rng.integers(3, 32100, target)
            previous[row, target_end + 1 : target_end + target] = targets[row, target_places][:-1]
            segments[row, target_places] = number
            end, target_end = end + length, target_end + target
    return {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": input_segments,
        "decoder_input_tokens": previous,
        "decoder_target_tokens": targets,
        "decoder_segment_ids": segments,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


def forward_flops(config: T5Config, batch: dict[str, np.ndarray]) -> int:
    """Returns the FLOPs of the products with weights on tokens that are not padding."""
    num_inputs, num_targets = (int((batch[name] > 0).sum()) for name in TOKENS)
    attention = 2 * config.emb_dim * config.num_heads * config.head_dim
    mlp = 6 * config.emb_dim * config.mlp_dim
    encoder = config.num_encoder_layers * num_inputs * (4 * attention + mlp)
    of_inputs = config.num_decoder_layers * num_inputs * 2 * attention
    decoder = config.num_decoder_layers * num_targets * (6 * attention + mlp)
    return encoder + of_inputs + decoder + num_targets * 2 * config.emb_dim * config.vocab_size


def measure_scoring(
    size: str, *, num_users: int, num_candidates: int, step_tokens: int, hf_users: int
) -> Figures:
    """Measures the scorer and the usual loop with torch, with the same weights."""
    requests = score_ways.workload(num_users, num_candidates)
    ours = as_requests(requests)
    began = time.perf_counter()
    model = jax.block_until_ready(
        jax.jit(config_of(size, dtype="bfloat16").init)(jax.random.key(0))
    )
    figures: Figures = {"init_seconds": time.perf_counter() - began}
    scorer = Scorer(one_device(), fit_shapes(ours, max_tokens=step_tokens))
    began = time.perf_counter()
    scorer(model, ours)
    figures["ours_first_seconds"] = time.perf_counter() - began
    figures["ours_shapes"] = scorer.num_compiled
    seconds, found = timed(lambda: scorer(model, ours))
    figures["ours_per_second"] = num_users * num_candidates / seconds
    figures["ours_peak_gib"] = peak_gib()
    report(figures)
    began = time.perf_counter()
    torch_model = as_torch(model)
    figures["to_torch_seconds"] = time.perf_counter() - began
    for name, is_encoded_once in (("hf_once", True), ("hf_repeat", False)):
        run = score_ways.usual_loop(
            torch_model, requests[:hf_users], is_encoded_once=is_encoded_once
        )
        seconds, theirs = timed(run)
        figures[f"{name}_per_second"] = hf_users * num_candidates / seconds
        figures[f"{name}_difference_to_ours"] = difference(theirs, found)
        report(figures)
    return figures


def measure_int8(size: str, *, num_users: int, num_candidates: int, step_tokens: int) -> Figures:
    """Measures the scorer with int8 weights, then with float32 ones; both compute in bfloat16."""
    requests = as_requests(score_ways.workload(num_users, num_candidates))
    config = config_of(size, dtype="bfloat16")
    scorer = Scorer(one_device(), fit_shapes(requests, max_tokens=step_tokens))
    figures: Figures = {}
    for name, make in (("int8", random_int8), ("float32", T5Config.init)):  # the peak never falls
        model = jax.block_until_ready(jax.jit(make, static_argnums=0)(config, jax.random.key(0)))
        seconds, _ = timed(lambda model=model: scorer(model, requests))
        figures[f"{name}_gib"] = sum(leaf.nbytes for leaf in jax.tree.leaves(model)) / 2**30
        figures[f"{name}_per_second"] = num_users * num_candidates / seconds
        figures[f"{name}_peak_gib"] = peak_gib()
        report(figures)
        del model
    return figures


def random_int8(config: T5Config, key: jax.Array) -> T5:
    """Returns a model of random int8 weights, each of about the size that `config.init` draws."""
    shapes = int8_shapes(jax.eval_shape(config.init, key))
    leaves, tree = jax.tree.flatten(shapes)

    def drawn(at: int, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.int8:
            return jax.random.randint(jax.random.fold_in(key, at), leaf.shape, -127, 128, jnp.int8)
        return jnp.full(leaf.shape, 2e-4, leaf.dtype)

    return jax.tree.unflatten(tree, [drawn(at, leaf) for at, leaf in enumerate(leaves)])


def as_requests(requests: Sequence[score_ways.Request]) -> list[TokenRequest]:
    """Returns requests as the scorer takes them."""
    return [
        TokenRequest(request_id=str(at), instruction=instruction, candidates=titles)
        for at, (instruction, titles) in enumerate(requests)
    ]


def one_device(device: jax.Device | None = None) -> Mesh:
    """Returns the mesh of a single device, the first if none is given."""
    return make_mesh(MeshSettings(), [device or jax.devices()[0]])


def as_torch(model: T5) -> Any:
    """Returns Hugging Face's model with these weights in bfloat16, on the GPU if there is one."""
    import torch
    from transformers import T5Config as TheirConfig
    from transformers import T5ForConditionalGeneration

    torch.set_default_dtype(torch.bfloat16)
    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        theirs = T5ForConditionalGeneration(TheirConfig(**config_fields(model.config))).eval()
    # Transformers 5 unties logits and token table only where it loads a file that holds both.
    theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.clone())
    state = theirs.state_dict()
    for parameter, leaf in zip(parameters(model), jax.tree.leaves(model), strict=True):
        layers = np.asarray(leaf) if parameter.is_stacked else np.asarray(leaf)[None]
        for name, layer in zip(parameter.neutral, layers, strict=True):
            array = to_stored(name, to_neutral(parameter, layer))
            state[stored_name(name)].copy_(torch.from_numpy(array.copy()))
    return theirs


def with_dtype(model: T5, dtype: str) -> T5:
    """Returns the model with the same parameters and another compute type."""
    config = dataclasses.replace(model.config, dtype=dtype)
    shapes = jax.eval_shape(config.init, jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(model))


def measure_likelihoods(size: str, *, num_users: int = 4, num_candidates: int = 10) -> Figures:
    """Compares float32 on this device with float32 on the CPU, and bfloat16 with float32."""
    requests = as_requests(score_ways.workload(num_users, num_candidates))
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    with jax.default_device(cpu):
        model = jax.jit(config_of(size).init)(jax.random.key(0))
        exact = Scorer(one_device(cpu))(model, requests)
    likelihood = Scorer(one_device())(jax.device_put(model, device), requests)
    narrow = with_dtype(jax.device_put(model, device), "bfloat16")
    return {
        "log_likelihood": difference(likelihood, exact),
        "log_likelihood_bfloat16": difference(Scorer(one_device())(narrow, requests), exact),
    }


def measure_gradient(size: str) -> Figures:
    """Compares loss and gradient in float32 on this device with those on the CPU."""
    batch = packed_batch(1)
    model = jax.jit(config_of(size).init)(jax.random.key(0))
    gradient = jax.jit(jax.value_and_grad(NegativeLogLikelihood(), has_aux=True))
    found = []
    for where in (jax.devices()[0], jax.devices("cpu")[0]):
        (loss, _), grads = gradient(jax.device_put(model, where), jax.device_put(batch, where))
        found.append((float(loss), float(optax.tree.norm(grads))))
    return {n: abs(a / b - 1) for n, a, b in zip(("loss", "gradient_norm"), *found, strict=True)}


def difference(found: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    """Returns the largest relative difference."""
    pairs = zip(found, exact, strict=False)
    return max(float(np.max(np.abs(mine / theirs - 1))) for mine, theirs in pairs)


def report(figures: Figures) -> None:
    """Says what is measured so far; the last line counts."""
    print(json.dumps(figures), flush=True)


def timed(run: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Returns the median of the seconds, and what it gave; one run before does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found


def measure_peak(sizes: int) -> Figures:
    """Measures the peak of matrix products."""
    return {
        "bfloat16_tflops": matmul_peak(jnp.bfloat16, sizes) / 1e12,
        "float32_tflops": matmul_peak(jnp.float32, sizes) / 1e12,
    }


def matmul_peak(dtype: Any, size: int = 0) -> float:
    """Returns the peak of matrix products, FLOP/s; float32 ones are not rounded to TF32."""
    size = size or (8192 if jax.default_backend() == "gpu" else 1024)
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    times = 10
    highest = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    many = jax.jit(
        lambda a, b: jax.lax.fori_loop(
            0, times, lambda _, b: jnp.matmul(a, b, precision=highest) * size**-0.5, b
        )
    )
    seconds, _ = timed(lambda: many(a, a).block_until_ready())
    return times * 2 * size**3 / seconds


def peak_gib() -> float:
    """Returns the most memory of the device that was in use, GiB; 0 where it does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
