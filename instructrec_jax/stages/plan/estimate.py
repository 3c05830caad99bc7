"""What a training step takes of each device and how much it computes, without compiling it.

Parameters and the optimizer's state are counted from their shapes and shardings. For the rest the
step is traced as one device sees it, with its share of rows, heads, mlp and vocabulary, and looked
through line by line (`training.step_costs`). A rule that splits "length" is not taken into account.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from instructrec_jax.models.adapters import join, split, with_adapters
from instructrec_jax.models.objectives import ROW_LENGTHS
from instructrec_jax.models.sharding import Axes, constrained_by
from instructrec_jax.models.t5 import T5
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import bytes_per_device, num_batch_shares
from instructrec_jax.stages.run_data import RunData
from instructrec_jax.stages.train.start import Learning, TrainSettings
from instructrec_jax.training import step_costs
from instructrec_jax.training.state import abstract_state, stored_part

BatchShapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """Sizes of a training step, in bytes of one device unless another is named.

    Attributes:
      num_parameters: of the model.
      parameters: bytes.
      optimizer_state: bytes.
      gradients: bytes, with their sums where a batch is taken in parts.
      activations: bytes of all that the step computes besides, at its largest.
      logits: bytes of them that the logits of the vocabulary take once.
      checkpoint: bytes of a checkpoint, of all devices together.
      flops: operations of a step's matrix products, of all devices together.
      tokens: of a batch, inputs and targets, padding included.
    """

    num_parameters: int
    parameters: int
    optimizer_state: int
    gradients: int
    activations: int
    logits: int
    checkpoint: int
    flops: int
    tokens: int

    @property
    def peak(self) -> int:
        """Bytes of one device at the step's largest."""
        return self.parameters + self.optimizer_state + self.gradients + self.activations


def batch_shapes(learning: Learning, data: RunData, run: TrainSettings) -> BatchShapes:
    """Returns the shape of each int32 array of a training batch, of several the longest."""
    rows, inputs = run.batch_size, data.feature_lengths["inputs"]
    targets = data.feature_lengths["targets"]
    if learning.objective.ranks_candidates:
        number = run.num_candidates
        longest = ROW_LENGTHS[-1]
        length = next((size for size in ROW_LENGTHS if size >= number * targets), longest)
        packed = (rows, math.ceil(number / max(length // targets, 1)), length)
        return {
            "encoder_input_tokens": (rows, inputs),
            "packed_tokens": packed,
            "packed_candidates": packed,
            "num_tokens": (rows, number),
            "target_index": (rows,),
        }
    of_inputs, of_targets = ["input_tokens"], ["input_tokens", "target_tokens", "loss_weights"]
    if run.pack:
        of_inputs, of_targets = (
            [*names, "segment_ids", "positions"] for names in (of_inputs, of_targets)
        )
    return {f"encoder_{name}": (rows, inputs) for name in of_inputs} | {
        f"decoder_{name}": (rows, targets) for name in of_targets
    }


def estimate_step(
    learning: Learning, data: RunData, run: TrainSettings, mesh: LogicalMesh
) -> StepEstimate:
    """Returns the sizes of a run's training step on a mesh; nothing is allocated.

    Raises:
      UserError: if the mesh does not divide the model.
    """
    tuning, shapes = learning.fine_tuning, batch_shapes(learning, data, run)
    state = abstract_state(learning.model.init, learning.optimizer, mesh, fine_tuning=tuning)
    trained = split(state.model, tuning)[0]
    number, shares = run.num_microbatches or 1, num_batch_shares(mesh)
    own = {name: (rows // number // shares, *rest) for name, (rows, *rest) in shapes.items()}
    jaxpr, gradients, vocabulary = _as_one_device(learning, mesh, own)
    held = step_costs.peak_bytes(jaxpr, uncounted=gradients)
    if mesh.num_shares("embed") > 1:  # a table gathered for its product, and its whole gradient
        held += 2 * vocabulary * learning.model.emb_dim * 4
        # A layer's kernels as they come, taken apart for their products, and their whole gradients.
        held += 3 * _layer_bytes(state.model, mesh, learning.model.dtype)
    # When the gradients are there the activations are gone: one update at a time is computed.
    update = max(bytes_per_device([leaf]) for leaf in jax.tree.leaves(trained))
    targets = "packed_tokens" if learning.objective.ranks_candidates else "decoder_input_tokens"
    stored = jax.tree.leaves(stored_part(state, tuning))
    return StepEstimate(
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.model)),
        parameters=bytes_per_device(state.model),
        optimizer_state=bytes_per_device(state.optimizer_state),
        gradients=bytes_per_device(trained) * (2 if number > 1 else 1),
        activations=max(held, update),
        logits=step_costs.largest_bytes(jaxpr, vocabulary),
        checkpoint=sum(leaf.size * leaf.dtype.itemsize for leaf in stored),
        flops=step_costs.num_flops(jaxpr) * number * math.prod(mesh.shape.values()),
        tokens=math.prod(shapes["encoder_input_tokens"]) + math.prod(shapes[targets]),
    )


def _layer_bytes(model: T5, mesh: LogicalMesh, dtype: str) -> int:
    """Returns the bytes of a layer of the larger stack, gathered along embed, in a dtype."""
    layers = [stack.layers for stack in (model.encoder, model.decoder)]
    stored = max(bytes_per_device(of) // jax.tree.leaves(of)[0].shape[0] for of in layers)
    return stored * mesh.num_shares("embed") * jnp.dtype(dtype).itemsize // 4


class _OneDevice:
    """Traces a model as one of several devices sees it: all arrays are its shares already."""

    def constrain(self, array: Array, axes: Axes) -> Array:
        """Returns the array."""
        return array

    def gather(self, weights: Sequence[Array], axes: Sequence[Axes]) -> Sequence[Array]:
        """Returns the weights."""
        return weights


def _as_one_device(
    learning: Learning, mesh: LogicalMesh, shapes: BatchShapes
) -> tuple[Any, list[Any], int]:
    """Returns the traced loss and gradient, their variables of gradients, and the vocabulary."""

    def share(size: int, axis: str) -> int:
        return max(size // mesh.num_shares(axis), 1)

    sizes = learning.model
    config = dataclasses.replace(
        sizes,
        num_heads=share(sizes.num_heads, "heads"),
        mlp_dim=share(sizes.mlp_dim, "mlp"),
        vocab_size=share(sizes.vocab_size, "vocab"),
    )
    tuning = learning.fine_tuning
    model = jax.eval_shape(lambda: with_adapters(config.init(jax.random.key(0)), tuning, seed=0))
    trained, rest = split(model, tuning)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}

    def loss_of(trained: Any, rest: Any, batch: Any) -> tuple[Array, Any]:
        return learning.objective(join(trained, rest), batch, jax.random.key(0))

    with constrained_by(_OneDevice() if mesh.constraints else None):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(loss_of, has_aux=True))(trained, rest, batch)
    return jaxpr, jaxpr.jaxpr.outvars[-len(jax.tree.leaves(trained)) :], config.vocab_size
