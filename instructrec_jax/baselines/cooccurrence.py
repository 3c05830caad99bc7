"""An untrained scorer: which things occur together, as vectors.

Counts of pairs in the same sequence -> positive pointwise mutual information (PPMI) -> truncated
SVD (Levy and Goldberg 2014). The same vectors serve twice: of items, to score candidates by their
likeness to a user's history; of tokens, to start a model's embeddings where nothing was pretrained.
"""

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import linalg

from instructrec_jax import files
from instructrec_jax.baselines.popularity import count_items, training_histories
from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.errors import UserError
from instructrec_jax.records import CandidateList

ITEM_DIM = 64
LAST_ITEMS = 10  # of the history; chosen on MovieLens-100K validation, as the two below
SIMILARITY_WEIGHT = 10.0
POPULARITY_WEIGHT = 1.0
_DENSE_SIZE = 512  # larger matrices are solved sparsely
_TOLERANCE = 1e-12  # relative, of the eigenvalues
_NEGLIGIBLE = 1e-6  # relative: smaller eigenvalues and rows are rounding errors, or equal
_DECIMALS = 6  # of a likeness, whose vectors are float32
_NUM_CHECKED = 8  # directions looked for at a time in what is left of a matrix
_CHUNK = 4096  # examples scored at once, to bound memory
_GRID = 2.0**20  # steps of a vector's entry between 0 and 1


class Cooccurrence:
    """How like a candidate is to the last items of the user's history."""

    name = "cooccurrence"

    def __init__(self, data: PreparedData, *, seed: int) -> None:
        self._histories = {history.user_id: history.item_ids for history in data.histories}
        training = training_histories(self._histories.values())
        self._counts = count_items(training, num_items=len(data.items))
        self._vectors = cooccurrence_embeddings(training, len(data.items), ITEM_DIM, seed)

    def score(
        self, examples: Sequence[CandidateList], candidate_ids: NDArray[np.int32]
    ) -> NDArray[np.float32] | None:
        """Returns [n, c] float32, see `score_by_cooccurrence`; None where there is no history."""
        if any(example.position < 0 for example in examples):
            return None
        histories = [self._histories[e.user_id][: e.position] for e in examples]
        return score_by_cooccurrence(
            candidate_ids, histories, vectors=self._vectors, counts=self._counts
        )


def cooccurrence_embeddings(
    sequences: Sequence[NDArray[np.integer]], vocab_size: int, dim: int, seed: int
) -> NDArray[np.float32]:
    """Returns one vector per id, near to each other where ids share sequences.

    Args:
      sequences: ids in 0 .. vocab_size - 1; order and repeats within a sequence do not count.
      vocab_size: number of rows returned; ids that never occur get a zero row.
      dim: number of columns; where it is more than the counts support, the rest is zero.
      seed: of the basis where directions are equally strong; likeness does not depend on it.

    Returns:
      [vocab_size, dim] float32, scaled so that rows that are not zero have norm 1 on average.
      Directions beyond `dim` that are as strong as some within leave those out too: which of them
      were kept would be an accident.

    Raises:
      UserError: if an id is outside the vocabulary.
      ValueError: if dim is below 1.

    Example:
      Of sequences [[0, 1], [0, 1], [2, 3]], vectors 0 and 1 are alike, and 0 and 2 are not.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    information = positive_mutual_information(_count_pairs(sequences, vocab_size))
    vectors = np.zeros((vocab_size, dim), dtype=np.float64)
    if information.nnz:
        # The matrix is symmetric: its singular values are the sizes of its eigenvalues.
        sizes, directions = strongest_directions(information, dim, seed=seed)
        vectors[:, : len(sizes)] = directions * np.sqrt(sizes)
    norms = np.linalg.norm(vectors, axis=1)
    present = norms > _NEGLIGIBLE * norms.max(initial=0.0)
    vectors[~present] = 0.0
    scale = norms[present].mean() if present.any() else 1.0
    return (vectors / scale).astype(np.float32)


def strongest_directions(
    matrix: sparse.csr_matrix, number: int, *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the largest eigenvalues by size, and their eigenvectors, exact to rounding.

    Args:
      matrix: [size, size] float64, symmetric, not all zero.
      number: how many at most. There are fewer where the matrix has a lower rank, or where the
        next one is as large as the last ones.
      seed: of the basis of eigenvectors whose eigenvalues are of equal size; it also decides which
        are kept where more than `number` are as large as the largest.

    Returns:
      [k] sizes of eigenvalues, largest first, and [size, k] orthonormal columns.
    """
    asked = min(number + 1, matrix.shape[0])  # one more, to see whether the last one is alone
    rng = np.random.default_rng(seed)
    if matrix.shape[0] <= max(_DENSE_SIZE, 2 * asked):
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        values, vectors = _sparse_eigenpairs(matrix, asked, rng)
    order = np.argsort(-np.abs(values), kind="stable")[:asked]
    sizes, vectors = np.abs(values[order]), vectors[:, order]
    kept = sizes > _NEGLIGIBLE * sizes[0]
    if len(sizes) > number and sizes[number] < sizes[0] * (1 - _NEGLIGIBLE):
        kept &= sizes > sizes[number] * (1 + _NEGLIGIBLE)
    kept[number:] = False
    sizes, vectors = sizes[kept], vectors[:, kept]
    # Of equal eigenvalues a solver returns any basis: the same one is taken whatever it was.
    breaks = np.flatnonzero(sizes[1:] < sizes[:-1] * (1 - _NEGLIGIBLE)) + 1
    for columns in np.split(np.arange(len(sizes)), breaks):
        basis = vectors[:, columns]
        drawn = rng.normal(size=basis.shape)
        vectors[:, columns] = np.linalg.qr(basis @ (basis.T @ drawn))[0]
    return sizes, vectors


