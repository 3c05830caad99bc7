"""The vectors of a trained matcher: of all items, and of users after what they chose."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from instructrec_jax.baselines.matcher import MatcherRows
from instructrec_jax.baselines.recommender import Batch, filled
from instructrec_jax.models.sharding import constrained_by
from instructrec_jax.parallel.mesh import LogicalMesh
from instructrec_jax.parallel.placement import num_batch_shares, place_batch

_ITEMS = 1024  # at a time


class MatcherVectors:
    """A trained matcher on the devices of a mesh; threads may share it.

    Attributes:
      items: [num_items, D] float32; the logit of a user and an item is their vectors' product.
      num_users: how many users are read at a time.
    """

    def __init__(self, model: Any, rows: MatcherRows, mesh: LogicalMesh, *, num_users: int) -> None:
        """Computes the vectors of all items.

        Args:
          model: a `MatcherModel`, trained.
          rows: of the data that it was trained on.
          mesh: of the devices.
          num_users: how many users to read at a time; rounded up to what the devices share.
        """
        self._model, self._mesh, shares = model, mesh, num_batch_shares(mesh)
        self.num_users = -(-num_users // shares) * shares
        self._read = self._traced(lambda model, batch: model.last_user_vectors(batch))
        read = self._traced(
            lambda model, batch: model.item_vectors(
                batch["tokens"], model.title(batch["title_features"])
            )
        )
        size, end = -(-_ITEMS // shares) * shares, len(rows.titles)
        vectors = []
        for begin in range(1, end, size):
            tokens = np.arange(begin, min(begin + size, end), dtype=np.int32)
            batch = {"tokens": tokens, "title_features": rows.titles[tokens]}
            vectors.append(self._found(read, batch, size))
        self.items = np.concatenate(vectors)

    def users(self, batch: Batch) -> NDArray[np.float32]:
        """Returns the vectors of at most `num_users` users after the last item of each, [n, D].

        Args:
          batch: `tokens`, `users` and `title_features`, as `MatcherRows.scoring_batch` gives them.
        """
        read = {name: batch[name] for name in ("tokens", "users", "title_features")}
        return self._found(self._read, read, self.num_users)

    def _traced(self, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def traced(model: Any, batch: dict[str, jax.Array]) -> jax.Array:
            with constrained_by(self._mesh.constraints):
                return function(model, batch)

        return jax.jit(traced)

    def _found(
        self, read: Callable[..., jax.Array], batch: Batch, size: int
    ) -> NDArray[np.float32]:
        """Returns what a function of the model makes of a batch, filled up to one shape."""
        number = len(batch["tokens"])
        placed = place_batch(filled(batch, size), self._mesh)
        return np.asarray(read(self._model, placed))[:number]


def best_items(scores: NDArray[np.floating], number: int) -> NDArray[np.int64]:
    """Returns the indices of the highest scores, best first, the first of equal ones before.

    Args:
      scores: [n]; what is -inf is left out.
      number: how many at most.
    """
    if number < len(scores):
        found = np.argpartition(-scores, number - 1)[:number]
    else:
        found = np.arange(len(scores))
    found = found[np.isfinite(scores[found])]
    return found[np.lexsort((found, -scores[found]))]
