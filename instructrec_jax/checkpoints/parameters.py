"""The neutral form of a model's parameters, in which every foreign checkpoint is read and written.

Its names and shapes are those of an unscanned T5X checkpoint, dotted: one array a layer, attention
kernels as matrices. `encoder.layers_0.attention.query.kernel` is [emb, heads * head_dim] there and
the slice 0 of `encoder.layers.attention.query.kernel` [layers, emb, heads, head_dim] in our model.

Arrays pass one by one: nothing here ever holds a second copy of the whole model.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from instructrec_jax.errors import UserError
from instructrec_jax.models.adapters import parameters_by_name
from instructrec_jax.models.t5 import T5, T5Config
from instructrec_jax.settings import shown

Shape = tuple[int, ...]
Read = Callable[[str], np.ndarray]
# What a checkpoint may store a parameter as; float32 holds each of them exactly.
STORED_DTYPES = ("float32", "bfloat16")
STACK = ".layers."
_ALIGNMENT = 64  # bytes
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of our model and the neutral arrays it consists of.

    Attributes:
      native: its dotted name in the model, as `checkpoints.store` writes it without `model.`.
      neutral: the neutral names, one per layer, or one.
      shape: of the model's array.
      is_stacked: whether axis 0 runs over layers.
      neutral_shape: of each neutral array.
      axes: logical axes of the model's array, without that of the layers.
    """

    native: str
    neutral: tuple[str, ...]
    shape: Shape
    is_stacked: bool
    neutral_shape: Shape
    axes: tuple[str, ...]

    @property
    def layer_shape(self) -> Shape:
        """Shape of one layer of the model's array."""
        return self.shape[1:] if self.is_stacked else self.shape


def parameters(model: T5) -> list[Parameter]:
    """Returns the parameters of a model, or of its shapes, in the order of its pytree."""
    return [
        _parameter(name, tuple(param.shape), tuple(param.get_metadata()["logical_axes"]))
        for name, param in parameters_by_name(model).items()
    ]


def neutral_shapes(config: T5Config) -> dict[str, Shape]:
    """Returns name and shape of every neutral array of a model of these sizes.

    Layers of one parameter follow each other. Nothing is computed or allocated.

    Example:
      For small, 512 wide with 6 heads of 64: `encoder.layers_0.attention.query.kernel` is
      (512, 384).
    """
    return {name: p.neutral_shape for p in config_parameters(config) for name in p.neutral}


@functools.cache
def config_parameters(config: T5Config) -> tuple[Parameter, ...]:
    """Returns the parameters of a model of these sizes; nothing is computed or allocated."""
    return tuple(parameters(jax.eval_shape(lambda: T5(config, jax.random.key(0)))))


