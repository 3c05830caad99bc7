"""How T5X names and shapes its arrays, against the neutral form of `checkpoints.parameters`.

T5X's plain T5 stores one array a layer, in the neutral form itself. Its scalable T5 keeps heads
apart in attention kernels, gives every layer a relative-position table of its own and, when
scanned, stacks the layers of a parameter along axis 1:

  neutral                                          scanned
  encoder.layers_3.mlp.wi_0.kernel [emb, mlp]      encoder.encoder.mlp.wi_0.kernel [emb, L, mlp]
  decoder.layers_3.mlp.wo.kernel [mlp, emb]        decoder.decoder.mlp.wo.kernel [mlp, L, emb]
  encoder.layers_3.attention.query.kernel          encoder.encoder.attention.query.kernel
    [emb, heads * head_dim]                          [emb, L, heads, head_dim]
  encoder.relpos_bias.rel_embedding                encoder.encoder.relpos_bias.rel_embedding
    [heads, buckets]                                 [heads, L, buckets], all L tables equal

Adafactor's state of a parameter has four slots: `v` of the parameter's shape, or, where factored,
`v_row` and `v_col`, each without one axis; `m` with momentum; a slot not used is one zero. Plain T5
keeps in `v_row` the shorter axis of a matrix and in `v_col` the longer one, and factors where both
are long; scalable T5 keeps in `v_row` the axis of the residual stream, and factors every kernel of
a stack. The estimate of the second moments is the same: the product of both over their mean.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from instructrec_jax.checkpoints.parameters import Parameter, Shape, check_finite
from instructrec_jax.errors import UserError

Slots = Mapping[str, np.ndarray]
TARGET, PARAM_STATES = "target.", "state.param_states."
SLOTS = ("m", "v", "v_col", "v_row")
KINDS = ("v", "v_row", "v_col")  # the slots that our optimizer keeps
UNUSED: Shape = (1,)
LAYERS_AXIS = 1
_SCANNED = re.compile(r"(encoder|decoder)\.\1\.(.+)")
_LAYER = re.compile(r"(encoder|decoder)\.layers_(\d+)\.(.+)")
_TABLE = "relpos_bias.rel_embedding"
# Kernels whose first axes are not the residual stream's.
_ENDS_IN_EMB = re.compile(r"\.(?:out|wo)\.kernel$")
_HEADS = re.compile(r"attention\.(?:query|key|value|out)\.kernel$")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a neutral array is in a checkpoint.

    Attributes:
      stored: the name there, without TARGET.
      layer: index along the layers' axis, None where the whole array is meant.
    """

    stored: str
    layer: int | None = None


