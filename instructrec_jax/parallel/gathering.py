"""Weights, stored split over devices, gathered for their products; their gradients go back."""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

Weights = tuple[jax.Array, ...]
Shardings = tuple[NamedSharding, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(weights: Weights, stored: Shardings, used: Shardings) -> Weights:
    """Returns weights split as they are used; their gradients are split as they are stored.

    Those of one dtype that are gathered over the same devices travel as one array.

    Args:
      weights: of any shapes.
      stored: how each is split before.
      used: how each is split afterwards.
    """
    return _gathered(weights, stored, used)


def _gathered(weights: Weights, stored: Shardings, used: Shardings) -> Weights:
    found = dict(enumerate(map(_resharded, weights, stored, used)))
    alike: dict[Any, dict[int, int]] = collections.defaultdict(dict)
    for place, weight in enumerate(weights):
        if (axis := _gathered_axis(stored[place], used[place])) is not None:
            others = frozenset(filter(None, used[place].spec))  # a low-rank factor has none
            alike[stored[place].spec[axis], others, weight.shape[axis], weight.dtype][place] = axis
    for (names, *_), axes in alike.items():
        if len(axes) > 1:
            together = jax.shard_map(
                functools.partial(_gathered_as_one, names=names, axes=tuple(axes.values())),
                mesh=stored[0].mesh,
                in_specs=tuple(stored[place].spec for place in axes),
                out_specs=tuple(used[place].spec for place in axes),
            )
            found.update(zip(axes, together(*(weights[place] for place in axes)), strict=True))
    return tuple(found[place] for place in range(len(weights)))


def _gathered_axis(stored: NamedSharding, used: NamedSharding) -> int | None:
    """Returns the one axis along which a weight is gathered whole, None where that is not so."""
    both = zip(stored.spec, used.spec, strict=True)
    differ = [axis for axis, (before, after) in enumerate(both) if before != after]
    return differ[0] if len(differ) == 1 and used.spec[differ[0]] is None else None


def _gathered_as_one(
    *shards: jax.Array, names: str | Sequence[str], axes: Sequence[int]
) -> Weights:
    """Returns whole weights of a device's shards, by one exchange of them all."""
    fronts = [jnp.moveaxis(shard, axis, 0) for shard, axis in zip(shards, axes, strict=True)]
    columns = [front.reshape(len(front), -1) for front in fronts]
    rows = jax.lax.all_gather(jnp.concatenate(columns, 1), names, tiled=True, to="invarying")
    ends = [sum(c.shape[1] for c in columns[: index + 1]) for index in range(len(columns) - 1)]
    return tuple(
        jnp.moveaxis(part.reshape(-1, *front.shape[1:]), 0, axis)
        for part, front, axis in zip(jnp.split(rows, ends, 1), fronts, axes, strict=True)
    )


def _resharded(array: jax.Array, before: NamedSharding, after: NamedSharding) -> jax.Array:
    # Both ends are fixed: else the compiler gathers before a cast to a narrower dtype, and gets the
    # gradient of an embedding by an all-to-all of activations.
    held = jax.lax.with_sharding_constraint(array, before)
    return jax.lax.with_sharding_constraint(held, after)


# The rule for gradients does not call `gather`: remat policies would see one operation, no weights.
gather.defvjp(
    lambda weights, stored, used: (_gathered(weights, stored, used), None),
    lambda stored, used, _, gradients: (tuple(map(_resharded, gradients, used, stored)),),
)
