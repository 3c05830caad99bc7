"""The ways of training that `benchmarks/train.py` compares, each run in a process of its own.

A worker reads one JSON line a job on standard input ({"way", "folder", "dropout"} first, then any
line for one more run) and answers each with one JSON line. Not meant to be started by hand.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import score_ways
import turns

MICROBATCH = 8  # examples that torch takes at a time
LEARNING_RATE = 1e-3
Step = Callable[[], float]  # trains on every batch once; returns the first one's loss per token
Batch = dict[str, np.ndarray]


def packed_batches(folder: Path) -> list[Batch]:
    """Returns the rows of all batches, packed."""
    with np.load(folder / "packed.npz") as found:
        return [
            {name: found[name][index] for name in found.files}
            for index in range(len(found["decoder_target_tokens"]))
        ]


def examples(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (inputs, targets) of the examples of each batch, one a row."""
    with np.load(folder / "examples.npz") as found:
        inputs, targets, batch = found["inputs"], found["targets"], found["batch"]
    return [(inputs[batch == index], targets[batch == index]) for index in np.unique(batch)]


def ours(folder: Path, dropout: float) -> tuple[Step, dict[str, float]]:
    """Returns this package's step on one device, and what its program costs."""
    import jax

    from instructrec_jax.checkpoints.source import load_model, open_source
    from instructrec_jax.models.objectives import NegativeLogLikelihood
    from instructrec_jax.parallel.mesh import MeshSettings, abstract_model, make_mesh
    from instructrec_jax.parallel.placement import place_batch
    from instructrec_jax.training import optimizers
    from instructrec_jax.training.state import TrainState, abstract_state, shardings_of
    from instructrec_jax.training.step import make_train_step
    from instructrec_jax.training.step_costs import num_flops, peak_bytes

    mesh, source = make_mesh(MeshSettings(), jax.devices()[:1]), open_source(str(folder / "model"))
    config = score_ways.config_of(dropout)
    optimizer = optimizers.adafactor(learning_rate=optimizers.constant(learning_rate=LEARNING_RATE))
    shardings = shardings_of(abstract_state(config.init, optimizer, mesh))
    step = make_train_step(
        NegativeLogLikelihood(), optimizer, mesh=mesh, shardings=shardings, seed=0
    )
    model = load_model(source, abstract_model(config.init, mesh))
    state = TrainState(jax.numpy.zeros((), jax.numpy.int32), model, optimizer.init(model))
    state = jax.device_put(state, shardings)  # else the second step is compiled again
    batches = packed_batches(folder)
    lowered = step.trace(state, place_batch(batches[0], mesh))
    compiled = lowered.lower().compile()
    counted = compiled.cost_analysis()
    costs = {
        "product_flops": num_flops(lowered.jaxpr),
        "hlo_flops": counted["flops"],
        "hlo_bytes": counted["bytes accessed"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "estimated_bytes": peak_bytes(lowered.jaxpr),
    }

    def run() -> float:
        nonlocal state
        losses = []
        for batch in batches:
            state, metrics = step(state, place_batch(batch, mesh))
            losses.append(metrics["nll_per_token"])
        jax.block_until_ready(state)
        return float(losses[0])

    return run, costs


def hugging_face(folder: Path, dropout: float, *, is_trimmed: bool) -> tuple[Step, dict]:
    """Returns torch's step with transformers' own Adafactor.

    A batch's examples go through the model a few at a time, padded to the longest of them or to the
    length of our rows; then the parameters change once.
    """
    import torch
    from transformers import T5ForConditionalGeneration
    from transformers.optimization import Adafactor

    model = T5ForConditionalGeneration.from_pretrained(
        folder / "model", local_files_only=True, dropout_rate=dropout
    ).train()
    optimizer = Adafactor(
        model.parameters(), lr=LEARNING_RATE, relative_step=False, warmup_init=False
    )

    def trimmed(tokens: np.ndarray) -> Any:
        width = int((tokens > 0).sum(axis=1).max()) if is_trimmed else tokens.shape[1]
        return torch.from_numpy(tokens[:, :width]).long()

    groups = []
    for inputs, targets in examples(folder):
        number = max(1, round(len(inputs) / MICROBATCH))
        parts = zip(np.array_split(inputs, number), np.array_split(targets, number), strict=True)
        groups.append([(trimmed(one), trimmed(other)) for one, other in parts])

    def run() -> float:
        found = []
        for group in groups:
            optimizer.zero_grad()
            num_tokens = sum(int((targets > 0).sum()) for _, targets in group)
            total = 0.0
            for inputs, targets in group:
                logits = model(
                    input_ids=inputs,
                    attention_mask=inputs > 0,
                    decoder_input_ids=torch.nn.functional.pad(targets, (1, -1)),
                    use_cache=False,
                ).logits
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum"
                )
                (loss / num_tokens).backward()
                total += float(loss.detach())
            optimizer.step()
            found.append(total / num_tokens)
        return found[0]

    return run, {}


