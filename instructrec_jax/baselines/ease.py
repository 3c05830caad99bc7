"""EASE: a linear model of which items follow from which, solved in closed form.

Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019): the weights B that
minimise |X - XB|^2 + regularisation |B|^2 with a zero diagonal are -P / diag(P), where P is the
inverse of the co-occurrence counts X'X with the regularisation on their diagonal.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from instructrec_jax.baselines.cooccurrence import incidence
from instructrec_jax.baselines.popularity import training_histories
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.records import CandidateList

REGULARISATION = 1000.0  # NDCG@5 on MovieLens-100K validation: .688 at 100, .736 here, .740 at 2000
MAX_ITEMS = 40_000  # a matrix of items by items is held: 6.4 GB


class Ease:
    """How much the items of the user's history speak for a candidate."""

    name = "ease"

    def __init__(
        self, data: PreparedData, *, seed: int = 0, regularisation: float = REGULARISATION
    ) -> None:
        """Solves for the weights.

        Args:
          data: artefact A, of which the training part is read.
          seed: of nothing.
          regularisation: added to the diagonal.

        Raises:
          UserError: if there are too many items.
        """
        del seed
        if len(data.items) > MAX_ITEMS:
            raise UserError(
                f"EASE holds a weight for each pair of items, and {data.dataset} has "
                f"{len(data.items):,}; expected at most {MAX_ITEMS:,}: use cooccurrence"
            )
        self._histories = {history.user_id: history.item_ids for history in data.histories}
        training = training_histories(self._histories.values())
        self._weights = ease_weights(training, len(data.items), regularisation=regularisation)

    def score(
        self, examples: Sequence[CandidateList], candidate_ids: NDArray[np.int32]
    ) -> NDArray[np.float32] | None:
        """Returns [n, c] float32, higher is better; None where there is no history."""
        if any(example.position < 0 for example in examples):
            return None
        scores = np.empty(candidate_ids.shape, np.float32)
        for row, example in enumerate(examples):
            history = np.unique(self._histories[example.user_id][: example.position])
            scores[row] = self._weights[np.ix_(history, candidate_ids[row])].sum(axis=0)
        return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)


def ease_weights(
    training: Sequence[NDArray[np.integer]], num_items: int, *, regularisation: float
) -> NDArray[np.float32]:
    """Returns [num_items, num_items] float32, how much an item (row) speaks for another (column).

    Args:
      training: item ids of every user; order and repeats do not count.
      num_items: size of the catalogue.
      regularisation: above 0.
    """
    present = incidence(training, num_items).astype(np.float32)
    gram = (present.T @ present).toarray()
    gram[np.diag_indices(num_items)] += np.float32(regularisation)
    # The matrix is positive definite; its inverse takes the place of its Cholesky factor.
    factor, _ = linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse, problem = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    if problem:
        raise UserError(f"EASE's matrix has no inverse; raise the regularisation {regularisation}")
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices(num_items)] = 0.0
    return weights
