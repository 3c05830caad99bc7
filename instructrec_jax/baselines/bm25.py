"""BM25 over the catalogue's texts: the words of a query, of a history, or of both."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructrec_jax.data.prepared import PreparedData
from instructrec_jax.instructions.leaks import content_words
from instructrec_jax.metrics.bm25 import BM25
from instructrec_jax.records import CandidateList

LAST_ITEMS = 10  # of the history, as the co-occurrence scorer takes


class Bm25:
    """How many words of what the user asks for, or has had, a candidate's texts share.

    An item's texts are its title, brand and category. The query is what the user asks for, followed
    by the titles of the last items of the history: in product search there is no history, in
    sequential recommendation nothing is asked for.
    """

    name = "bm25"

    def __init__(self, data: PreparedData, *, seed: int = 0) -> None:
        del seed  # nothing is drawn
        self._histories = {history.user_id: history.item_ids for history in data.histories}
        self._titles = [content_words(item.title) for item in data.items]
        self._index = BM25(
            [content_words(f"{item.title} {item.brand} {item.category}") for item in data.items]
        )

    def score(
        self,
        examples: Sequence[CandidateList],
        candidate_ids: NDArray[np.int32],
        queries: Sequence[str] | None = None,
    ) -> NDArray[np.float32] | None:
        """Returns [n, c] float32, higher is better; None where there is neither query nor history.

        Args:
          examples: n of them.
          candidate_ids: [n, c] item ids, -1 where the row has fewer candidates.
          queries: [n] what the users ask for; None where they ask for nothing.
        """
        if queries is None and any(example.position < 0 for example in examples):
            return None
        asked = [""] * len(examples) if queries is None else queries
        texts = [
            [*content_words(query), *self._history_words(example)]
            for query, example in zip(asked, examples, strict=True)
        ]
        scores = self._index.candidate_scores(texts, np.maximum(candidate_ids, 0))
        return np.where(candidate_ids >= 0, scores, -np.inf).astype(np.float32)

    def _history_words(self, example: CandidateList) -> list[str]:
        if example.position < 0:
            return []
        last = self._histories[example.user_id][: example.position][-LAST_ITEMS:]
        return [word for item in last for word in self._titles[item]]
