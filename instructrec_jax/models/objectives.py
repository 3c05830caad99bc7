"""Training objectives: what a gin file may put in OBJECTIVE."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from instructrec_jax.errors import UserError
from instructrec_jax.models.encoder_decoder import (
    Batch,
    candidate_log_likelihood,
    training_logits,
)
from instructrec_jax.models.losses import cross_entropy, listwise_cross_entropy
from instructrec_jax.models.t5 import T5, example_segments, same_segment

REAL_TOKENS = "NUM_REAL_TARGET_TOKENS"
TOTAL_TOKENS = "NUM_TOTAL_TARGET_TOKENS"
PER_SEQUENCE = "AVERAGE_PER_SEQUENCE"
NORMALIZING_FACTORS = (REAL_TOKENS, TOTAL_TOKENS, PER_SEQUENCE)
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood:
    """The paper's loss: negative log-likelihood of the target text (section 3.3, equation 1).

    Attributes:
      z_loss: factor of log(Z)^2 (T5X's Z_LOSS).
      label_smoothing: mass spread over the other tokens.
      loss_normalizing_factor: the summed loss is divided by it; None leaves the sum, as T5X does by
        default. T5X's names: "NUM_REAL_TARGET_TOKENS" divides by the counted tokens of the batch,
        "NUM_TOTAL_TARGET_TOKENS" by all places of its rows, padding included, and
        "AVERAGE_PER_SEQUENCE" is the mean over examples, packed or not, of each one's mean over its
        counted tokens.
    """

    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    loss_normalizing_factor: float | str | None = REAL_TOKENS
    ranks_candidates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        factor = self.loss_normalizing_factor
        if isinstance(factor, str):
            factor = factor.upper()  # T5X takes them in either case
            object.__setattr__(self, "loss_normalizing_factor", factor)
        is_number = isinstance(factor, int | float) and factor > 0
        if not is_number and factor not in (None, *NORMALIZING_FACTORS):
            raise UserError(
                f"LOSS_NORMALIZING_FACTOR is {factor!r}; expected a number above 0, None or one of "
                f"{', '.join(NORMALIZING_FACTORS)}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"LABEL_SMOOTHING is {self.label_smoothing}; expected 0 <= it < 1")

    def __call__(
        self, model: T5, batch: Batch, dropout_key: Array | None = None
    ) -> tuple[Array, Metrics]:
        """Returns (loss, metrics) of a training batch, float32 scalars."""
        logits, target_logits = training_logits(model, batch, dropout_key)
        is_counted = batch["decoder_loss_weights"].astype(jnp.float32)
        weights, factor = self._weights(batch, is_counted)
        loss, _ = cross_entropy(
            logits,
            target_logits,
            weights,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        nll, _ = cross_entropy(
            logits, target_logits, is_counted, z_loss=0.0, label_smoothing=self.label_smoothing
        )
        num_tokens = jnp.sum(is_counted)
        metrics = {"nll_per_token": nll / num_tokens, "num_target_tokens": num_tokens}
        return loss / factor, metrics

    def _weights(self, batch: Batch, is_counted: Array) -> tuple[Array, Array | float]:
        """Returns the weight of every target token, float32 [B, T], and what divides their sum."""
        factor = self.loss_normalizing_factor
        if not isinstance(factor, str):
            return is_counted, 1.0 if factor is None else factor
        if factor == REAL_TOKENS:
            return is_counted, jnp.sum(is_counted)
        if factor == TOTAL_TOKENS:
            return is_counted, is_counted.size
        targets = batch["decoder_target_tokens"]
        segments = batch.get("decoder_segment_ids", example_segments(targets))
        num_own = jnp.einsum("BTS,BS->BT", same_segment(segments, segments), is_counted)
        weights = is_counted / jnp.maximum(num_own, 1.0)
        return weights, jnp.sum(weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listwise:
    """Cross-entropy of the target among its candidates, for small models without pretraining.

    loss = listwise cross-entropy of `scale` * (log-likelihood, by `normaliser`)
           + `nll_weight` * negative log-likelihood per token of the target.

    Not in the paper: a model that starts from nothing learns to rank far sooner when it sees
    the negatives. Score with the normaliser that was trained.

    Attributes:
      scale: inverse temperature of the softmax over candidates.
      nll_weight: weight of the paper's own loss.
      normaliser: "sum" over the title's tokens, or their "mean".
    """

    scale: float = 10.0
    nll_weight: float = 0.1
    normaliser: str = "mean"
    ranks_candidates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normaliser not in ("sum", "mean"):
            raise UserError(f"normaliser must be 'sum' or 'mean', got {self.normaliser!r}")

    def __call__(
        self, model: T5, batch: Batch, dropout_key: Array | None = None
    ) -> tuple[Array, Metrics]:
        """Returns (loss, metrics) of a packed ranking batch with `target_index` [B], float32."""
        num_tokens, target_index = batch["num_tokens"], batch["target_index"]
        is_counted = (target_index >= 0) & jnp.any(num_tokens > 0, axis=1)
        sums = candidate_log_likelihood(model, batch, dropout_key)
        means = sums / jnp.maximum(num_tokens, 1)
        values = self.scale * (means if self.normaliser == "mean" else sums)
        listwise, num_hits = listwise_cross_entropy(values, target_index, is_counted)
        target = jnp.where(is_counted, target_index, 0)[:, None]
        target_means = jnp.take_along_axis(means, target, axis=-1)[:, 0]
        nll = -jnp.sum(jnp.where(is_counted, target_means, 0.0))
        num_rows = jnp.maximum(jnp.sum(is_counted, dtype=jnp.float32), 1.0)
        metrics = {
            "listwise": listwise / num_rows,
            "nll_per_token": nll / num_rows,
            "hr@1": num_hits / num_rows,
        }
        return (listwise + self.nll_weight * nll) / num_rows, metrics


Objective = NegativeLogLikelihood | Listwise
