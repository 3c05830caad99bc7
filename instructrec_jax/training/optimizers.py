"""Optimizers and learning-rate schedules, as gin files name them; the work is optax's."""

import optax


def constant(*, learning_rate: float, warmup_steps: int = 0) -> optax.Schedule:
    """Returns a constant rate after a linear warm-up from 0."""
    if warmup_steps == 0:
        return optax.constant_schedule(learning_rate)
    return optax.linear_schedule(0.0, learning_rate, warmup_steps)


def linear_decay(
    *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Returns a linear warm-up from 0, then a linear decay to 0 at `total_steps`."""
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
            optax.linear_schedule(learning_rate, 0.0, max(total_steps - warmup_steps, 1)),
        ],
        [warmup_steps],
    )


def adafactor(
    *,
    learning_rate: optax.Schedule,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    multiply_by_parameter_scale: bool = True,
    weight_decay_rate: float | None = None,
) -> optax.GradientTransformation:
    """Returns Adafactor (Shazeer and Stern, ICML 2018), T5's own optimizer, without momentum."""
    return optax.adafactor(
        learning_rate=learning_rate,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        weight_decay_rate=weight_decay_rate,
    )


def adamw(
    *,
    learning_rate: optax.Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Returns AdamW behind a clip of the global gradient norm (None: no clip)."""
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    if clip_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam)
