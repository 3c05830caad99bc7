"""Adafactor's second moments between T5X's slots, one a layer, and our stacks of layers.

Moments come as `training.adafactor.AdafactorState` keeps them, by kind and by a parameter's name in
the model: `v_row` and `v_col` [layers, ...] where a parameter is factored, else `v` in the
parameter's own shape. Which parameters are factored, both optimizers tell by the same rule.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from instructrec_jax.checkpoints.parameters import Parameter
from instructrec_jax.checkpoints.t5x_layout import UNUSED
from instructrec_jax.errors import UserError

Slots = Mapping[str, np.ndarray]
Moments = dict[str, dict[str, Any]]
KINDS = ("v", "v_row", "v_col")


def assemble_slots(
    parameters: list[Parameter], abstract: Mapping[str, Any], read: Callable[[str], Slots]
) -> Moments:
    """Reads moments, one parameter's at a time, and places them.

    Args:
      parameters: of the model.
      abstract: by kind ("v", "v_row", "v_col") and name in the model, the shapes of our optimizer's
        moments with their shardings.
      read: gives the slots of a neutral name, as `T5xCheckpoint.read_slots` does.

    Returns:
      Arrays in the place of the shapes.

    Raises:
      UserError: if another choice of parameters is factored there, or there is momentum.
    """
    result: Moments = {kind: {} for kind in KINDS}
    for parameter in parameters:
        kinds = [kind for kind in KINDS if parameter.native in abstract[kind]]
        leaves = {kind: abstract[kind][parameter.native] for kind in kinds}
        host = {k: np.empty(leaf.shape, np.float32) for k, leaf in leaves.items()}
        for layer, name in enumerate(parameter.neutral):
            slots = read(name)
            _check_kinds(name, slots, kinds)
            for kind in kinds:
                target = host[kind][layer] if parameter.is_stacked else host[kind]
                target[...] = _shaped(name, kind, slots[kind], target.shape)
        for kind in kinds:
            result[kind][parameter.native] = _placed(leaves[kind], host.pop(kind))
    return result


def disassemble_slots(
    parameters: list[Parameter], moments: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields (neutral name, slots) of every parameter, ready for `write_t5x`.

    Args:
      parameters: of the model.
      moments: arrays by kind and name in the model, all of whose shards this process can reach.
    """
    unused = np.zeros(UNUSED, np.float32)
    for parameter in parameters:
        arrays = {
            kind: np.asarray(jax.tree.leaves(moments[kind][parameter.native])[0])
            for kind in KINDS
            if parameter.native in moments[kind]
        }
        for layer, name in enumerate(parameter.neutral):
            slots = dict.fromkeys(("m", *KINDS), unused)
            for kind, array in arrays.items():
                part = array[layer] if parameter.is_stacked else array
                slots[kind] = part.reshape(parameter.neutral_shape) if kind == "v" else part
            yield name, slots


def _check_kinds(name: str, slots: Slots, wanted: list[str]) -> None:
    used = [kind for kind in ("m", *KINDS) if slots[kind].shape != UNUSED]
    # A vector of one number would look unused; no T5 has one.
    if used != wanted:
        raise UserError(
            f"Adafactor keeps {' and '.join(used) or 'nothing'} for {name} in the checkpoint, but "
            f"{' and '.join(wanted)} here; set min_dim_size_to_factor as in the run that wrote it "
            "(and no momentum), or start from its parameters alone"
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