def _sparse_eigenpairs(
    matrix: sparse.csr_matrix, number: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns at least `number` eigenpairs, those of the largest sizes among them."""
    values, vectors = _lanczos(matrix, number, rng)
    while True:
        # From one start the method may miss some of several equal eigenvalues: what is left of
        # the matrix without those found is searched until nothing in it is as large.
        rest = linalg.LinearOperator(
            matrix.shape, functools.partial(_rest, matrix, values, vectors), dtype=np.float64
        )
        more, directions = _lanczos(rest, min(_NUM_CHECKED, number), rng)
        sizes = np.sort(np.abs(values))
        is_missed = np.abs(more) > max(sizes[-number], sizes[-1] * _NEGLIGIBLE) * (1 + _NEGLIGIBLE)
        if not is_missed.any():
            return values, vectors
        values = np.concatenate([values, more[is_missed]])
        vectors = np.concatenate([vectors, directions[:, is_missed]], axis=1)


def _rest(
    matrix: sparse.csr_matrix,
    values: NDArray[np.float64],
    vectors: NDArray[np.float64],
    x: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns the product of x with the matrix without some of its eigenpairs."""
    return matrix @ x - vectors @ (values * (vectors.T @ x))


def _lanczos(
    matrix: sparse.csr_matrix | linalg.LinearOperator, number: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns what ARPACK finds, all its draws from `rng`."""
    # Newer versions of scipy restart from a generator of their own unless they are given one.
    seeded = {"rng": rng} if "rng" in inspect.signature(linalg.eigsh).parameters else {}
    start = rng.normal(size=matrix.shape[0])
    return linalg.eigsh(matrix, k=number, v0=start, tol=_TOLERANCE, **seeded)


def positive_mutual_information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Returns max(0, log(p(a, b) / (p(a) p(b)))) of every pair that was counted.

    Args:
      counts: [size, size] symmetric counts of pairs.
    """
    pairs = sparse.coo_matrix(counts)
    of_id = np.asarray(counts.sum(axis=1)).ravel()
    expected = of_id[pairs.row] * of_id[pairs.col] / max(of_id.sum(), 1.0)
    values = np.log(pairs.data / expected)
    kept = values > 0
    entries = (values[kept], (pairs.row[kept], pairs.col[kept]))
    return sparse.csr_matrix(entries, shape=counts.shape)


def score_by_cooccurrence(
    candidate_ids: NDArray[np.int32],
    histories: Sequence[Sequence[int]],
    *,
    vectors: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Returns likeness to the last history items x 10 + log(1 + training count).

    Args:
      candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
      histories: [n] item ids before the target, oldest first; may be empty.
      vectors: [num_items, dim] from `cooccurrence_embeddings`.
      counts: [num_items] training counts.

    Returns:
      [n, c] float32, higher is better, -inf at padding. Likeness is the mean cosine.
    """
    unit = _unit(vectors).astype(np.float64)
    profile = np.zeros((len(histories), vectors.shape[1]))
    for row, items in enumerate(histories):
        recent = list(items)[-LAST_ITEMS:]
        if recent:
            profile[row] = unit[recent].mean(axis=0)
    known = np.maximum(candidate_ids, 0)
    likeness = np.empty(candidate_ids.shape)
    for begin in range(0, len(known), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        likeness[rows] = np.einsum("ncd,nd->nc", unit[known[rows]], profile[rows])
    # Items that nothing joins to the history are equal: rounding errors must not order them.
    scores = (
        SIMILARITY_WEIGHT * likeness.round(_DECIMALS) + POPULARITY_WEIGHT * np.log1p(counts)[known]
    )
    return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)


class CatalogueScores:
    """What `score_by_cooccurrence` gives all items of the catalogue, to 1e-4.

    The scores of a history are the same bits whatever it is scored with, on any machine: entries
    of the vectors are multiples of 1 / 2^20, so that float64 holds every sum of their products
    exactly, in whichever order a matrix product adds them.
    """

    def __init__(self, vectors: NDArray[np.float32], prior: NDArray[np.float64]) -> None:
        """Takes what `of` finds and `write` keeps.

        Args:
          vectors: [items, dim], of norm 1 or 0, entries on the grid.
          prior: [items] what an item has without any history.
        """
        self._vectors, self._prior = vectors.astype(np.float64), prior

    @classmethod
    def of(cls, data: PreparedData, *, seed: int) -> "CatalogueScores":
        """Counts the training events of a data set, and none that is held out."""
        training = training_histories(history.item_ids for history in data.histories)
        vectors = cooccurrence_embeddings(training, len(data.items), ITEM_DIM, seed)
        on_grid = (_unit(vectors) * _GRID).round() / _GRID
        counts = count_items(training, num_items=len(data.items))
        return cls(on_grid, POPULARITY_WEIGHT * np.log1p(counts))

    def write(self, path: Path) -> None:
        """Writes a file that `read` reads."""
        with files.atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, vectors=self._vectors.astype(np.float32), prior=self._prior)

    @classmethod
    def read(cls, path: Path) -> "CatalogueScores":
        """Reads what `write` wrote."""
        with np.load(path) as found:
            return cls(found["vectors"], found["prior"])

    def score(self, histories: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """Returns [n, items], higher is better; histories are [n] item ids, oldest first."""
        profile = np.zeros((len(histories), self._vectors.shape[1]))
        numbers = np.ones((len(histories), 1))
        for row, items in enumerate(histories):
            if recent := list(items)[-LAST_ITEMS:]:
                profile[row] = self._vectors[recent].sum(axis=0)
                numbers[row] = len(recent)
        scores: NDArray[np.float64] = profile @ self._vectors.T
        scores *= SIMILARITY_WEIGHT / numbers
        scores += self._prior
        return scores


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns vectors of norm 1, or 0 where they are 0."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, 1e-9)


def _count_pairs(sequences: Sequence[NDArray[np.integer]], size: int) -> sparse.csr_matrix:
    """Returns [size, size] in how many sequences two different ids occur together."""
    present = incidence(sequences, size)
    counts = (present.T @ present).tocsr()
    counts.setdiag(0)
    counts.eliminate_zeros()
    return counts


def incidence(sequences: Sequence[NDArray[np.integer]], size: int) -> sparse.csr_matrix:
    """Returns [sequences, size] 1 where a sequence holds an id, float64.

    Raises:
      UserError: if an id is not within 0 .. size - 1.
    """
    distinct = [np.unique(sequence) for sequence in sequences]
    columns = np.concatenate(distinct) if distinct else np.zeros(0, dtype=np.int64)
    columns = columns.astype(np.int64)
    if columns.size and not (columns.min() >= 0 and columns.max() < size):
        wrong = columns.min() if columns.min() < 0 else columns.max()
        raise UserError(f"id {wrong} is outside 0 .. {size - 1}; was another vocabulary used?")
    rows = np.repeat(np.arange(len(distinct)), [len(ids) for ids in distinct])
    ones = np.ones(len(columns))
    return sparse.csr_matrix((ones, (rows, columns)), shape=(len(distinct), size))
