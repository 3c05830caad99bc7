"""Where a model says by logical axes how its arrays are split over devices.

The model knows neither devices nor rules: who runs it gives both, as a `Constraints`, around the
code that traces it. Without one, as on a single device, every function here does nothing.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

Axes = tuple[str | None, ...]


class Constraints(Protocol):
    """Fixes how arrays are split, so that the compiler has no choice."""

    def constrain(self, array: Array, axes: Axes) -> Array:
        """Returns an activation, split as the rules of its last axes say; None: as it comes."""
        ...

    def gather(self, weight: Array, axes: Axes) -> Array:
        """Returns a weight ready for a product; its gradient is split as the weight is stored."""
        ...


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


def in_use(param: nnx.Param, dtype: DTypeLike) -> Array:
    """Returns a parameter's array for a product: in its dtype, gathered where it is stored split.

    The gathered array is for one product: no policy of `T5Config.remat_policy` stores it.
    """
    constraints, weight = _current.get(), param[...].astype(dtype)
    if constraints is None:
        return weight
    return constraints.gather(weight, tuple(param.get_metadata()["logical_axes"]))