def t5x(folder: Path, dropout: float, *, is_packed: bool) -> tuple[Step, dict]:
    """Returns T5X's step: on our packed rows, or on one example a row of the same length."""
    import jax
    from t5x import adafactor, train_state, trainer

    rules = adafactor.standard_logical_factor_rules()
    optimizer = adafactor.Adafactor(decay_rate=0.8, logical_factor_rules=rules)
    model, params = score_ways.t5x_model(
        folder / "model", dropout_rate=dropout, optimizer=optimizer
    )
    if is_packed:
        batches = packed_batches(folder)
    else:
        batches = [
            _as_rows(inputs[at : at + MICROBATCH], targets[at : at + MICROBATCH])
            for inputs, targets in examples(folder)
            for at in range(0, len(inputs) - MICROBATCH + 1, MICROBATCH)
        ]
    shapes = {name: array.shape for name, array in batches[0].items()}
    variables = model.get_initial_variables(jax.random.key(0), shapes)
    variables = {**variables, "params": params}
    state = train_state.FlaxOptimTrainState.create(optimizer, variables)

    def train(state: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        gradient, metrics, _ = trainer.accumulate_grads_microbatched(
            model, state, batch, key, num_microbatches=None
        )
        loss = metrics["cross_ent_loss"].compute()
        state, _ = trainer.apply_grads(state, gradient, metrics, LEARNING_RATE, None)
        return state, loss

    step = jax.jit(train, donate_argnums=0)

    def run() -> float:
        nonlocal state
        losses = []
        for number, batch in enumerate(batches):
            state, loss = step(state, batch, jax.random.PRNGKey(number))
            losses.append(loss)
        jax.block_until_ready(state)
        return float(losses[0])

    tokens = sum(int((b[name] > 0).sum()) for b in batches
                 for name in ("encoder_input_tokens", "decoder_target_tokens"))  # fmt: skip
    return run, {"tokens": tokens}


def _as_rows(inputs: np.ndarray, targets: np.ndarray) -> Batch:
    """Returns one example a row as T5X takes them."""
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


WAYS: dict[str, Callable[[Path, float], tuple[Step, dict[str, float]]]] = {
    "ours": ours,
    "hf_trimmed": lambda folder, dropout: hugging_face(folder, dropout, is_trimmed=True),
    "hf_padded": lambda folder, dropout: hugging_face(folder, dropout, is_trimmed=False),
    "t5x_packed": lambda folder, dropout: t5x(folder, dropout, is_packed=True),
    "t5x_padded": lambda folder, dropout: t5x(folder, dropout, is_packed=False),
}


def main() -> None:
    """Answers jobs until there are no more."""
    jobs = turns.jobs()
    job = next(jobs)
    run, costs = WAYS[job["way"]](Path(job["folder"]), job["dropout"])
    began = time.perf_counter()
    loss = run()
    turns.answer({"first_seconds": time.perf_counter() - began, "loss": loss, "costs": costs})
    peak = score_ways.matmul_peak(job["way"])
    for _ in jobs:
        before, began = peak(), time.process_time()
        seconds, cpu_seconds = turns.seconds(run), time.process_time() - began
        found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peaks": [before, peak()]}
        turns.answer(found)


if __name__ == "__main__":
    main()
