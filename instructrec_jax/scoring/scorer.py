"""Log-likelihoods of candidates on a mesh: the order of the steps, and their running.

Instructions are taken longest first and laid side by side, as many as an encoding step holds. What
the decoder needs of them stays in one half of the memory until all their candidates are decoded;
meanwhile the other half takes the next instructions, so that a decoding step is full even where the
candidates of one encoding step do not fill it. With several groups of devices each step holds one
part for each of them.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from instructrec_jax.models import shared_decoding
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.models.shared_decoding import FlatInstructions, Memory, PrefixTrees
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import batch_sharding, num_batch_shares, place_whole
from instructrec_jax.scoring.prefix_trees import TokenRequest, Tokens, TreeBuilder, reading_order
from instructrec_jax.scoring.shapes import Shapes, fit_shapes

NUM_HALVES = 2
_Part = TypeVar("_Part", FlatInstructions, PrefixTrees)
Path = tuple[int, int]  # a request and one of its candidates


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeStep:
    """Instructions to encode.

    Attributes:
      instructions: arrays [groups, ...].
      half: which half of the memory they go to.
    """

    instructions: FlatInstructions
    half: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeStep:
    """Candidates to decode against what is in memory.

    Attributes:
      trees: arrays [groups, ...].
      paths: of each group, request and candidate of each path.
    """

    trees: PrefixTrees
    paths: Sequence[Sequence[Path]]


@dataclasses.dataclass
class _Waiting:
    """Candidates of one encoded instruction that are not decoded yet."""

    request: int
    candidates: list[tuple[Tokens, int]]
    begin: int
    length: int
    step: int
    row_length: int


def num_halves(requests: Sequence[TokenRequest], shapes: Shapes, *, num_groups: int = 1) -> int:
    """Returns how much memory `schedule` needs, in halves: one where a single step encodes all."""
    num_bins = len(list(shapes.encoding_bins(requests, num_groups=num_groups)))
    return min(NUM_HALVES, math.ceil(num_bins / num_groups))


def schedule(
    requests: Sequence[TokenRequest], shapes: Shapes, *, num_groups: int = 1
) -> Iterator[EncodeStep | DecodeStep]:
    """Yields the steps that score the requests."""
    waiting: list[collections.deque[_Waiting]] = [collections.deque() for _ in range(num_groups)]
    every = list(shapes.encoding_bins(requests, num_groups=num_groups))
    for step, first in enumerate(range(0, len(every), num_groups)):
        rows = every[first : first + num_groups]
        while any(queue and queue[0].step <= step - NUM_HALVES for queue in waiting):
            yield _decode_step(waiting, shapes)
        bins = [*rows, *([()] * (num_groups - len(rows)))]
        half = step % NUM_HALVES
        row_length = shapes.row_length(max(_lengths(requests, itertools.chain(*bins))))
        yield EncodeStep(
            instructions=_stacked([_flat(requests, b, shapes, row_length) for b in bins]), half=half
        )
        for queue, members in zip(waiting, bins, strict=True):
            begin = half * shapes.num_tokens
            for index in members:
                length = len(requests[index].instruction)
                order = reading_order(requests[index].candidates)
                queue.append(_Waiting(index, order, begin, length, step, row_length))
                begin += length
        while any(_num_nodes(queue) >= shapes.num_nodes for queue in waiting):
            yield _decode_step(waiting, shapes)
    while any(waiting):
        yield _decode_step(waiting, shapes)


def _lengths(requests: Sequence[TokenRequest], indices: Iterator[int]) -> list[int]:
    return [len(requests[index].instruction) for index in indices]


def _num_nodes(queue: collections.deque[_Waiting]) -> int:
    """Returns how many nodes wait, without what they share: at least as many as there will be."""
    return sum(len(tokens) for item in queue for tokens, _ in item.candidates)


def _flat(
    requests: Sequence[TokenRequest], members: Sequence[int], shapes: Shapes, row_length: int
) -> FlatInstructions:
    """Returns the instructions of some requests side by side."""
    num_rows = shapes.num_instructions(row_length)
    tokens, place = np.zeros((2, shapes.num_tokens), np.int32)
    begin, length = np.zeros((2, num_rows), np.int32)
    end = 0
    for row, index in enumerate(members):
        instruction = requests[index].instruction
        begin[row], length[row] = end, len(instruction)
        end += len(instruction)
        tokens[begin[row] : end] = instruction
        place[begin[row] : end] = row * row_length + np.arange(len(instruction))
    return FlatInstructions(
        tokens=tokens, begin=begin, length=length, place=place, row_length=row_length
    )


def _decode_step(waiting: Sequence[collections.deque[_Waiting]], shapes: Shapes) -> DecodeStep:
    """Takes as many candidates from each group's queue as a decoding step holds."""
    row_length = max(queue[0].row_length for queue in waiting if queue)
    longest = max(
        (len(t) for queue in waiting for item in queue for t, _ in item.candidates), default=1
    )
    shape = shapes.tree_shape(row_length, longest)
    parts, paths = [], []
    for queue in waiting:
        builder = TreeBuilder(shape)
        taken: list[Path] = []
        while queue:
            item = queue[0]
            number = builder.add(item.candidates, begin=item.begin, length=item.length)
            taken += [(item.request, index) for _, index in item.candidates[:number]]
            item.candidates = item.candidates[number:]
            if item.candidates:
                break
            queue.popleft()
        parts.append(builder.arrays())
        paths.append(taken)
    return DecodeStep(trees=_stacked(parts), paths=paths)