Places = tuple[Place, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedSlots:
    """Adafactor's state in a checkpoint, none of it read; without momentum.

    Attributes:
      step: number of steps the optimizer has taken.
      read: gives the slots of a neutral name, float32, shaped as plain T5 has them; asked layer by
        layer of one parameter after another.
    """

    step: int
    read: Callable[[str], Slots]


def find_places(stored: Mapping[str, Shape]) -> dict[str, Places]:
    """Returns where each neutral array is; several places must hold the same values.

    Args:
      stored: shape of every parameter in the checkpoint, by name without `target.`.

    Returns:
      By neutral name; a name that T5X would not write stands for itself.

    Raises:
      UserError: if a stacked array has no axis of layers.
    """
    places: dict[str, list[Place]] = {}
    for name, shape in stored.items():
        if found := _SCANNED.fullmatch(name):
            stack, rest = found.groups()
            if len(shape) <= LAYERS_AXIS:
                raise UserError(
                    f"target.{name} has shape {shape}; expected a stack of layers along axis "
                    f"{LAYERS_AXIS}, as T5X writes scanned models (param_scan_axis = 1)"
                )
            for layer in range(shape[LAYERS_AXIS]):
                neutral = _layer_name(stack, layer, rest)
                places.setdefault(neutral, []).append(Place(name, layer))
        elif (found := _LAYER.fullmatch(name)) and found[3] == _TABLE:
            places.setdefault(f"{found[1]}.{_TABLE}", []).append(Place(name))
        else:
            places.setdefault(name, []).append(Place(name))
    return {name: tuple(found) for name, found in places.items()}


def neutral_shape(name: str, shape: Shape, place: Place) -> Shape:
    """Returns the neutral shape of what is at `place` in an array of this shape."""
    if place.layer is not None:
        shape = (*shape[:LAYERS_AXIS], *shape[LAYERS_AXIS + 1 :])
    if _HEADS.search(name) and len(shape) == 3:
        heads, axis = (0, 1) if _ENDS_IN_EMB.search(name) else (1, 2)
        merged = shape[heads] * shape[axis]
        return (*shape[:heads], merged, *shape[axis + 1 :])
    return shape


def to_neutral(name: str, array: np.ndarray, place: Place) -> np.ndarray:
    """Returns the neutral array at `place` of the array that is stored there."""
    shape = neutral_shape(name, array.shape, place)
    if place.layer is not None:
        array = array.take(place.layer, axis=LAYERS_AXIS)
    return array.reshape(shape)


def slots_to_neutral(name: str, slots: Slots, place: Place, shape: Shape) -> dict[str, np.ndarray]:
    """Returns Adafactor's slots of one neutral parameter from those that are stored.

    Args:
      name: the neutral parameter.
      slots: the arrays of SLOTS as stored.
      place: where the parameter is.
      shape: of the neutral parameter.
    """
    result = {
        slot: array if array.shape == UNUSED else to_neutral(name, array, place)
        for slot, array in slots.items()
        if slot in ("m", "v")
    }
    row, col = slots["v_row"], slots["v_col"]
    if row.shape == UNUSED and col.shape == UNUSED:
        return {**result, "v_row": row, "v_col": col}
    is_scalable = place.layer is not None or row.ndim + col.ndim > 2
    if not is_scalable:
        return {**result, "v_row": row, "v_col": col}
    emb_first = not _ENDS_IN_EMB.search(name)
    if place.layer is not None:
        # Layers are axis 1 of the parameter: they come after its first axis where that is kept.
        row = row.take(place.layer, axis=int(emb_first))
        col = col.take(place.layer, axis=int(not emb_first))
    axes = (row.reshape(-1), col.reshape(-1)) if emb_first else (col.reshape(-1), row.reshape(-1))
    first, second = factored_axes(shape)
    return {**result, "v_row": axes[first], "v_col": axes[second]}


def slots_from_neutral(
    name: str, slots: Slots, shape: Shape, num_heads: int
) -> dict[str, tuple[np.ndarray, int | None]]:
    """Returns the slots of one layer as a scanned checkpoint keeps them.

    Args:
      name: the neutral parameter, one of a stack of layers.
      slots: its slots as plain T5 has them.
      shape: of the neutral parameter.
      num_heads: of the model.

    Returns:
      By slot the array and its axis of layers in the stack; None where it is not used.

    Raises:
      UserError: if all second moments of a kernel are kept, or momentum.
    """
    result: dict[str, tuple[np.ndarray, int | None]] = {s: (slots[s], None) for s in SLOTS}
    if slots["m"].shape != UNUSED or (name.endswith(".kernel") and slots["v"].shape != UNUSED):
        raise UserError(
            f"Adafactor keeps momentum or all second moments of {name}, and scalable T5 would keep "
            "factors alone; write this checkpoint without scan_layers"
        )
    if slots["v"].shape != UNUSED:
        return {**result, "v": (slots["v"], LAYERS_AXIS)}
    shorter, longer = factored_axes(shape)
    axes = {shorter: slots["v_row"], longer: slots["v_col"]}
    emb_first = not _ENDS_IN_EMB.search(name)
    row, col = axes[int(not emb_first)], axes[int(emb_first)]
    if _HEADS.search(name):
        col = col.reshape(num_heads, -1)
    return {**result, "v_row": (row, int(emb_first)), "v_col": (col, int(not emb_first))}


def factored_axes(shape: Shape) -> tuple[int, int]:
    """Returns which axis of a matrix plain T5X keeps in `v_row` and which in `v_col`."""
    return (0, 1) if shape[0] <= shape[1] else (1, 0)


def scanned_place(name: str) -> Place:
    """Returns where a scanned checkpoint keeps a neutral array; a table is in every layer."""
    if name.endswith(_TABLE) and (stack := name.partition(".")[0]):
        return Place(f"{stack}.{stack}.{_TABLE}")
    if found := _LAYER.fullmatch(name):
        return Place(f"{found[1]}.{found[1]}.{found[3]}", int(found[2]))
    return Place(name)


def from_neutral(name: str, array: np.ndarray, num_heads: int) -> np.ndarray:
    """Returns a neutral array as scalable T5 shapes one layer: attention kernels with heads."""
    if not _HEADS.search(name):
        return array
    if _ENDS_IN_EMB.search(name):
        return array.reshape(num_heads, -1, array.shape[1])
    return array.reshape(array.shape[0], num_heads, -1)


def refuse_other_models(where: Any, names: Mapping[str, Any]) -> None:
    """Raises where the parameters' names show a model that is no T5 1.1.

    Args:
      where: the checkpoint, as the user names it.
      names: the neutral names that were found.

    Raises:
      UserError: for T5 1.0 (plain ReLU), tied embeddings, or a decoder or encoder alone.
    """
    problem = None
    if any(name.endswith(".mlp.wi.kernel") for name in names):
        problem = "its feed-forward layers have one input kernel (plain ReLU or GELU)"
    elif not any(name.startswith("encoder.layers_0.") for name in names):
        problem = "it has no encoder"
    elif not any(name.startswith("decoder.layers_0.") for name in names):
        problem = "it has no decoder"
    elif "decoder.logits_dense.kernel" not in names:
        problem = "it has no decoder.logits_dense.kernel (tied embeddings)"
    if problem:
        raise UserError(
            f"T5X checkpoint {where} is no T5 1.1: {problem}; expected gated GELU and untied "
            "logits: take a T5 1.1 or Flan-T5 checkpoint"
        )


def _layer_name(stack: str, layer: int, rest: str) -> str:
    return f"{stack}.{_TABLE}" if rest == _TABLE else f"{stack}.layers_{layer}.{rest}"


def assemble_slots(
    parameters: list[Parameter], abstract: Mapping[str, Any], saved: SavedSlots
) -> dict[str, Any]:
    """Reads the state of Adafactor, one parameter's at a time, and places it.

    Args:
      parameters: of the model.
      abstract: fields of our `AdafactorState`: the shape of "step" and by kind ("v", "v_row",
        "v_col") and name in the model those of the moments, each with its sharding; parameters
        that do not learn have none.
      saved: the state in the checkpoint.

    Returns:
      The same fields with arrays in the place of the shapes.

    Raises:
      UserError: if another choice of parameters is factored there, or a value is not finite.
    """
    result: dict[str, Any] = {kind: {} for kind in KINDS}
    for parameter in parameters:
        kinds = [kind for kind in KINDS if parameter.native in abstract[kind]]
        if not kinds:
            continue
        leaves = {kind: abstract[kind][parameter.native] for kind in kinds}
        host = {k: np.empty(leaf.shape, np.float32) for k, leaf in leaves.items()}
        for layer, name in enumerate(parameter.neutral):
            slots = saved.read(name)
            _check_kinds(name, slots, kinds)
            for kind in kinds:
                check_finite(f"{name}.{kind}", slots[kind])
                target = host[kind][layer] if parameter.is_stacked else host[kind]
                target[...] = _shaped(name, kind, slots[kind], target.shape)
        for kind in kinds:
            result[kind][parameter.native] = _placed(leaves[kind], host.pop(kind))
    return {**result, "step": _placed(abstract["step"], np.asarray(saved.step, np.int32))}


def _check_kinds(name: str, slots: Slots, wanted: list[str]) -> None:
    used = [kind for kind in KINDS if slots[kind].shape != UNUSED]
    # A vector of one number would look unused; no T5 has one.
    if used != wanted:
        raise UserError(
            f"Adafactor keeps {' and '.join(used) or 'nothing'} for {name} in the checkpoint, but "
            f"{' and '.join(wanted)} here; set min_dim_size_to_factor as in the run that wrote it, "
            "or start from its parameters alone, which `instructrec convert --to=hf` writes"
        )


def _shaped(name: str, kind: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.size != np.prod(shape):
        raise UserError(
            f"Adafactor's {kind} of {name} is {array.shape} in the checkpoint; expected {shape}"
        )
    return array.reshape(shape)


def _placed(leaf: Any, array: np.ndarray) -> Any:
    """Returns the leaf, a shape or a variable that holds one, with the array in its place."""
    (shape,) = jax.tree.leaves(leaf)
    placed = jax.make_array_from_callback(array.shape, shape.sharding, lambda place: array[place])
    return jax.tree.unflatten(jax.tree.structure(leaf), [placed])
