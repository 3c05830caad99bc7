"""What one asks of an encoder-decoder: training logits and log-likelihoods of candidates."""

from collections.abc import Mapping

import jax.numpy as jnp
from jax import Array

from instructrec_jax.models.losses import token_log_likelihood
from instructrec_jax.models.t5 import T5, example_segments

Batch = Mapping[str, Array]


def training_logits(model: T5, batch: Batch, dropout_key: Array | None = None) -> Array:
    """Returns the logits of a training batch, packed or not.

    Args:
      model: the model.
      batch: `encoder_input_tokens` int32 [B, S]; `decoder_input_tokens` and
        `decoder_target_tokens` int32 [B, T]; when packed also `encoder_segment_ids` [B, S] and
        `decoder_segment_ids` [B, T].
      dropout_key: a key in training, None otherwise.

    Returns:
      float32 [B, T, V].
    """
    tokens = batch["encoder_input_tokens"]
    encoder_segments = batch.get("encoder_segment_ids", example_segments(tokens))
    segments = batch.get("decoder_segment_ids", example_segments(batch["decoder_target_tokens"]))
    encoded = model.encode(tokens, encoder_segments, dropout_key=dropout_key)
    logits = model.decode(
        batch["decoder_input_tokens"][:, None],
        segments[:, None],
        encoded=encoded,
        encoder_segments=encoder_segments,
        dropout_key=dropout_key,
    )
    return logits[:, 0]


def candidate_token_log_likelihood(
    model: T5, batch: Batch, dropout_key: Array | None = None
) -> Array:
    """Returns the log-probability of every token of every candidate, given its instruction.

    The instruction is encoded once, however many candidates it has.

    Args:
      model: the model.
      batch: `encoder_input_tokens` int32 [B, S] and `candidate_tokens` int32 [B, C, T], each
        candidate ending in EOS, all zero where there is none.
      dropout_key: a key in training, None otherwise.

    Returns:
      float32 [B, C, T], natural log, 0 on padding.
    """
    tokens, targets = batch["encoder_input_tokens"], batch["candidate_tokens"]
    encoder_segments = example_segments(tokens)
    logits = model.decode(
        jnp.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1],
        example_segments(targets),
        encoded=model.encode(tokens, encoder_segments, dropout_key=dropout_key),
        encoder_segments=encoder_segments,
        dropout_key=dropout_key,
    )
    return jnp.where(targets > 0, token_log_likelihood(logits, targets), 0.0)


def candidate_log_likelihood(
    model: T5, batch: Batch, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Returns log P(candidate | instruction), the sum over its tokens including EOS.

    Source: paper section 3.3: candidates are ranked by the likelihood of their titles.

    Args:
      model: the model.
      batch: as in `candidate_token_log_likelihood`.
      dropout_key: a key in training, None otherwise.

    Returns:
      (log-likelihood float32 [B, C], -inf where there is no candidate;
       number of tokens counted, int32 [B, C]).
    """
    num_tokens = jnp.sum(batch["candidate_tokens"] > 0, axis=-1, dtype=jnp.int32)
    total = jnp.sum(candidate_token_log_likelihood(model, batch, dropout_key), axis=-1)
    return jnp.where(num_tokens > 0, total, -jnp.inf), num_tokens
