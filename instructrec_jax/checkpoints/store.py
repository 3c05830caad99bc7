"""Orbax checkpoints of a training state: saved atomically, checked by name and shape on the way in.

Layout: MODEL_DIR/checkpoints/<step>/default holds the latest states, MODEL_DIR/best/<step>/default
the one with the best validation metric. Arrays are stored under dotted names, such as
`model.encoder.layers.attention.query.kernel`; the optimizer's begin with `optimizer_state.`.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from numpy.typing import DTypeLike

from instructrec_jax.errors import UserError

LATEST, BEST = "checkpoints", "best"
ITEM, MODEL, OPTIMIZER = "default", "model.", "optimizer_state."
_HINT = "remove that folder to go on with the one before it"
Arrays = dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run in one folder; only finished ones are ever seen."""

    def __init__(self, folder: Path | str, *, keep: int, best_metric: str | None = None) -> None:
        """Opens or creates the folder.

        Args:
          folder: where step folders lie.
          keep: how many to keep; older (or worse) ones are deleted after a newer one is complete.
          best_metric: keep those with the highest value of this metric instead of the latest.
        """
        self.folder = Path(folder).resolve()
        self._keep, self._best_metric = keep, best_metric
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                best_fn=None if best_metric is None else lambda metrics: metrics[best_metric],
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a state; does nothing where the step is saved already or is not among the best."""
        if step in self._manager.all_steps() or self._is_beaten(metrics):
            return
        arguments = ocp.args.PyTreeSave(named_arrays(state))
        self._manager.save(step, args=arguments, metrics=metrics and dict(metrics))

    def _is_beaten(self, metrics: Mapping[str, float] | None) -> bool:
        """Whether a checkpoint with these metrics would be deleted as soon as it is complete.

        It must not even be written: a kill before the deletion would leave it as the newest.
        """
        kept = self._manager.all_steps()
        if self._best_metric is None or metrics is None or len(kept) < self._keep:
            return False
        known = [self._manager.metrics(step) or {} for step in kept]
        values = [found.get(self._best_metric, -math.inf) for found in known]
        return metrics[self._best_metric] <= min(values)

    def restore(self, step: int, abstract: Any) -> Any:
        """Returns the state saved at `step`, placed as the shardings of `abstract` say."""
        return restore(self.folder / str(step), abstract)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def resolve_checkpoint(path: Path | str) -> Path:
    """Returns the step folder that a user means by `path`.

    Args:
      path: a step folder, a folder of step folders, or a MODEL_DIR (its best checkpoint, else its
        latest).

    Raises:
      UserError: if no finished checkpoint is there.
    """
    path = Path(path)
    if (path / ITEM).is_dir():
        return path.resolve()
    for folder in (path / BEST, path / LATEST, path):
        if steps := _finished_steps(folder):
            return (folder / str(max(steps))).resolve()
    raise UserError(
        f"no finished checkpoint in {path}; expected a MODEL_DIR, or a folder named by a step "
        "that holds one"
    )


def checkpoint_step(folder: Path) -> int:
    """Returns the training step of a step folder."""
    return int(folder.name)


def restore(folder: Path, abstract: Any) -> Any:
    """Restores the part of a checkpoint that `abstract` asks for.

    Args:
      folder: a step folder, as `resolve_checkpoint` returns it.
      abstract: a pytree of jax.ShapeDtypeStruct with shardings: a whole TrainState, or one with
        parts of it None.

    Raises:
      UserError: naming every parameter that is missing, left over or of another shape.
    """
    wanted = named_arrays(abstract)
    _check_same(folder, wanted, stored_arrays(folder))
    arrays = _read(folder, wanted, ocp.checkpoint_utils.construct_restore_args(wanted))
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted])


def stored_arrays(folder: Path) -> Mapping[str, Any]:
    """Returns what a checkpoint holds, by dotted name, each with `shape` and `dtype`.

    Raises:
      UserError: if its metadata is missing.
    """
    path = folder / ITEM
    metadata = _checkpointer().metadata(path).item_metadata if path.is_dir() else None
    if metadata is None:
        raise UserError(f"checkpoint {folder} cannot be read: its metadata is missing; {_HINT}")
    return metadata.tree


def read_array(
    folder: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Reads one array of a checkpoint into host memory.

    Args:
      folder: a step folder, as `resolve_checkpoint` returns it.
      name: dotted, one of `stored_arrays`.
      shape: its shape, as that says.
      dtype: its type.

    Raises:
      UserError: if its files are damaged.
    """
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
    return _read(folder, {name: jax.ShapeDtypeStruct(shape, dtype)}, as_numpy)[name]


def _read(folder: Path, item: Arrays, restore_args: Any) -> Arrays:
    # What is read is held twice until it is in place: let it be no more than the largest array
    # takes, and wait for it. Orbax's own limit counts an array no longer once its copy has begun.
    found: Arrays = {}
    checkpointer = _checkpointer()
    for names in _groups(item):
        arguments = ocp.args.PyTreeRestore(
            item={name: item[name] for name in names},
            restore_args={name: restore_args[name] for name in names},
            partial_restore=True,
        )
        try:
            found |= jax.block_until_ready(checkpointer.restore(folder / ITEM, args=arguments))
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {folder} cannot be read: {error}; {_HINT}") from None
    return found


def _groups(item: Arrays) -> Iterator[list[str]]:
    """Yields the names in their order, together as many bytes as the largest array has."""
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in item.items()}
    largest, taken = max(sizes.values()), 0
    names: list[str] = []
    for name, size in sizes.items():
        if names and taken + size > largest:
            yield names
            names, taken = [], 0
        names.append(name)
        taken += size
    yield names


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())


def named_arrays(tree: Any) -> Arrays:
    """Returns the arrays of a pytree by dotted name, in the pytree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        re.sub(r"\.value$", "", jax.tree_util.keystr(path, simple=True, separator=".")): leaf
        for path, leaf in leaves
    }


def _finished_steps(folder: Path) -> list[int]:
    """Returns the steps whose folder Orbax has renamed from its temporary name."""
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / ITEM).is_dir()]


def _check_same(folder: Path, wanted: Arrays, found: Mapping[str, Any]) -> None:
    shapes = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
    parts = {name.split(".")[0] for name in wanted}
    there = {n: tuple(leaf.shape) for n, leaf in found.items() if n.split(".")[0] in parts}
    problems = [f"missing: {name} {shapes[name]}" for name in shapes if name not in there]
    problems += [f"left over: {name} {there[name]}" for name in there if name not in shapes]
    problems += [
        f"{name} is {there[name]} there and {shapes[name]} here"
        for name in shapes
        if name in there and there[name] != shapes[name]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise UserError(
            f"checkpoint {folder} is of another model or optimizer, {len(problems)} arrays differ: "
            f"{shown}. Use the gin files it was trained with, or another MODEL_DIR"
        )