def assemble(abstract_model: T5, read: Read) -> T5:
    """Builds a model from neutral arrays, each read once and placed shard by shard.

    Beside the shards of this process's own devices, host memory holds one neutral array at a time.

    Args:
      abstract_model: the model's shapes with their shardings, as `training.state.abstract_model`
        returns them.
      read: gives the neutral array of a name, float32 or bfloat16.

    Returns:
      The model, its arrays placed as `abstract_model` says.

    Raises:
      UserError: naming the first array whose shape, dtype or values cannot be a T5's parameters.
    """
    leaves, structure = jax.tree.flatten(abstract_model)
    found = [
        _assemble_one(parameter, leaf, read)
        for parameter, leaf in zip(parameters(abstract_model), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found)


def to_neutral(parameter: Parameter, layer: np.ndarray) -> np.ndarray:
    """Returns one layer of a parameter in its neutral shape."""
    return layer.reshape(parameter.neutral_shape)


def checked_step(stated: Any, where: Any) -> int:
    """Returns the training step that a checkpoint states, which fits an int32.

    Args:
      stated: a text or an array.
      where: the checkpoint, as the user names it.

    Raises:
      UserError: if it is anything else.
    """
    text = str(stated)
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**31:
        return int(text)
    raise UserError(
        f"{where} says that its step is {shown(stated)}; expected a whole number from 0 to "
        f"{2**31 - 1}: get the checkpoint again"
    )


def check_found(
    where: Any,
    wanted: Mapping[str, Shape],
    found: Mapping[str, tuple[Shape, str]],
    *,
    dtypes: Sequence[str] | None = STORED_DTYPES,
    hint: str = "choose the gin/models file of its size, or another checkpoint",
) -> None:
    """Checks names, shapes and dtypes of a checkpoint before anything of it is read.

    Args:
      where: the checkpoint, as the user names it.
      wanted: shape of each array by its name, such as `neutral_shapes` returns them.
      found: (shape, dtype name such as "float32") of each array that is there.
      dtypes: those that are taken; None: any.
      hint: what the user can do where anything but a dtype differs.

    Raises:
      UserError: with all that is missing, left over, of another shape or of a dtype not taken.
    """
    problems = [f"missing: {name} {wanted[name]}" for name in wanted if name not in found]
    problems += [f"left over: {name} {found[name][0]}" for name in found if name not in wanted]
    both = [name for name in wanted if name in found]
    problems += [
        f"{name} is {found[name][0]} there, expected {wanted[name]}"
        for name in both
        if tuple(found[name][0]) != tuple(wanted[name])
    ]
    if dtypes is not None and (others := [n for n in both if found[n][1] not in dtypes]):
        hint = hint if problems else f"save it as {dtypes[0]}"
        problems += [f"{n} is {found[n][1]} there, expected {' or '.join(dtypes)}" for n in others]
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + ("; ..." if len(problems) > _SHOWN else "")
        raise UserError(
            f"checkpoint {where} does not fit the model: {len(problems)} differences: "
            f"{shown}; {hint}"
        )


def infer_config(where: Any, shapes: Mapping[str, Shape], **known: Any) -> T5Config:
    """Returns the sizes of the model that neutral arrays of these shapes belong to.

    Args:
      where: the checkpoint, as the user names it.
      shapes: of the neutral arrays.
      **known: fields of T5Config that shapes do not show, such as relative_max_distance.

    Raises:
      UserError: if an array that shows a size is missing or is no T5's; others are not checked.
    """
    sized = {
        "token_embedder.embedding": 2,
        "encoder.relpos_bias.rel_embedding": 2,
        "encoder.layers_0.attention.query.kernel": 2,
        "encoder.layers_0.mlp.wi_0.kernel": 2,
    }
    for name, rank in sized.items():
        if name not in shapes or len(shapes[name]) != rank or 0 in shapes[name]:
            raise UserError(
                f"{where} is no checkpoint of a T5 1.1: {name} is "
                f"{shapes.get(name, 'missing')}; expected {rank} axes. T5 1.1 and Flan-T5 are "
                "taken (gated GELU, relative positions)"
            )
    (vocab_size, emb_dim), (num_heads, buckets), (_, heads_width), (_, mlp_dim) = (
        shapes[name] for name in sized
    )
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=max(heads_width // num_heads, 1),
        mlp_dim=mlp_dim,
        num_encoder_layers=_num_layers(shapes, "encoder"),
        num_decoder_layers=_num_layers(shapes, "decoder"),
        relative_buckets=buckets,
        **known,
    )


def _num_layers(shapes: Mapping[str, Shape], stack: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{stack}.layers_")})


def _parameter(native: str, shape: Shape, axes: tuple[str, ...]) -> Parameter:
    is_stacked = len(shape) == len(axes) + 1
    layer_shape = shape[1:] if is_stacked else shape
    name = f"decoder.{native}" if native.startswith("logits_dense.") else native
    names: tuple[str, ...] = (name,)
    if is_stacked:
        before, _, after = name.partition(STACK)
        names = tuple(f"{before}.layers_{index}.{after}" for index in range(shape[0]))
    return Parameter(native, names, shape, is_stacked, _merge_heads(layer_shape, axes), axes)


def _merge_heads(shape: Shape, axes: tuple[str, ...]) -> Shape:
    """Returns the shape with heads and the width of one head as a single axis."""
    if "kv" not in axes:
        return shape
    start = axes.index("heads")
    assert axes[start + 1] == "kv"
    return (*shape[:start], math.prod(shape[start : start + 2]), *shape[start + 2 :])


def _assemble_one(parameter: Parameter, leaf: jax.ShapeDtypeStruct, read: Read) -> jax.Array:
    """Returns one array of the model."""
    host = _shards_on_host(parameter, leaf, read)
    take = lambda place: host[_key(place, parameter.shape)]  # noqa: E731
    return jax.make_array_from_callback(parameter.shape, leaf.sharding, take)


def _shards_on_host(
    parameter: Parameter, leaf: jax.ShapeDtypeStruct, read: Read
) -> dict[tuple[tuple[int, int], ...], np.ndarray]:
    """Returns the shards of this process's devices, filled layer by layer."""
    places = leaf.sharding.addressable_devices_indices_map(parameter.shape).values()
    shards = {_key(place, parameter.shape): place for place in places}
    host = {key: _empty([stop - start for start, stop in key], leaf.dtype) for key in shards}
    for layer, name in enumerate(parameter.neutral):
        array = _checked(name, read(name), parameter).reshape(parameter.layer_shape)
        for key, place in shards.items():
            if not parameter.is_stacked:
                host[key][...] = array[place]
            elif key[0][0] <= layer < key[0][1]:
                host[key][layer - key[0][0]] = array[place[1:]]
    return host


def _empty(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array at an address where a CPU device takes it as it is, without a copy."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _key(place: tuple[slice, ...], shape: Shape) -> tuple[tuple[int, int], ...]:
    """Returns first and last row of a shard along each axis: slices cannot be compared."""
    return tuple(part.indices(size)[:2] for part, size in zip(place, shape, strict=True))


def _checked(name: str, array: np.ndarray, parameter: Parameter) -> np.ndarray:
    """Returns the array if it can be this parameter."""
    if array.shape != parameter.neutral_shape or str(array.dtype) not in STORED_DTYPES:
        raise UserError(
            f"parameter {name} is {array.dtype} {array.shape}; expected "
            f"{' or '.join(STORED_DTYPES)} {parameter.neutral_shape}: choose the gin/models file "
            "of the checkpoint's size, or another checkpoint"
        )
    check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises where a parameter holds a value that is not finite.

    Raises:
      UserError: naming the parameter, how many values are bad and where the first is.
    """
    # A finite sum of finite float32 is the common case, and needs no second array.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise UserError(
            f"parameter {name} holds {len(bad)} non-finite values, the first at "
            f"{tuple(map(int, bad[0]))}: {array[tuple(bad[0])]}; expected finite ones: the "
            "checkpoint is of a training that diverged, or damaged; take another"
        )