def _stacked(parts: Sequence[_Part]) -> _Part:
    """Returns the groups' arrays side by side, [groups, ...]."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *parts)


_FAR_LARGER = 8  # times the instruction tokens that the shapes were fitted to


class Scorer:
    """Scores requests of any number, in an order and in shapes that waste little.

    Each instruction is encoded once and each distinct prefix of its candidates is decoded once. It
    compiles once for each shape of step; with `shapes` given, what it computes for some requests
    depends on nothing but them, the model and the mesh.
    """

    def __init__(self, mesh: LogicalMesh, shapes: Shapes | None = None) -> None:
        """Makes a scorer.

        Args:
          mesh: the device mesh; steps are split over "data" and "fsdp".
          shapes: array sizes, from `fit_shapes`; None: fitted to the requests of the first call,
            and anew to those of a far larger one.
        """
        self._num_groups = num_batch_shares(mesh)
        self._shapes = shapes
        self._fitted: Shapes | None = None
        self._fitted_to = 0  # instruction tokens
        self._compiled: set[Any] = set()
        self._sharding = batch_sharding(mesh)
        self._programs = _programs(mesh)

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
        for log_likelihood, paths in list(self._run(model, requests, shapes)):
            for values, group in zip(np.asarray(log_likelihood), paths, strict=True):
                for value, (request, candidate) in zip(values, group, strict=False):
                    found[request][candidate] = value
        return found

    def lower(self, model: T5, requests: Sequence[TokenRequest]) -> dict[str, Any]:
        """Returns the lowered programs of the first steps of requests; nothing is allocated.

        Args:
          model: shapes with shardings.
          requests: at least one.

        Returns:
          By "encode" and "decode" what can be compiled and looked at.
        """
        shapes = self._shapes_for(requests).grown(requests)
        halves = num_halves(requests, shapes, num_groups=self._num_groups)
        shape = self._memory_shape(model, halves * shapes.num_tokens)
        part = jax.eval_shape(lambda: self._programs.make_memory(shape, model.config.dtype))
        memory = Memory(part, part)
        found: dict[str, Any] = {}
        for step in schedule(requests, shapes, num_groups=self._num_groups):
            if isinstance(step, EncodeStep) and "encode" not in found:
                half = jax.ShapeDtypeStruct((), np.int32)
                found["encode"] = self._programs.encode.lower(
                    model, memory, step.instructions, half
                )
            elif isinstance(step, DecodeStep):
                found["decode"] = self._programs.decode.lower(model, memory, step.trees)
                break
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
            placed = place_whole(arrays, self._sharding)
            if isinstance(step, EncodeStep):
                memory = self._programs.encode(model, memory, placed, np.int32(step.half))
            else:
                yield self._programs.decode(model, memory, placed), step.paths

    def _memory_shape(self, model: T5, num_tokens: int) -> tuple[int, ...]:
        c = model.config
        return (self._num_groups, c.num_decoder_layers, num_tokens, c.num_heads * c.head_dim)

    def _empty_memory(self, model: T5, num_tokens: int) -> Memory:
        shape = self._memory_shape(model, num_tokens)
        return Memory(*(self._programs.make_memory(shape, model.config.dtype) for _ in range(2)))


class _Programs(NamedTuple):
    """What runs on the devices, each compiled once for each shape."""

    encode: Any
    decode: Any
    make_memory: Callable[..., Array]


@functools.cache  # the scorers of a process share what is compiled for their mesh
def _programs(mesh: LogicalMesh) -> _Programs:
    memory = mesh.sharding("batch", None, None, "heads")
    by_group = functools.partial(_by_group, mesh)
    encode = jax.jit(
        functools.partial(_encode_into, encode=by_group(shared_decoding.encode)),
        in_shardings=(None, memory, batch_sharding(mesh), None),
        out_shardings=memory,
        donate_argnums=1,
    )
    decode = jax.jit(
        by_group(shared_decoding.log_likelihood),
        in_shardings=(None, memory, batch_sharding(mesh)),
        out_shardings=mesh.sharding(),
    )
    make_memory = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=memory)
    return _Programs(encode, decode, make_memory)


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


def _by_group(mesh: LogicalMesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a model and arrays [groups, ...] that treats each group alone."""

    def run(model: T5, *arrays: Any) -> Any:
        (num_groups,) = {len(leaf) for leaf in jax.tree.leaves(arrays)}
        with constrained_by(mesh.constraints):
            if num_groups > 1:
                return jax.vmap(function, in_axes=(None, *(0 for _ in arrays)))(model, *arrays)
            # Without the axis: XLA's CPU code is a fourteenth slower with it.
            only = jax.tree.map(lambda leaf: leaf[0], arrays)
            return jax.tree.map(lambda leaf: leaf[None], function(model, *only))

    return run
