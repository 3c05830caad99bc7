"""What each history item adds for a candidate: the same request is scored without it.

An item adds what is lost without it: the candidate's log-likelihood, and its margin, by which it is
ahead of its competitors. The margin is the natural log of its odds among the candidates: what ranks
it, less the log of the sum of exponentials of what ranks the others. A request of n history items
takes n + 1 prompts, of which each is encoded once for all its candidates.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special

from instructrec_jax.metrics import ranking
from instructrec_jax.models.t5 import T5
from instructrec_jax.scoring.prefix_trees import TokenRequest

Score = Callable[[Sequence[TokenRequest]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """A request with its whole history, and without each item of it.

    Attributes:
      whole: the request.
      without: the request without the first, the second, ... title.
      history: [n] titles that the prompt shows, oldest first.
      num_chars: [c] characters of the candidates.
      chosen: index of the candidate that is explained; None for the one that is ranked first.
    """

    whole: TokenRequest
    without: Sequence[TokenRequest]
    history: Sequence[str]
    num_chars: Sequence[int]
    chosen: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class HistoryItem:
    """What a history item adds for a candidate: positive where it speaks for it.

    Attributes:
      title: of the item.
      margin: what the candidate's margin loses without the item.
      log_likelihood: what its log-likelihood loses.
      rank: the rank that it would have without the item.
      likeness: cosine of both titles' mean token embeddings; None where it was not computed.
    """

    title: str
    margin: float
    log_likelihood: float
    rank: int
    likeness: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """Why a candidate has its rank.

    Attributes:
      index: of the candidate among the candidates.
      log_likelihood: natural log, the sum over its tokens and EOS.
      margin: its natural log odds among the candidates.
      rank: 1 the best; ties count against it.
      items: what each history item adds, oldest first.
      num_prompts: prompts that were scored: one more than there are items.
    """

    index: int
    log_likelihood: float
    margin: float
    rank: int
    items: Sequence[HistoryItem]
    num_prompts: int

    @property
    def telling(self) -> list[HistoryItem]:
        """The history items, those that add most to the margin first."""
        return sorted(self.items, key=lambda item: -item.margin)


def leave_one_out(score: Score, prompts: Sequence[Prompts], *, normaliser: str) -> list[Explained]:
    """Returns what the history items of requests add for a candidate of each.

    Args:
      score: returns float32 [c] log-likelihoods for each request, such as a `Scorer` with a model.
      prompts: of any number of requests, which are scored in one call.
      normaliser: what candidates are ranked by: "sum", "mean" or "char".
    """
    found = iter(score([each for own in prompts for each in (own.whole, *own.without)]))
    return [
        _explained(own, [np.asarray(next(found)) for _ in range(len(own.without) + 1)], normaliser)
        for own in prompts
    ]


def _explained(own: Prompts, found: Sequence[np.ndarray], normaliser: str) -> Explained:
    """Returns what follows from the log-likelihoods of all prompts of a request."""
    num_tokens = np.array([len(tokens) for tokens in own.whole.candidates], np.int32)
    num_chars = np.array(own.num_chars, np.int32)
    values = np.stack(
        [ranking.normalise(row, num_tokens, normaliser, num_chars=num_chars) for row in found]
    ).astype(np.float64)
    index = int(np.argmax(values[0])) if own.chosen is None else own.chosen
    others = np.delete(values, index, axis=1)
    margins = values[:, index] - special.logsumexp(others, axis=1)
    ranks = (1 + (others >= values[:, [index]]).sum(axis=1)).tolist()
    log_likelihood = np.array([row[index] for row in found], np.float64)
    first, *lost = zip(margins.tolist(), log_likelihood.tolist(), ranks, strict=True)
    return Explained(
        index=index,
        log_likelihood=first[1],
        margin=first[0],
        rank=first[2],
        items=[
            HistoryItem(
                title=title,
                margin=first[0] - margin,
                log_likelihood=first[1] - log_likelihood,
                rank=rank,
            )
            for title, (margin, log_likelihood, rank) in zip(own.history, lost, strict=True)
        ],
        num_prompts=len(found),
    )


def with_likeness(
    model: T5, explained: Explained, titles: Sequence[np.ndarray], candidate: np.ndarray
) -> Explained:
    """Returns an explanation that says how alike history titles and the candidate are to a model.

    Args:
      model: whose token embeddings are compared.
      explained: from `leave_one_out`.
      titles: tokens of each history title, without EOS.
      candidate: those of the candidate, likewise.
    """
    likeness = _cosines(model, titles, candidate)
    items = [
        dataclasses.replace(item, likeness=value)
        for item, value in zip(explained.items, likeness, strict=True)
    ]
    return dataclasses.replace(explained, items=items)


def _cosines(model: Any, titles: Sequence[np.ndarray], candidate: np.ndarray) -> list[float]:
    """Returns the cosines of the mean embeddings of titles and of a candidate."""
    rows = [candidate, *titles]
    tokens = ranking.stack_rows(rows, 0).astype(np.int32)
    weights = ranking.stack_rows([np.full(len(row), 1 / max(len(row), 1)) for row in rows], 0.0)
    vectors = np.asarray(model.token_embedder(tokens), np.float64)
    means = np.einsum("nt,ntd->nd", weights, vectors)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(float).tiny)
    return (means[1:] @ means[0]).tolist()
