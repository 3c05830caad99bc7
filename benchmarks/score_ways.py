"""The ways of scoring that `benchmarks/score.py` compares, each run in a process of its own.

A worker reads one JSON line a job on standard input ({"way", "workload", "folder"} first, then any
line for one more run) and answers each with one JSON line. Not meant to be started by hand.
"""

import importlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import turns

from instructrec_jax.models.t5 import T5Config

SIZES = {"emb_dim": 512, "num_heads": 6, "mlp_dim": 1024}
NUM_LAYERS, HEAD_DIM, VOCAB_SIZE = 8, 64, 32128
USERS = {"rerank10": (32, 10), "rerank100": (8, 100)}
PEAK_SIZE = 2048  # of the square matrices whose product is the machine's peak
Request = tuple[np.ndarray, list[np.ndarray]]
Run = Callable[[], list[np.ndarray]]


def config_of(dropout_rate: float = 0.0) -> T5Config:
    """Returns the sizes of the model."""
    layers = {"num_encoder_layers": NUM_LAYERS, "num_decoder_layers": NUM_LAYERS}
    return T5Config(**SIZES, **layers, dropout_rate=dropout_rate)


def workload(num_users: int, num_candidates: int, seed: int = 0) -> list[Request]:
    """Returns random requests: instructions of normal(230, 60) in [80, 512], titles of 6..20."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(num_users):
        length = int(np.clip(rng.normal(230, 60), 80, 512))
        titles = [_text(rng, size) for size in rng.integers(6, 21, num_candidates)]
        requests.append((_text(rng, length), titles))
    return requests


def useful_flops(requests: Sequence[Request]) -> int:
    """Returns the FLOPs of the matrix products that cannot be left out, prefixes aside.

    Real tokens only; the encoder and the cross-attention's keys and values once a user.
    """
    emb, inner, mlp = SIZES["emb_dim"], SIZES["num_heads"] * HEAD_DIM, SIZES["mlp_dim"]
    total = 0
    for instruction, titles in requests:
        num = len(instruction)
        total += NUM_LAYERS * (num * (8 * emb * inner + 6 * emb * mlp) + 4 * num * num * inner)
        total += NUM_LAYERS * num * 4 * emb * inner
        for title in titles:
            size = len(title)
            attended = size * (size + 1) // 2 + size * num
            total += NUM_LAYERS * (size * (12 * emb * inner + 6 * emb * mlp) + 4 * attended * inner)
            total += 2 * size * emb * VOCAB_SIZE
    return total


def hugging_face(folder: Path, requests: Sequence[Request], *, is_encoded_once: bool) -> Run:
    """Returns the usual loop over users with torch, with the model of a checkpoint on the CPU."""
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    return usual_loop(model, requests, is_encoded_once=is_encoded_once)


def usual_loop(model: Any, requests: Sequence[Request], *, is_encoded_once: bool) -> Run:
    """Returns the usual loop over users with torch.

    Args:
      model: a T5ForConditionalGeneration on its device; log-softmax is in float32.
      requests: what is scored; a user's candidates are one batch, padded to the longest.
      is_encoded_once: whether the encoder runs once a user, its output repeated for each
        candidate; otherwise it runs for each candidate, in batches of at most 32 rows.
    """
    import torch

    def of_titles(instruction, titles, encoded):
        labels = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(title).long() for title in titles], batch_first=True
        ).to(model.device)
        inputs = torch.nn.functional.pad(labels, (1, -1))
        given = {"decoder_input_ids": inputs, "use_cache": False}
        if encoded is not None:
            given["encoder_outputs"] = (encoded.expand(len(titles), -1, -1),)
        else:
            given["input_ids"] = instruction.expand(len(titles), -1)
        log_p = torch.log_softmax(model(**given).logits.float(), dim=-1)
        found = log_p.gather(-1, labels[..., None])[..., 0]
        return (found * (labels > 0)).sum(-1)

    def run() -> list[np.ndarray]:
        found = []
        with torch.inference_mode():
            for instruction, titles in requests:
                tokens = torch.from_numpy(instruction).long()[None].to(model.device)
                encoded, rows = None, 32
                if is_encoded_once:
                    encoded, rows = model.encoder(tokens).last_hidden_state, len(titles)
                parts = [titles[at : at + rows] for at in range(0, len(titles), rows)]
                found.append(torch.cat([of_titles(tokens, part, encoded) for part in parts]))
            return [values.cpu().numpy() for values in found]

    return run


def ours(folder: Path, requests: Sequence[Request]) -> Run:
    """Returns this package's scorer on one device."""
    import jax

    from instructrec_jax.checkpoints.source import load_model, open_source
    from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
    from instructrec_jax.scoring.prefix_trees import TokenRequest
    from instructrec_jax.scoring.scorer import Scorer

    mesh = make_mesh(MeshSettings(), jax.devices()[:1])
    checkpoint = open_source(str(folder))
    assert checkpoint.config is not None
    model = load_model(checkpoint, abstract_model(checkpoint.config.init, mesh))
    scorer = Scorer(mesh)
    as_requests = [
        TokenRequest(request_id=str(index), instruction=instruction, candidates=titles)
        for index, (instruction, titles) in enumerate(requests)
    ]
    return lambda: scorer(model, as_requests)


