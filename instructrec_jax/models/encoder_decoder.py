"""What one asks of an encoder-decoder: training logits and log-likelihoods of candidates."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from instructrec_jax.models.t5 import T5, example_segments, same_segment

Batch = Mapping[str, Array]


def training_logits(
    model: T5, batch: Batch, dropout_key: Array | None = None
) -> tuple[Array, Array]:
    """Returns the logits of a training batch, packed or not.

    Args:
      model: the model.
      batch: `encoder_input_tokens` int32 [B, S]; `decoder_input_tokens` and
        `decoder_target_tokens` int32 [B, T]; when packed also `encoder_segment_ids` [B, S] and
        `decoder_segment_ids` [B, T].
      dropout_key: a key in training, None otherwise.

    Returns:
      (all logits, float32 [B, T, V]; those of the target tokens, float32 [B, T]).
    """
    tokens, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    encoder_segments = batch.get("encoder_segment_ids", example_segments(tokens))
    segments = batch.get("decoder_segment_ids", example_segments(targets))
    hidden = model.decode(
        batch["decoder_input_tokens"][:, None],
        segments[:, None],
        encoded=model.encode(tokens, encoder_segments, dropout_key=dropout_key),
        cross_mask=same_segment(segments, encoder_segments)[:, None],
        dropout_key=dropout_key,
    )[:, 0]
    return model.logits(hidden), model.target_logits(hidden, targets)


def candidate_log_likelihood(model: T5, batch: Batch, dropout_key: Array | None = None) -> Array:
    """Returns log P(candidate | instruction), the sum over its tokens including EOS.

    The instruction is encoded once, however many candidates it has, and short candidates share
    rows. Source: paper section 3.3: candidates are ranked by the likelihood of their titles.

    Args:
      model: the model.
      batch: a packed ranking batch: `encoder_input_tokens` int32 [B, S]; `packed_tokens` int32
        [B, R, T], candidates one after another, each ending in EOS; `packed_candidates` int32
        [B, R, T], 1 + index of the candidate a token belongs to, 0 = padding; `num_tokens` int32
        [B, C], 0 where there is no candidate.
      dropout_key: a key in training, None otherwise.

    Returns:
      float32 [B, C], natural log, -inf where there is no candidate.
    """
    owners, num_tokens = batch["packed_candidates"], batch["num_tokens"]
    log_likelihood = _packed_token_log_likelihood(model, batch, dropout_key)
    # A product with a one-hot instead of a scatter: the same sum in the same order every time.
    one_hot = jax.nn.one_hot(owners - 1, num_tokens.shape[1], dtype=jnp.float32)
    total = jnp.einsum("BRT,BRTC->BC", log_likelihood, one_hot)
    return jnp.where(num_tokens > 0, total, -jnp.inf)


def _packed_token_log_likelihood(model: T5, batch: Batch, dropout_key: Array | None) -> Array:
    """Returns the log-probability of every packed token, float32 [B, R, T], 0 on padding."""
    tokens, targets = batch["encoder_input_tokens"], batch["packed_tokens"]
    owners = batch["packed_candidates"]
    encoder_segments = example_segments(tokens)
    follows = owners == jnp.pad(owners, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    previous = jnp.pad(targets, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    hidden = model.decode(
        jnp.where(follows, previous, 0),
        owners,
        encoded=model.encode(tokens, encoder_segments, dropout_key=dropout_key),
        cross_mask=(owners > 0)[..., None] & (encoder_segments > 0)[:, None, None, :],
        dropout_key=dropout_key,
    )
    log_z = jax.nn.logsumexp(model.logits(hidden), axis=-1)
    return jnp.where(owners > 0, model.target_logits(hidden, targets) - log_z, 0.0)
