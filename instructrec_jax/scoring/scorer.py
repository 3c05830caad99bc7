"""Log-likelihoods of candidates on a mesh, from token requests to numpy results."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from instructrec_jax.models import shared_decoding
from instructrec_jax.models.shared_decoding import FlatInstructions, Memory
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import DEFAULT_RULES
from instructrec_jax.parallel.sharding import batch_sharding, num_batch_shares
from instructrec_jax.scoring.fitting import fit_shapes
from instructrec_jax.scoring.requests import TokenRequest
from instructrec_jax.scoring.schedule import EncodeStep, num_halves, schedule
from instructrec_jax.scoring.shapes import Shapes

_FAR_LARGER = 8  # times the instruction tokens that the shapes were fitted to


class Scorer:
    """Scores requests of any number, in an order and in shapes that waste little.

    Each instruction is encoded once and each distinct prefix of its candidates is decoded once. It
    compiles once for each shape of step; with `shapes` given, what it computes for some requests
    depends on nothing but them, the model and the mesh.
    """

    def __init__(self, mesh: Mesh, shapes: Shapes | None = None) -> None:
        """Makes a scorer.

        Args:
          mesh: the device mesh; steps are split over "data" and "fsdp", the model lies as placed.
          shapes: array sizes, from `fit_shapes`; None: fitted to the requests of the first call,
            and anew to those of a far larger one.
        """
        self._num_groups = num_batch_shares(mesh)
        self._shapes = shapes
        self._fitted: Shapes | None = None
        self._fitted_to = 0  # instruction tokens
        self._compiled: set[Any] = set()
        self._sharding = batch_sharding(mesh)
        self._memory_sharding = NamedSharding(
            mesh, PartitionSpec(DEFAULT_RULES["batch"], None, None, DEFAULT_RULES["heads"])
        )
        self._encode = jax.jit(
            functools.partial(_encode_into, encode=_by_group(shared_decoding.encode)),
            in_shardings=(None, self._memory_sharding, self._sharding, None),
            out_shardings=self._memory_sharding,
            donate_argnums=1,
        )
        self._decode = jax.jit(
            _by_group(shared_decoding.log_likelihood),
            in_shardings=(None, self._memory_sharding, self._sharding),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._make_memory = jax.jit(
            jnp.zeros, static_argnums=(0, 1), out_shardings=self._memory_sharding
        )

    @property
    def num_compiled(self) -> int:
        """How many step shapes were compiled so far."""
        return len(self._compiled)

    def __call__(self, model: T5, requests: Sequence[TokenRequest]) -> list[np.ndarray]:
        """Returns the log-likelihoods of each request's candidates.

        Args:
          model: the model, placed on the mesh.
          requests: any number.

        Returns:
          For each request, in their order, float32 [c]: natural log, sum over the candidate's
          tokens including EOS.
        """
        if not requests:
            return []
        shapes = self._shapes_for(requests).grown(requests)
        found = [np.zeros(len(request.candidates), np.float32) for request in requests]
        for log_likelihood, places in list(self._run(model, requests, shapes)):
            for values, group in zip(np.asarray(log_likelihood), places, strict=True):
                for value, (request, candidate) in zip(values, group, strict=False):
                    found[request][candidate] = value
        return found

    def _shapes_for(self, requests: Sequence[TokenRequest]) -> Shapes:
        """Returns the given shapes, or those fitted to a call like this one."""
        if self._shapes is not None:
            return self._shapes
        num_tokens = sum(len(request.instruction) for request in requests)
        if self._fitted is None or num_tokens > _FAR_LARGER * self._fitted_to:
            self._fitted = fit_shapes(requests, num_groups=self._num_groups)
            self._fitted_to = num_tokens
        return self._fitted

    def _run(
        self, model: T5, requests: Sequence[TokenRequest], shapes: Shapes
    ) -> Iterator[tuple[Array, Any]]:
        """Yields what each decoding step gave, still on its way from the device."""
        halves = num_halves(requests, shapes, num_groups=self._num_groups)
        memory = self._empty_memory(model, halves * shapes.num_tokens)
        for step in schedule(requests, shapes, num_groups=self._num_groups):
            arrays = step.instructions if isinstance(step, EncodeStep) else step.trees
            self._compiled.add(
                (jax.tree.structure(arrays), *map(np.shape, jax.tree.leaves(arrays)))
            )
            placed = jax.device_put(arrays, self._sharding)
            if isinstance(step, EncodeStep):
                memory = self._encode(model, memory, placed, np.int32(step.half))
            else:
                yield self._decode(model, memory, placed), step.places

    def _empty_memory(self, model: T5, num_tokens: int) -> Memory:
        config = model.config
        width = config.num_heads * config.head_dim
        shape = (self._num_groups, config.num_decoder_layers, num_tokens, width)
        return Memory(*(self._make_memory(shape, config.dtype) for _ in range(2)))


def _encode_into(
    model: T5,
    memory: Memory,
    instructions: FlatInstructions,
    half: Array,
    *,
    encode: Callable[..., Memory],
) -> Memory:
    """Returns the memory with one half replaced by what it takes to decode the instructions."""

    def replace(whole: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, half * part.shape[2], axis=2)

    return jax.tree.map(replace, memory, encode(model, instructions))


def _by_group(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a model and arrays [groups, ...] that treats each group alone."""

    def run(model: T5, *arrays: Any) -> Any:
        (num_groups,) = {len(leaf) for leaf in jax.tree.leaves(arrays)}
        if num_groups > 1:
            return jax.vmap(function, in_axes=(None, *(0 for _ in arrays)))(model, *arrays)
        # Without the axis: XLA's CPU code is a fourteenth slower with it.
        only = jax.tree.map(lambda leaf: leaf[0], arrays)
        return jax.tree.map(lambda leaf: leaf[None], function(model, *only))

    return run
