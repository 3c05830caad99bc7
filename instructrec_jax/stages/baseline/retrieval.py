"""The lists that the matcher retrieves from the whole catalogue, which `candidates lists` reads."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.recommender import Batch
from instructrec_jax.data.candidate_lists import write_lists
from instructrec_jax.data.columnar import HELD_OUT, LEAVE_ONE_OUT
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import num_batch_shares, place_batch
from instructrec_jax.records import CandidateList
from instructrec_jax.stages.baseline.candidate_scorer import filled

_logger = logging.getLogger(__name__)
FOLDER = "retrieved"
_BLOCK = 1024  # users, or items, at a time


class Retriever:
    """A trained matcher and the vectors of the catalogue."""

    def __init__(self, data: PreparedData, model: Any, rows: Any, mesh: LogicalMesh) -> None:
        """Computes the vectors of all items.

        Args:
          data: artefact A.
          model: a `MatcherModel`, trained.
          rows: the `MatcherRows` of the data.
          mesh: of the devices.
        """
        self._data, self._model, self._rows, self._mesh = data, model, rows, mesh
        shares = num_batch_shares(mesh)
        self._size = -(-_BLOCK // shares) * shares
        self._read = jax.jit(self._traced(lambda model, batch: model.last_user_vectors(batch)))
        self._users = {user: row for row, user in enumerate(data.histories.user_ids.to_pylist())}
        read = jax.jit(
            self._traced(
                lambda model, batch: model.item_vectors(
                    batch["tokens"], model.title(batch["title_features"])
                )
            )
        )
        vectors = []
        for begin in range(1, len(rows.titles), self._size):
            tokens = np.arange(begin, min(begin + self._size, len(rows.titles)), dtype=np.int32)
            batch = {"tokens": tokens, "title_features": rows.titles[tokens]}
            vectors.append(self._found(read, batch))
        self._items = np.concatenate(vectors)

    def write(self, folder: Path, *, number: int) -> None:
        """Writes for each user the items of the highest logits, but for the user's own.

        Own are the items of the whole sequence, the held-out ones too.

        Args:
          folder: of the run.
          number: items of a list; all that are left where the catalogue is smaller.
        """
        for split in HELD_OUT:
            candidates = self._data.evaluation(LEAVE_ONE_OUT, split)
            firsts = np.flatnonzero(candidates.draws == 1).tolist()
            lists = self._lists([candidates[index] for index in firsts], number)
            path = folder / FOLDER / f"{split}.tsv.gz"
            write_lists(path, self._data, lists)
            _logger.info("the %d best items of each user, in %s", number, path)

    def _lists(
        self, examples: Sequence[CandidateList], number: int
    ) -> Iterator[tuple[str, list[int]]]:
        """Yields the user and the list of each example."""
        for begin in range(0, len(examples), self._size):
            some = examples[begin : begin + self._size]
            batch = self._rows.scoring_batch(some, np.zeros((len(some), 1), np.int32))
            logits = self._found(self._read, batch) @ self._items.T
            for example, own in zip(some, logits, strict=True):
                own[self._data.seen_items[self._users[example.user_id]]] = -np.inf
                best = np.argpartition(-own, min(number, len(own)) - 1)[:number]
                best = best[np.lexsort((best, -own[best]))]
                yield example.user_id, best[np.isfinite(own[best])].tolist()

    def _traced(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def traced(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
            with constrained_by(self._mesh.constraints):
                return function(model, batch)

        return traced

    def _found(self, read: Callable[..., jax.Array], batch: Batch) -> NDArray[np.float32]:
        """Returns what a function of the model makes of a batch, filled up to one shape."""
        number = len(batch["tokens"])
        placed = place_batch(filled(batch, self._size), self._mesh)
        return np.asarray(read(self._model, placed))[:number]
