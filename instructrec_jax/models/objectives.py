"""Training objectives: what a gin file may put in OBJECTIVE, with the losses they are made of.

Here is also how a batch is laid out for the listwise one, on the host.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from instructrec_jax.errors import UserError
from instructrec_jax.models.t5 import T5, einsum, example_segments, same_segment
from instructrec_jax.settings import NotNegative, OneOf, Positive, Range, check_fields

Batch = Mapping[str, Array]
ROW_LENGTHS = (32, 64, 128, 256)  # of packed candidates


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
    logits = model.logits(hidden)
    return logits, model.target_logits(hidden, targets, logits)


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
    total = einsum("BRT,BRTC->BC", log_likelihood, one_hot)
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
    logits = model.logits(hidden)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.where(owners > 0, model.target_logits(hidden, targets, logits) - log_z, 0.0)


def ranking_sizes(
    batch: Mapping[str, np.ndarray], row_lengths: Sequence[int] = ROW_LENGTHS
) -> tuple[int, int, int]:
    """Returns what decides the shapes of a packed ranking batch, each the largest of its rows.

    Returns:
      (tokens of an instruction, tokens of an example's candidates, rows of the largest length that
      they take). Of a batch in parts the largest of each number counts.
    """
    used = np.flatnonzero(batch["encoder_input_tokens"].any(axis=0))
    num_tokens = (batch["candidate_tokens"] > 0).sum(axis=-1, dtype=np.int32)
    most_rows = int(_places(num_tokens, row_lengths[-1])[0].max(initial=0)) + 1
    return int(used[-1]) + 1 if len(used) else 0, int(num_tokens.sum(axis=1).max()), most_rows


def trim_instructions(
    batch: Mapping[str, np.ndarray], buckets: Sequence[int], longest: int
) -> dict[str, np.ndarray]:
    """Returns a batch whose instructions are cut to the smallest bucket that holds the longest."""
    tokens = batch["encoder_input_tokens"]
    fitting = [bucket for bucket in buckets if longest <= bucket < tokens.shape[1]]
    return {**batch, "encoder_input_tokens": tokens[:, : min(fitting)] if fitting else tokens}


def pack_candidates(
    batch: Mapping[str, np.ndarray],
    row_lengths: Sequence[int] = ROW_LENGTHS,
    *,
    sizes: tuple[int, int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Returns a ranking batch with its candidates side by side in rows; short ones cost little.

    Candidates keep their order: each goes after the one before it, or into the next row. The row
    length is the smallest of `row_lengths` in which every example needs one row; with the largest
    an example takes as many rows as it needs. So a few shapes serve all batches.

    Args:
      batch: `candidate_tokens` int32 [B, C, T], 0 = padding, and anything else, which is kept.
      row_lengths: ascending.
      sizes: `ranking_sizes` of the batch that this one is a part of; None: its own.

    Returns:
      The batch with, in place of `candidate_tokens`: `packed_tokens` and `packed_candidates`
      int32 [B, R, row length], the latter 1 + index of the candidate, 0 = padding; and
      `num_tokens` int32 [B, C].

    Raises:
      UserError: if a candidate is longer than the longest row.

    Example:
      Candidates [5, 1] and [6, 7, 1] in rows of 6 become tokens [5, 1, 6, 7, 1, 0] of candidates
      [1, 1, 2, 2, 2, 0].
    """
    tokens = batch["candidate_tokens"]
    num_tokens = (tokens > 0).sum(axis=-1, dtype=np.int32)
    if num_tokens.max(initial=0) > row_lengths[-1]:
        raise UserError(
            f"a candidate has {num_tokens.max()} tokens and a packed row holds {row_lengths[-1]}; "
            "shorten titles with `instructrec prepare --max_title_chars`"
        )
    longest = num_tokens.sum(axis=1).max(initial=0) if sizes is None else sizes[1]
    row_length = next((size for size in row_lengths if size >= longest), row_lengths[-1])
    row, begin = _places(num_tokens, row_length)
    num_rows = int(row.max(initial=0)) + 1
    if sizes is not None and longest > row_length:
        num_rows = sizes[2]
    shape = (len(tokens), num_rows, row_length)
    packed = {name: np.zeros(shape, np.int32) for name in ("packed_tokens", "packed_candidates")}
    example, candidate, place = np.nonzero(tokens)
    where = (example, row[example, candidate], begin[example, candidate] + place)
    packed["packed_tokens"][where] = tokens[example, candidate, place]
    packed["packed_candidates"][where] = candidate + 1
    kept = {name: value for name, value in batch.items() if name != "candidate_tokens"}
    return {**kept, **packed, "num_tokens": num_tokens}


