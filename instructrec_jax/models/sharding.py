"""Where a model says by logical axes how its arrays are split over devices.

The model knows neither devices nor rules: who runs it gives both, as a `Constraints`, around the
code that traces it. Without one, as on a single device, every function here does nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

Axes = tuple[str | None, ...]
Module = TypeVar("Module", bound=nnx.Module)


class Constraints(Protocol):
    """Fixes how arrays are split, so that the compiler has no choice."""

    def constrain(self, array: Array, axes: Axes) -> Array:
        """Returns an activation, split as the rules of its last axes say; None: as it comes."""
        ...

    def gather(self, weights: Sequence[Array], axes: Sequence[Axes]) -> Sequence[Array]:
        """Returns weights ready for products; their gradients are split as they are stored."""
        ...


class _Gathered(nnx.Variable):
    """A weight that is ready for products already."""


_current: ContextVar[Constraints | None] = ContextVar("constraints", default=None)


@contextlib.contextmanager
def constrained_by(constraints: Constraints | None) -> Iterator[None]:
    """Lets constraints hold for the models that are traced inside."""
    token = _current.set(constraints)
    try:
        yield
    finally:
        _current.reset(token)


def is_constrained() -> bool:
    """Whether models that are traced now are split over devices."""
    return _current.get() is not None


def constrain(array: Array, *axes: str | None) -> Array:
    """Returns an activation whose last axes are split as their rules say.

    Args:
      array: of any shape.
      *axes: logical axes of its last dimensions; None, and dimensions before: as they come.
    """
    constraints = _current.get()
    return array if constraints is None else constraints.constrain(array, axes)


def in_use(param: nnx.Variable, dtype: DTypeLike) -> Array:
    """Returns a parameter's array for a product: in its dtype, gathered where it is stored split.

    The gathered array is for one product: no policy of `T5Config.remat_policy` stores it.
    """
    constraints, weight = _current.get(), param[...].astype(dtype)
    if constraints is None or isinstance(param, _Gathered):
        return weight
    return constraints.gather([weight], [_logical_axes(param)])[0]


def kernels_in_use(layer: Module, dtype: DTypeLike) -> Module:
    """Returns a layer whose matrices are gathered together, in the dtype of their products."""
    constraints = _current.get()
    if constraints is None:
        return layer
    leaves, tree = jax.tree.flatten(layer, is_leaf=_is_matrix)
    matrices = [leaf for leaf in leaves if _is_matrix(leaf)]
    weights = [matrix[...].astype(dtype) for matrix in matrices]
    gathered = iter(constraints.gather(weights, list(map(_logical_axes, matrices))))
    ready = [
        _Gathered(next(gathered), **leaf.get_metadata()) if _is_matrix(leaf) else leaf
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, ready)


def _is_matrix(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Param) and len(leaf.shape) > 1


def _logical_axes(param: nnx.Variable) -> Axes:
    return tuple(param.get_metadata()["logical_axes"])
