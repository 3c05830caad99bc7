"""Orbax checkpoints of a training state: saved atomically, checked by name and shape on the way in.

Layout: MODEL_DIR/checkpoints/<step>/default holds the latest states, MODEL_DIR/best/<step>/default
the one with the best validation metric. Arrays are stored under dotted names, such as
`model.encoder.layers.attention.query.kernel`; the optimizer's begin with `optimizer_state.`.
"""

import functools
import logging
import math
import re
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from instructrec_jax import files
from instructrec_jax.checkpoints.arrays import (
    CHECKSUMS,
    DATA_POSITION,
    SEEN,
    WHOLE,
    Index,
    StoredArray,
    checksum_of,
    open_arrays,
    read_checksums,
    read_custom_metadata,
    read_specs,
)
from instructrec_jax.checkpoints.parameters import check_found
from instructrec_jax.errors import UserError

logger = logging.getLogger(__name__)
LATEST, BEST = "checkpoints", "best"
ITEM, MODEL, OPTIMIZER = "default", "model.", "optimizer_state."
_HINT = "remove that folder to go on with the one before it"
Arrays = dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run in one folder; only finished ones are ever seen."""

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int,
        best_metric: str | None = None,
        in_background: bool = False,
    ) -> None:
        """Opens or creates the folder.

        Args:
          folder: of the step folders.
          keep: how many to keep; older (or worse) ones are deleted after a newer one is complete.
          best_metric: keep those with the highest value of this metric instead of the latest.
          in_background: write while the caller goes on; only the copy to host memory is waited for.
            One process alone does; several write while the callers wait.
        """
        import orbax.checkpoint as ocp  # a quarter of a second that reading does without

        self.folder = Path(folder).resolve()
        self._keep, self._best_metric = keep, best_metric
        self._writer = ThreadPoolExecutor(1) if in_background else None
        self._written: Future[None] | None = None
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

    def save(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float] | None = None,
        *,
        data_position: Any = None,
        seen: Any = None,
    ) -> None:
        """Saves a state; does nothing where the step is saved already or is not among the best.

        Args:
          step: number of steps taken.
          state: a pytree of arrays.
          metrics: of its evaluation.
          data_position: where the data go on after it, as JSON; `data_position` returns it.
          seen: what the guards know of the steps, as JSON; `seen` returns it.

        Raises:
          UserError: if it, or the one before it, cannot be written.
        """
        self.wait()
        if step in self._manager.all_steps() or self._is_beaten(metrics):
            return
        arrays, noted = named_arrays(state), {DATA_POSITION: data_position, SEEN: seen}
        if self._writer is None or jax.process_count() > 1:
            self._write(step, arrays, metrics, noted)
            return
        arrays = {name: _on_host(array) for name, array in arrays.items()}
        self._written = self._writer.submit(self._write, step, arrays, metrics, noted)

    def wait(self) -> None:
        """Waits for what is written in the background; raises what `save` would have raised."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _write(
        self,
        step: int,
        arrays: Arrays,
        metrics: Mapping[str, float] | None,
        noted: Mapping[str, Any],
    ) -> None:
        """Writes a checkpoint and deletes those that are no longer kept."""
        import orbax.checkpoint as ocp

        try:
            self._manager.save(
                step,
                args=ocp.args.PyTreeSave(arrays),
                metrics=metrics and dict(metrics),
                custom_metadata={CHECKSUMS: _checksums(arrays), **noted},
            )
        except (ValueError, OSError) as error:  # a full disk is a ValueError of TensorStore
            reason = str(error).split(" [source")[0]
            raise UserError(
                f"cannot write checkpoint {step} into {self.folder}: {reason}; mend the disk, the "
                "same command then goes on from the checkpoint before"
            ) from None
        if jax.process_index():
            return
        for marker in (self.folder / str(step)).rglob("commit_success.txt"):
            files.write_text(marker, f"Checkpoint commit was successful to {step}")  # not where

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

    def data_position(self, step: int) -> Any:
        """Returns where the data go on after a saved step.

        Raises:
          UserError: if nobody noted it.
        """
        folder = self.folder / str(step)
        if (found := read_custom_metadata(folder).get(DATA_POSITION)) is None:
            raise UserError(
                f"checkpoint {folder} does not say which examples come after it: an earlier "
                "version wrote it, which took them in another order. Start a new MODEL_DIR with "
                f"INITIAL_CHECKPOINT_PATH={str(folder)!r}"
            )
        return found

    def seen(self, step: int) -> Any:
        """Returns what the guards knew after a saved step, None where nobody noted it."""
        return read_custom_metadata(self.folder / str(step)).get(SEEN)

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
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
        if steps := finished_steps(folder):
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

    Host memory holds one array at a time beside what is in place; in a run of several processes, of
    an array that is split over them only the shards of this process's devices, whose checksum
    cannot be compared.

    Args:
      folder: a step folder, as `resolve_checkpoint` returns it.
      abstract: a pytree of jax.ShapeDtypeStruct with shardings: a whole TrainState, or one with
        parts of it None.

    Raises:
      UserError: naming every parameter that is missing, left over or of another shape, or whose
        files are damaged.
    """
    wanted = named_arrays(abstract)
    stored = stored_arrays(folder, {name.split(".")[0] for name in wanted})
    check_found(
        folder,
        {name: tuple(leaf.shape) for name, leaf in wanted.items()},
        {name: (array.shape, array.dtype) for name, array in stored.items()},
        dtypes=None,
        hint="use the gin files that it was trained with, or another MODEL_DIR",
    )
    if not all(_is_whole_here(leaf.sharding) for leaf in wanted.values()):
        _say_unchecked(folder, "is read in shards, which no checksum fits")
    arrays = [_place(stored[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def stored_arrays(folder: Path, parts: Collection[str] | None = None) -> dict[str, StoredArray]:
    """Opens the arrays of a checkpoint, by dotted name; no values are read.

    Args:
      folder: a step folder, as `resolve_checkpoint` returns it.
      parts: what the names begin with, such as "model"; None: all.

    Raises:
      UserError: if a file that describes them is missing or damaged.
    """

    def fault(message: str) -> UserError:
        return UserError(f"checkpoint {folder} cannot be read: {message}; {_HINT}")

    specs = read_specs(folder / ITEM, fault)
    names = [name for name in specs if parts is None or name.split(".")[0] in parts]
    checksums = read_checksums(folder)
    if not checksums:
        _say_unchecked(folder, "holds no checksums")
    return open_arrays(specs, names, fault, checksums)


@functools.lru_cache(maxsize=64)
def _say_unchecked(folder: Path, why: str) -> None:
    logger.info("checkpoint %s %s: damage in its arrays goes unnoticed", folder, why)


def _is_whole_here(sharding: jax.sharding.Sharding) -> bool:
    """Whether the devices of this process hold all of an array."""
    return sharding.is_fully_addressable or sharding.is_fully_replicated


def _checksums(arrays: Arrays) -> dict[str, int]:
    """Returns the checksums of arrays; {} where no process of the run holds all of them."""
    shardings = [array.sharding for array in arrays.values() if isinstance(array, jax.Array)]
    if not all(map(_is_whole_here, shardings)):
        return {}
    return {name: checksum_of(_on_host(array)) for name, array in arrays.items()}


def _on_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Returns an array's numbers; of a copy, since a JAX array keeps them as long as it lives."""
    if isinstance(array, jax.Array) and array.is_fully_addressable:
        array = jax.device_put(array, array.sharding, may_alias=False)
    return np.asarray(array)


def _place(stored: StoredArray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads an array whole, or the shards of this process's devices, and places them."""
    shards: dict[str, np.ndarray] = {}
    whole = stored.read() if _is_whole_here(leaf.sharding) else None

    def read(index: Index | None) -> np.ndarray:
        key = str(index)  # slices have no hash
        if key not in shards:
            part = stored.read(index or WHOLE) if whole is None else whole[index or WHOLE]
            shards[key] = part.astype(leaf.dtype, copy=False)
        return shards[key]

    return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, leaf.sharding, read))


def named_arrays(tree: Any) -> Arrays:
    """Returns the arrays of a pytree by dotted name, in the pytree's own order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        re.sub(r"\.value$", "", jax.tree_util.keystr(path, simple=True, separator=".")): leaf
        for path, leaf in leaves
    }


def finished_steps(folder: Path) -> list[int]:
    """Returns the steps whose folder Orbax has renamed from its temporary name."""
    if not folder.is_dir():
        return []
    return [int(p.name) for p in folder.iterdir() if _is_number(p.name) and (p / ITEM).is_dir()]


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()
