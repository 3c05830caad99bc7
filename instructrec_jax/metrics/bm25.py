"""BM25: how well documents answer a query by the words they share.

Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009),
with Lucene's inverse document frequency, which is never negative.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

_SATURATION, _LENGTH_WEIGHT = 1.5, 0.75  # k1 and b, as search engines have them
_CHUNK = 4096  # queries answered at once, to bound memory

Words = Sequence[str]


class BM25:
    """An index of documents.

    Attributes:
      weights: [documents, words] what each word of a query adds to the score of each document.
    """

    def __init__(self, documents: Sequence[Words]) -> None:
        """Indexes documents, at least one, given by their words."""
        unique = dict.fromkeys(itertools.chain.from_iterable(documents))
        self._number = {word: number for number, word in enumerate(unique)}
        counts = self._counts(documents)
        lengths = np.array([len(document) for document in documents])
        having = np.bincount(counts.indices, minlength=len(unique))
        rarity = np.log1p((len(documents) - having + 0.5) / (having + 0.5))
        relative = lengths / max(1.0, lengths.mean())
        damping = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * relative)
        times = counts.data
        counts.data = rarity[counts.indices] * times / (times + np.repeat(damping, _sizes(counts)))
        self.weights = counts

    def scores(self, query: Words) -> NDArray[np.float64]:
        """Returns [documents] the score of each; a word that the query repeats counts each time."""
        return (self.weights @ self._counts([query]).T).toarray()[:, 0]

    def candidate_scores(
        self, queries: Sequence[Words], candidates: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Returns [n, c] the scores of some documents for each query.

        Args:
          queries: [n] words of each.
          candidates: [n, c] indices of documents.
        """
        found = np.empty(candidates.shape)
        for begin in range(0, len(queries), _CHUNK):
            rows = candidates[begin : begin + _CHUNK]
            asked = self._counts(queries[begin : begin + _CHUNK])
            repeated = asked[np.repeat(np.arange(len(rows)), rows.shape[1])]
            products = self.weights[rows.ravel()].multiply(repeated)
            found[begin : begin + _CHUNK] = products.sum(axis=1).reshape(rows.shape)
        return found

    def _counts(self, texts: Sequence[Words]) -> scipy.sparse.csr_array:
        """Returns [texts, words] how often each word of the index stands in each text."""
        counted = [Counter(word for word in text if word in self._number) for text in texts]
        columns = [self._number[word] for counts in counted for word in counts]
        times = [number for counts in counted for number in counts.values()]
        starts = np.cumsum([0, *map(len, counted)])
        shape = (len(texts), len(self._number))
        values = (np.array(times, np.float64), np.array(columns, np.int64), starts)
        counts = scipy.sparse.csr_array(values, shape=shape)
        counts.sort_indices()  # texts of the same words are added up in the same order
        return counts


def _sizes(matrix: scipy.sparse.csr_array) -> NDArray[np.integer]:
    """Returns [rows] how many entries each row has."""
    return np.diff(matrix.indptr)
