"""Adafactor with T5X's semantics, on our stacked parameters.

Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (ICML
2018), algorithm 4 with relative step sizes (section 8), update clipping (section 6) and increasing
decay (section 7.2), in the form of T5X's optimizer, with which T5 and Flan-T5 were trained.

T5X sees a model as one array per layer and attention kernels as matrices. Ours has all layers of a
stack in one array and the heads on an axis of their own. So every mean, of second moments, of
parameter scales and of update clipping, is taken layer by layer and over T5X's matrices. Updates
then equal T5X's, and the second moments can be exchanged with its checkpoints.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from instructrec_jax.parallel.mesh import logical_axes
from instructrec_jax.settings import Count, Natural, NotNegative, Positive, check_fields

Shape = tuple[int, ...]


class SecondMoment(nnx.Variable):
    """A running mean of squared gradients; like a parameter it names its logical axes."""


class AdafactorState(NamedTuple):
    """What Adafactor remembers, by a parameter's dotted name in the model.

    The names are `checkpoints.parameters.Parameter.native`. A parameter has either an entry in
    `v_row` and in `v_col`, or one in `v`. One layer of an entry is T5X's array of the same name,
    but for `v` of attention kernels, whose heads have an axis of their own as in the model.

    Attributes:
      step: int32 scalar, steps taken, as in T5X. Decay and learning rate are functions of it.
      v_row: means along the longer axis of each matrix, float32 [layers, shorter].
      v_col: means along the shorter axis, float32 [layers, longer].
      v: of parameters that are not factored, float32, of the parameter's own shape.
    """

    step: Array
    v_row: Mapping[str, SecondMoment]
    v_col: Mapping[str, SecondMoment]
    v: Mapping[str, SecondMoment]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdafactorSettings:
    """Adafactor's constants; names and defaults are T5X's.

    Attributes:
      decay_rate: second moments decay by 1 - t^-decay_rate at step t = 1, 2, ...
      step_offset: steps that t does not count: those of pretraining, if its state is taken over.
      clipping_threshold: an update with a greater root mean square is scaled down to it; None
        leaves updates as they are.
      multiply_by_parameter_scale: whether rates are relative to the parameter's root mean square.
      weight_decay_rate: share of a parameter that is taken off each step, whatever the rate.
      min_dim_size_to_factor: matrices with a shorter side keep all second moments.
      epsilon1: added to squared gradients.
      epsilon2: least parameter scale.
    """

    decay_rate: Positive = 0.8
    step_offset: Natural = 0
    clipping_threshold: Positive | None = 1.0
    multiply_by_parameter_scale: bool = True
    weight_decay_rate: NotNegative | None = None
    min_dim_size_to_factor: Count = 128
    epsilon1: NotNegative = 1e-30
    epsilon2: NotNegative = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)


def adafactor(
    learning_rate: optax.Schedule, settings: AdafactorSettings
) -> optax.GradientTransformation:
    """Returns Adafactor as an optax transformation.

    Args:
      learning_rate: from the number of steps taken to the rate.
      settings: the constants.

    Returns:
      A transformation whose `update` needs the parameters; its state is an `AdafactorState`.
      Parameters are a model's `nnx.Param`s, or plain arrays, each then one layer.
    """

    def init(parameters: Any) -> AdafactorState:
        moments: dict[str, dict[str, SecondMoment]] = {"v_row": {}, "v_col": {}, "v": {}}
        for name, view in _views(parameters, settings).items():
            for kind, moment in view.initial_moments().items():
                moments[kind][name] = moment
        return AdafactorState(jnp.zeros((), jnp.int32), **moments)

    def update(
        gradients: Any, state: AdafactorState, parameters: Any = None
    ) -> tuple[Any, AdafactorState]:
        if parameters is None:
            raise ValueError("Adafactor's update needs the parameters")
        gradient_leaves, structure = jax.tree.flatten(gradients)
        views, leaves = _views(parameters, settings), jax.tree.leaves(parameters)
        taken = jnp.asarray(state.step - settings.step_offset, jnp.float32)
        # A step before the offset would have no decay: it counts as the first.
        decay = 1.0 - jnp.maximum(taken + 1.0, 1.0) ** -settings.decay_rate
        moments: dict[str, dict[str, SecondMoment]] = {"v_row": {}, "v_col": {}, "v": {}}
        updates = []
        for (name, view), leaf, gradient in zip(
            views.items(), leaves, gradient_leaves, strict=True
        ):
            old = {kind: getattr(state, kind).get(name) for kind in moments}
            step, new = view.scaled(gradient, old, decay)
            for kind, value in new.items():
                moments[kind][name] = old[kind].replace(value)
            step = view.change(leaf, step, learning_rate(state.step))
            updates.append(step.astype(leaf.dtype))
        return jax.tree.unflatten(structure, updates), AdafactorState(state.step + 1, **moments)

    return optax.GradientTransformation(init, update)


def find_state(optimizer_state: Any) -> AdafactorState | None:
    """Returns Adafactor's state inside an optimizer's state, None if there is none."""
    is_state = lambda node: isinstance(node, AdafactorState)  # noqa: E731
    found = [n for n in jax.tree.leaves(optimizer_state, is_leaf=is_state) if is_state(n)]
    return found[0] if found else None


def replace_state(optimizer_state: Any, state: AdafactorState) -> Any:
    """Returns the optimizer's state with another state of Adafactor inside."""
    is_state = lambda node: isinstance(node, AdafactorState)  # noqa: E731
    replace = lambda node: state if is_state(node) else node  # noqa: E731
    return jax.tree.map(replace, optimizer_state, is_leaf=is_state)


