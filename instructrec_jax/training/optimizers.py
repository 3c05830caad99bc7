"""Optimizers and learning-rate schedules, as gin files name them.

Each knows its settings, so that a run's manifest can say what it was trained with.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from instructrec_jax.settings import Count, Natural, NotNegative, Positive, Share, check_arguments
from instructrec_jax.training.adafactor import AdafactorSettings
from instructrec_jax.training.adafactor import adafactor as adafactor_transformation

Settings = Mapping[str, Any]


class Optimizer(optax.GradientTransformation):
    """An optax transformation that knows its settings.

    Attributes:
      settings: its name and every argument; JSON values only.
    """

    settings: Settings

    def __new__(
        cls, transformation: optax.GradientTransformation, settings: Settings
    ) -> "Optimizer":
        """Returns the transformation with its settings."""
        made = super().__new__(cls, transformation.init, transformation.update)
        made.settings = settings
        return made


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate as a function of the steps taken, which knows its settings.

    Attributes:
      rate: maps the number of steps that the optimizer has taken, int32, to the rate.
      settings: name and arguments; JSON values only.
    """

    rate: Callable[[Any], Any]
    settings: Settings

    def __call__(self, count: Any) -> Any:
        """Returns the rate of the step after `count` steps."""
        return self.rate(count)


def describe(thing: Any) -> Any:
    """Returns the settings of an optimizer or schedule for a manifest, or else its kind's name."""
    return getattr(thing, "settings", type(thing).__name__)


def constant(*, learning_rate: NotNegative, warmup_steps: Natural = 0) -> Schedule:
    """Returns a constant rate after a linear warm-up from 0.

    T5X's factors "constant" and, with a warm-up, "constant * linear_warmup".
    """
    check_arguments(constant, locals())
    settings = _described("constant", locals())
    if warmup_steps == 0:
        return Schedule(optax.constant_schedule(learning_rate), settings)
    return Schedule(optax.linear_schedule(0.0, learning_rate, warmup_steps), settings)


def rsqrt_decay(
    *,
    learning_rate: NotNegative = 1.0,
    warmup_steps: Count = 10_000,
    is_ramped: bool = False,
) -> Schedule:
    """Returns learning_rate / sqrt(max(steps, warmup_steps)), T5's schedule of pretraining.

    T5X's factors "constant * rsqrt_decay", with `is_ramped` "constant * linear_warmup *
    rsqrt_decay".

    Args:
      learning_rate: the rate times the square root of the steps; 1.0 gives 0.01 at 10,000 steps.
      warmup_steps: before them the rate is that of this step.
      is_ramped: whether it rises linearly from 0 instead.
    """
    check_arguments(rsqrt_decay, locals())
    settings = _described("rsqrt_decay", locals())

    def rate(count: Array) -> Array:
        value = learning_rate / jnp.sqrt(jnp.maximum(count, warmup_steps))
        return value * jnp.minimum(1.0, count / warmup_steps) if is_ramped else value

    return Schedule(rate, settings)


def linear_decay(
    *, learning_rate: NotNegative, total_steps: Count, warmup_steps: Natural = 0
) -> Schedule:
    """Returns a linear warm-up from 0, then a linear decay to 0 at `total_steps`.

    T5X's factor "linear_decay" with decay_factor 1 / (total_steps - warmup_steps), but for its
    least rate of 1e-8.
    """
    check_arguments(linear_decay, locals())
    settings = _described("linear_decay", locals())
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
            optax.linear_schedule(learning_rate, 0.0, max(total_steps - warmup_steps, 1)),
        ],
        [warmup_steps],
    )
    return Schedule(rate, settings)


def adafactor(
    *,
    learning_rate: optax.Schedule,
    decay_rate: Positive = 0.8,
    step_offset: Natural = 0,
    clipping_threshold: Positive | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    weight_decay_rate: NotNegative | None = None,
    min_dim_size_to_factor: Count = 128,
    clip_norm: Positive | None = None,
) -> Optimizer:
    """Returns Adafactor as T5X has it, T5's own optimizer, without momentum.

    Args:
      learning_rate: relative to each parameter's root mean square, unless
        `multiply_by_parameter_scale` is False.
      decay_rate: see `adafactor.AdafactorSettings`, as for the others.
      step_offset: steps of pretraining that the decay does not count.
      clipping_threshold: greatest root mean square of an update, parameter by parameter.
      multiply_by_parameter_scale: whether rates are relative.
      weight_decay_rate: share of a parameter taken off each step.
      min_dim_size_to_factor: from this size of both sides on, matrices are factored.
      clip_norm: greatest norm of the whole gradient (T5X's global_norm_clip_threshold); None: any.
    """
    check_arguments(adafactor, locals())
    settings = _described("adafactor", locals())
    constants = {
        name: value
        for name, value in settings.items()
        if name in {field.name for field in dataclasses.fields(AdafactorSettings)}
    }
    transformation = adafactor_transformation(learning_rate, AdafactorSettings(**constants))
    return Optimizer(_clipped(transformation, clip_norm), settings)


def adamw(
    *,
    learning_rate: optax.Schedule,
    b1: Share = 0.9,
    b2: Share = 0.999,
    weight_decay: NotNegative = 0.0,
    clip_norm: Positive | None = 1.0,
) -> Optimizer:
    """Returns AdamW after a clip of the global gradient norm (None: no clip)."""
    check_arguments(adamw, locals())
    settings = _described("adamw", locals())
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    return Optimizer(_clipped(adam, clip_norm), settings)


def skipping_non_finite(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that does nothing, and changes no state, on what is not finite.

    `optax.apply_if_finite` looks at no loss, and keeps counts in the state, so that a checkpoint
    without it could not go on with it.

    Args:
      optimizer: does it otherwise; the step gives it the loss as `value`.
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(
        gradient: Any, state: Any, parameters: Any = None, *, value: Array, **more: Any
    ) -> tuple[Any, Any]:
        is_finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        updates, after = inner.update(gradient, state, parameters, value=value, **more)
        updates = jax.tree.map(lambda change: jnp.where(is_finite, change, 0), updates)
        after = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), after, state)
        return updates, after

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _clipped(
    transformation: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
    """Returns the transformation after a clip of the global gradient norm, if one is wanted."""
    if clip_norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(clip_norm), transformation)


def _described(name: str, arguments: Settings) -> dict[str, Any]:
    """Returns a name and arguments as JSON values."""
    plain = (bool, int, float, str, type(None))
    values = {k: v if isinstance(v, plain) else describe(v) for k, v in arguments.items()}
    return {"name": name, **values}