def t5x_model(folder: Path, *, dropout_rate: float, optimizer: Any = None) -> tuple[Any, Any]:
    """Returns T5X's model and its parameters, those of a checkpoint."""
    import jax
    import seqio
    from flax import traverse_util
    from t5x import models
    from t5x.examples.t5 import network

    from instructrec_jax.checkpoints.parameters import neutral_shapes
    from instructrec_jax.checkpoints.source import open_source

    source = open_source(str(folder))
    vocabulary = seqio.PassThroughVocabulary(size=VOCAB_SIZE)
    config = network.T5Config(
        **SIZES,
        vocab_size=VOCAB_SIZE,
        head_dim=HEAD_DIM,
        num_encoder_layers=NUM_LAYERS,
        num_decoder_layers=NUM_LAYERS,
        mlp_activations=("gelu", "linear"),
        dropout_rate=dropout_rate,
        dtype="float32",
    )
    model = models.EncoderDecoderModel(
        module=network.Transformer(config=config),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        optimizer_def=optimizer,
        z_loss=1e-4,
        loss_normalizing_factor="NUM_REAL_TARGET_TOKENS",
    )
    arrays = {tuple(name.split(".")): source.read(name) for name in neutral_shapes(source.config)}
    return model, jax.device_put(traverse_util.unflatten_dict(arrays))


def t5x(folder: Path, requests: Sequence[Request]) -> Run:
    """Returns T5X's score mode: one (instruction, candidate) pair a row, padded to 512 and 24."""
    import jax

    model, params = t5x_model(folder, dropout_rate=0.0)
    score_batch = jax.jit(lambda params, batch: model.score_batch(params, batch))

    def padded(texts: Sequence[np.ndarray], width: int) -> np.ndarray:
        return np.stack([np.pad(text, (0, width - len(text))) for text in texts])

    pairs = [(instruction, title) for instruction, titles in requests for title in titles]
    size = -(-len(pairs) // -(-len(pairs) // 32))
    batches = []
    for at in range(0, len(pairs), size):
        rows = pairs[at : at + size] + pairs[:1] * max(0, at + size - len(pairs))
        targets = padded([title for _, title in rows], 24)
        batches.append(
            {
                "encoder_input_tokens": padded([instruction for instruction, _ in rows], 512),
                "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
                "decoder_target_tokens": targets,
                "decoder_loss_weights": (targets > 0).astype(np.int32),
            }
        )

    def run() -> list[np.ndarray]:
        found = np.concatenate([np.asarray(score_batch(params, batch)) for batch in batches])
        ends = np.cumsum([len(titles) for _, titles in requests])
        return np.split(found[: ends[-1]], ends[:-1])

    return run


WAYS: dict[str, Callable[[Path, Sequence[Request]], Run]] = {
    "ours": ours,
    "hf_once": lambda folder, requests: hugging_face(folder, requests, is_encoded_once=True),
    "hf_repeat": lambda folder, requests: hugging_face(folder, requests, is_encoded_once=False),
    "t5x": t5x,
}


def matmul_peak(way: str) -> Callable[[], float]:
    """Returns a function that measures the peak of float32 matrix products, FLOP/s."""
    a = np.random.default_rng(0).normal(size=(PEAK_SIZE, PEAK_SIZE)).astype(np.float32)
    if way in ("ours", "t5x"):
        import jax

        on_device, multiply = jax.numpy.asarray(a), jax.jit(lambda a: a @ a)
        run = lambda: multiply(on_device).block_until_ready()  # noqa: E731
    else:
        import torch

        tensor = torch.from_numpy(a)
        run = lambda: tensor @ tensor  # noqa: E731
    run()
    return lambda: 2 * PEAK_SIZE**3 / min(turns.seconds(run) for _ in range(4))


def _text(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.append(rng.integers(3, 32100, size - 1), 1).astype(np.int32)


def _memory_of_imports(way: str) -> int:
    """Returns the bytes in use once the way's packages are there."""
    modules = {
        "ours": ("instructrec_jax.scoring.scorer", "instructrec_jax.checkpoints.source"),
        "t5x": ("t5x.models", "instructrec_jax.checkpoints.source"),
    }
    for module in modules.get(way, ("transformers.models.t5.modeling_t5",)):
        importlib.import_module(module)
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Answers jobs until there are no more."""
    jobs = turns.jobs()
    job = next(jobs)
    users = job["users"]
    requests = workload(*job["shape"])[:users]
    base = _memory_of_imports(job["way"])
    run = WAYS[job["way"]](Path(job["folder"]), requests)
    began = time.perf_counter()
    found = run()
    answer = {
        "first_seconds": time.perf_counter() - began,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base,
        "found": [values.tolist() for values in found],
    }
    turns.answer(answer)
    peak = matmul_peak(job["way"])
    for _ in jobs:
        before, seconds, after = peak(), turns.seconds(run), peak()
        turns.answer({"seconds": seconds, "peaks": [before, after]})


if __name__ == "__main__":
    main()
