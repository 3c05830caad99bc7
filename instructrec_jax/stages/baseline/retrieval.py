"""The lists that the matcher retrieves from the whole catalogue, which `candidates lists` reads."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec_jax.baselines.matcher_vectors import MatcherVectors, best_items
from instructrec_jax.data.candidate_lists import write_lists
from instructrec_jax.data.columnar import HELD_OUT, LEAVE_ONE_OUT
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.records import CandidateList

_logger = logging.getLogger(__name__)
FOLDER = "retrieved"
_USERS = 1024  # at a time


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
        self._data, self._rows = data, rows
        self._vectors = MatcherVectors(model, rows, mesh, num_users=_USERS)
        self._users = {user: row for row, user in enumerate(data.histories.user_ids.to_pylist())}

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
        size = self._vectors.num_users
        for begin in range(0, len(examples), size):
            some = examples[begin : begin + size]
            batch = self._rows.scoring_batch(some, np.zeros((len(some), 1), np.int32))
            logits = self._vectors.users(batch) @ self._vectors.items.T
            for example, own in zip(some, logits, strict=True):
                own[self._data.seen_items[self._users[example.user_id]]] = -np.inf
                yield example.user_id, best_items(own, number).tolist()