@dataclasses.dataclass(frozen=True)
class _View:
    """A parameter as T5X sees it: matrices or vectors, one per layer.

    Attributes:
      shape: of the parameter in our model.
      axes: its logical axes, one per dimension.
      matrix: [layers, ...] with heads and head_dim as one axis; without "layers" if not stacked.
      matrix_axes: logical axes of `matrix`; the merged axis is sharded as the heads.
      first: 1 if axis 0 runs over layers, else 0.
      settings: of the optimizer.
    """

    shape: Shape
    axes: tuple[str, ...] | None
    matrix: Shape
    matrix_axes: tuple[str, ...] | None
    first: int
    settings: AdafactorSettings

    @property
    def factored_axes(self) -> tuple[int, int] | None:
        """(shorter, longer) of the two longest axes of `matrix`; None if all moments are kept."""
        sizes = self.matrix[self.first :]
        if len(sizes) < 2:
            return None
        # Of two equal axes the later counts as the longer, as in T5X.
        *_, shorter, longer = np.argsort(sizes, kind="stable")
        if sizes[shorter] < self.settings.min_dim_size_to_factor:
            return None
        return int(shorter) + self.first, int(longer) + self.first

    @property
    def averaged(self) -> tuple[int, ...]:
        """The axes of `matrix` inside a layer."""
        return tuple(range(self.first, len(self.matrix)))

    def initial_moments(self) -> dict[str, SecondMoment]:
        """Returns zeros, as `v_row` and `v_col` or as `v`."""
        if self.factored_axes is None:
            return {"v": _zeros(self.shape, self.axes)}
        return {
            kind: _zeros(_without(self.matrix, axis), _without(self.matrix_axes, axis))
            for kind, axis in zip(("v_col", "v_row"), self.factored_axes, strict=True)
        }

    def scaled(
        self, gradient: Array, old: Mapping[str, Any], decay: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Returns (gradient over the root of its second moments, clipped; the new moments)."""
        gradient = gradient.astype(jnp.float32).reshape(self.matrix)
        square = gradient * gradient + self.settings.epsilon1
        mix = lambda kind, new: decay * old[kind][...].reshape(new.shape) + (1.0 - decay) * new  # noqa: E731
        if self.factored_axes is None:
            v = mix("v", square)
            step, new = gradient * v**-0.5, {"v": v.reshape(self.shape)}
        else:
            shorter, longer = self.factored_axes
            row = mix("v_row", jnp.mean(square, axis=longer))
            column = mix("v_col", jnp.mean(square, axis=shorter))
            place = shorter - int(longer < shorter)  # of the shorter axis in `row`
            row_factor = (row / jnp.mean(row, axis=place, keepdims=True)) ** -0.5
            step = gradient * jnp.expand_dims(row_factor, longer)
            step = step * jnp.expand_dims(column**-0.5, shorter)
            new = {"v_row": row, "v_col": column}
        if (threshold := self.settings.clipping_threshold) is not None:
            step = step / jnp.maximum(1.0, self._root_mean_square(step) / threshold)
        return step, new

    def change(self, parameter: Array, step: Array, rate: Array) -> Array:
        """Returns what is added to the parameter, in its own shape."""
        if self.settings.multiply_by_parameter_scale:
            scale = self._root_mean_square(parameter.reshape(self.matrix))
            rate = rate * jnp.maximum(scale, self.settings.epsilon2)
        change = -(rate * step).reshape(self.shape)
        if self.settings.weight_decay_rate is not None:
            change = change - self.settings.weight_decay_rate * parameter
        return change

    def _root_mean_square(self, array: Array) -> Array:
        """Returns one number per layer, [layers, 1, ...]."""
        return jnp.sqrt(jnp.mean(array * array, axis=self.averaged, keepdims=True))


def _views(parameters: Any, settings: AdafactorSettings) -> dict[str, _View]:
    """Returns how T5X sees each parameter, by dotted name, in the order of the pytree's leaves."""
    is_param = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters, is_leaf=is_param):
        if arrays := jax.tree.leaves(leaf):  # none where the parameter is masked out
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            axes = logical_axes(leaf) if is_param(leaf) else None
            found[name] = _view(tuple(arrays[0].shape), axes, settings)
    return found


def _view(shape: Shape, axes: tuple[str, ...] | None, settings: AdafactorSettings) -> _View:
    """Returns the view of a parameter; without logical axes it is one layer as it stands."""
    first = int(axes is not None and axes[0] == "layers")
    if axes is None or "kv" not in axes:
        return _View(shape, axes, shape, axes, first, settings)
    kv = axes.index("kv")  # after "heads"
    matrix = (*shape[: kv - 1], math.prod(shape[kv - 1 : kv + 1]), *shape[kv + 1 :])
    return _View(shape, axes, matrix, _without(axes, kv), first, settings)


def _zeros(shape: Shape, axes: tuple[str, ...] | None) -> SecondMoment:
    zeros = jnp.zeros(shape, jnp.float32)
    return SecondMoment(zeros) if axes is None else SecondMoment(zeros, logical_axes=axes)


def _without(values: Any, index: int) -> Any:
    """Returns a tuple without one of its entries; None stays None."""
    return None if values is None else (*values[:index], *values[index + 1 :])
