"""Adafactor's second moments from a checkpoint, slots of one layer each, to our stacks of layers.

Moments go where `training.adafactor.AdafactorState` keeps them, by kind and by a parameter's name
in the model: `v_row` and `v_col` [layers, ...] where a parameter is factored, else `v` in the
parameter's own shape. Which parameters are factored, T5X and we tell by the same rule.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from instructrec_jax.checkpoints.parameters import Parameter, check_finite
from instructrec_jax.checkpoints.t5x_layout import UNUSED, SavedSlots, Slots
from instructrec_jax.errors import UserError

KINDS = ("v", "v_row", "v_col")


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
      UserError: if another choice of parameters is factored there, or for what is no number.
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
