"""A T5 small enough to compile in a second, and batches of random tokens for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructrec_jax.models.objectives import pack_candidates
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.scoring.prefix_trees import TokenRequest

VOCAB_SIZE = 64
EOS = 1


def tiny_config(**changes) -> T5Config:
    fields = {
        "vocab_size": VOCAB_SIZE,
        "emb_dim": 16,
        "num_heads": 2,
        "head_dim": 8,
        "mlp_dim": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
    }
    return T5Config(**(fields | changes))


@functools.cache
def tiny_model(**changes) -> T5:
    """A random model; do not write to it, all tests share it."""
    rng, config = np.random.default_rng(0), tiny_config(**changes)

    def fill(path, leaf):
        is_norm = "norm" in jax.tree_util.keystr(path)
        mean, spread = (1.0, 0.1) if is_norm else (0.0, 1.2 * config.emb_dim**-0.5)
        return jnp.asarray(rng.normal(mean, spread, leaf.shape), leaf.dtype)

    # Not the model's own start: to compile that takes longer than most tests.
    shapes = jax.eval_shape(lambda: T5(config, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def random_tokens(rng: np.random.Generator, lengths: np.ndarray, width: int) -> np.ndarray:
    """Rows of tokens that end in EOS and are filled with 0; a length of 0 is a row of padding."""
    lengths = np.asarray(lengths)
    tokens = rng.integers(3, VOCAB_SIZE, (*lengths.shape, width))
    places = np.arange(width)
    tokens = np.where(places == lengths[..., None] - 1, EOS, tokens)
    return np.where(places < lengths[..., None], tokens, 0).astype(np.int32)


def ranking_batch(
    seed: int, *, rows: int = 4, candidates: int = 3, inputs: int = 12, targets: int = 6
) -> dict[str, np.ndarray]:
    """A ranking batch whose rows and candidates differ in length."""
    rng = np.random.default_rng(seed)
    return {
        "encoder_input_tokens": random_tokens(rng, rng.integers(2, inputs + 1, rows), inputs),
        "candidate_tokens": random_tokens(
            rng, rng.integers(2, targets + 1, (rows, candidates)), targets
        ),
        "candidate_ids": rng.integers(0, 99, (rows, candidates)).astype(np.int32),
        "candidate_num_chars": rng.integers(1, 20, (rows, candidates)).astype(np.int32),
        "target_index": rng.integers(0, candidates, rows).astype(np.int32),
        "example_id": np.array([f"u{row}:3" for row in range(rows)]),
    }


def requests_of(batch: dict[str, np.ndarray]) -> list[TokenRequest]:
    """The requests of a ranking batch, without padding; their ids are the numbers of the rows."""
    rows = zip(batch["encoder_input_tokens"], batch["candidate_tokens"], strict=True)
    return [
        TokenRequest(
            request_id=str(number),
            instruction=instruction[instruction > 0],
            candidates=[tokens[tokens > 0] for tokens in candidates],
        )
        for number, (instruction, candidates) in enumerate(rows)
    ]


def packed_arrays(batch: dict[str, np.ndarray], **kwargs) -> dict[str, np.ndarray]:
    """What a model takes of a ranking batch: candidates packed, text left out."""
    packed = pack_candidates(batch, **kwargs)
    return {name: value for name, value in packed.items() if value.dtype.kind == "i"}


def training_batch(
    seed: int, *, rows: int = 4, inputs: int = 12, targets: int = 6
) -> dict[str, np.ndarray]:
    """A training batch with one example a row."""
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng, rng.integers(2, targets + 1, rows), targets)
    return {
        "encoder_input_tokens": random_tokens(rng, rng.integers(2, inputs + 1, rows), inputs),
        "decoder_input_tokens": np.pad(tokens, ((0, 0), (1, 0)))[:, :-1] * (tokens > 0),
        "decoder_target_tokens": tokens,
        "decoder_loss_weights": (tokens > 0).astype(np.int32),
    }


def packed(batch: dict[str, np.ndarray], *, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """The rows of a training batch packed two by two, as SeqIO packs them."""
    widths = {"encoder": inputs, "decoder": targets}
    rows = len(batch["encoder_input_tokens"]) // 2
    names = [*batch, *(f"{s}_{what}" for s in widths for what in ("segment_ids", "positions"))]
    result = {name: np.zeros((rows, widths[name[:7]]), np.int32) for name in names}
    for index in range(2 * rows):
        row, segment = divmod(index, 2)
        for side, own in (
            ("encoder", "encoder_input_tokens"),
            ("decoder", "decoder_target_tokens"),
        ):
            length = int((batch[own][index] > 0).sum())
            start = int((result[f"{side}_segment_ids"][row] > 0).sum())
            place = slice(start, start + length)
            assert start + length <= widths[side]
            for name in batch:
                if name.startswith(side):
                    result[name][row, place] = batch[name][index, :length]
            result[f"{side}_segment_ids"][row, place] = segment + 1
            result[f"{side}_positions"][row, place] = np.arange(length)
    return result
