"""Losses over float32 logits: token cross-entropy, and listwise cross-entropy over candidates."""

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(
    logits: Array,
    target_logits: Array,
    weights: Array,
    *,
    z_loss: float,
    label_smoothing: float,
) -> tuple[Array, Array]:
    """Returns the negative log-likelihood of the targets with z-loss, summed over tokens.

    Source: paper section 3.3, equation (1), the NLL of the target; the z-loss, z_loss * log(Z)^2,
    is T5X's and keeps the softmax normaliser Z near 1.

    Args:
      logits: float32 [..., T, V].
      target_logits: float32 [..., T], those of the target tokens.
      weights: float32 [..., T], 0 where a token does not count.
      z_loss: factor of log(Z)^2.
      label_smoothing: probability mass spread evenly over the other V - 1 tokens; the entropy of
        the smoothed target is subtracted, so that a perfect prediction costs 0.

    Returns:
      (loss, the z-loss part of it), float32 scalars, sums over the counted tokens.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    loss = log_z - target_logits
    if label_smoothing:
        others = logits.shape[-1] - 1
        confidence, low = 1.0 - label_smoothing, label_smoothing / others
        rest = jnp.sum(logits, axis=-1) - target_logits - others * log_z
        entropy = -(confidence * jnp.log(confidence) + label_smoothing * jnp.log(low))
        loss = confidence * loss - low * rest - entropy
    total_z = jnp.sum(z_loss * jnp.square(log_z) * weights)
    return jnp.sum(loss * weights) + total_z, total_z


def listwise_cross_entropy(
    log_likelihood: Array, target_index: Array, is_counted: Array
) -> tuple[Array, Array]:
    """Returns the cross-entropy of the target under a softmax over its candidates.

    The ListNet loss with one relevant item (Cao et al., ICML 2007), over log-likelihoods.

    Args:
      log_likelihood: float32 [B, C], scaled as wished; -inf for padding candidates.
      target_index: int32 [B], place of the target among the candidates.
      is_counted: bool [B], False on padding rows.

    Returns:
      (sum of losses, number of counted rows whose target has the highest value), float32 scalars.
    """
    safe = jnp.where(is_counted[:, None], log_likelihood, 0.0)
    target = jnp.where(is_counted, target_index, 0)[:, None]
    log_probability = jax.nn.log_softmax(safe, axis=-1)
    loss = -jnp.take_along_axis(log_probability, target, axis=-1)[:, 0]
    hits = jnp.argmax(safe, axis=-1) == target[:, 0]
    return jnp.sum(jnp.where(is_counted, loss, 0.0)), jnp.sum(hits & is_counted, dtype=jnp.float32)