def _places(num_tokens: np.ndarray, row_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row of each candidate and where it begins in it, both int [B, C]."""
    row, begin = np.zeros_like(num_tokens), np.zeros_like(num_tokens)
    current, used = np.zeros(len(num_tokens), np.int32), np.zeros(len(num_tokens), np.int32)
    for column, length in enumerate(num_tokens.T):
        is_full = used + length > row_length
        current, used = current + is_full, np.where(is_full, 0, used)
        row[:, column], begin[:, column] = current, used
        used = used + length
    return row, begin


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
      log_likelihood: float32 [B, C], scaled; -inf for padding candidates.
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


REAL_TOKENS = "NUM_REAL_TARGET_TOKENS"
TOTAL_TOKENS = "NUM_TOTAL_TARGET_TOKENS"
PER_SEQUENCE = "AVERAGE_PER_SEQUENCE"
NORMALIZING_FACTORS = (REAL_TOKENS, TOTAL_TOKENS, PER_SEQUENCE)
Metrics = dict[str, Array]
Totals = tuple[Array | float, ...]


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

    z_loss: NotNegative = 1e-4
    label_smoothing: Annotated[float, Range(0, 0.999)] = 0.0
    loss_normalizing_factor: Positive | Annotated[str, OneOf(NORMALIZING_FACTORS)] | None = (
        REAL_TOKENS
    )
    ranks_candidates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        factor = self.loss_normalizing_factor
        if isinstance(factor, str):  # T5X takes them in either case
            object.__setattr__(self, "loss_normalizing_factor", factor.upper())
        check_fields(self)

    def totals(self, batch: Batch) -> Totals:
        """Returns what the loss and the metrics of a batch are divided by."""
        is_counted = batch["decoder_loss_weights"].astype(jnp.float32)
        return self._weights(batch, is_counted)[1], jnp.sum(is_counted)

    def __call__(
        self,
        model: T5,
        batch: Batch,
        dropout_key: Array | None = None,
        totals: Totals | None = None,
    ) -> tuple[Array, Metrics]:
        """Returns (loss, metrics) of a training batch, float32 scalars.

        Args:
          model: the model.
          batch: as for `training_logits`, with `decoder_loss_weights` int32 [B, T].
          dropout_key: a key in training, None otherwise.
          totals: those of a larger batch that this one is a part of; None: its own.
        """
        logits, target_logits = training_logits(model, batch, dropout_key)
        is_counted = batch["decoder_loss_weights"].astype(jnp.float32)
        weights, _ = self._weights(batch, is_counted)
        factor, num_tokens = self.totals(batch) if totals is None else totals
        loss, _ = cross_entropy(
            logits,
            target_logits,
            weights,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
        )
        # The plain one, whatever the loss is: it can be compared between runs.
        nll, _ = cross_entropy(logits, target_logits, is_counted, z_loss=0.0, label_smoothing=0.0)
        metrics = {"nll_per_token": nll / num_tokens, "num_target_tokens": jnp.sum(is_counted)}
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
        num_own = einsum(
            "BTS,BS->BT", same_segment(segments, segments).astype(jnp.float32), is_counted
        )
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

    scale: Positive = 10.0
    nll_weight: NotNegative = 0.1
    normaliser: Annotated[str, OneOf(("sum", "mean"))] = "mean"
    ranks_candidates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def totals(self, batch: Batch) -> Totals:
        """Returns what the loss and the metrics of a batch are divided by: its counted rows."""
        return (jnp.maximum(jnp.sum(_is_ranked(batch), dtype=jnp.float32), 1.0),)

    def __call__(
        self,
        model: T5,
        batch: Batch,
        dropout_key: Array | None = None,
        totals: Totals | None = None,
    ) -> tuple[Array, Metrics]:
        """Returns (loss, metrics) of a packed ranking batch with `target_index` [B], float32.

        Args:
          model: the model.
          batch: as for `candidate_log_likelihood`, with `target_index` int32 [B].
          dropout_key: a key in training, None otherwise.
          totals: those of a larger batch that this one is a part of; None: its own.
        """
        num_tokens, target_index = batch["num_tokens"], batch["target_index"]
        is_counted = _is_ranked(batch)
        sums = candidate_log_likelihood(model, batch, dropout_key)
        means = sums / jnp.maximum(num_tokens, 1)
        values = self.scale * (means if self.normaliser == "mean" else sums)
        listwise, num_hits = listwise_cross_entropy(values, target_index, is_counted)
        target = jnp.where(is_counted, target_index, 0)[:, None]
        target_means = jnp.take_along_axis(means, target, axis=-1)[:, 0]
        nll = -jnp.sum(jnp.where(is_counted, target_means, 0.0))
        (num_rows,) = self.totals(batch) if totals is None else totals
        metrics = {
            "listwise": listwise / num_rows,
            "nll_per_token": nll / num_rows,
            "hr@1": num_hits / num_rows,
        }
        return (listwise + self.nll_weight * nll) / num_rows, metrics


def _is_ranked(batch: Batch) -> Array:
    """Returns which rows have a target among candidates, bool [B]."""
    return (batch["target_index"] >= 0) & jnp.any(batch["num_tokens"] > 0, axis=1)


Objective = NegativeLogLikelihood | Listwise
